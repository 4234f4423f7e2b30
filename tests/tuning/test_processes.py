"""Really several processes, really kill -9: two processes are one, and a killed run ends where an unhurt one does."""

import json
import os
import shutil
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import run_fit
import torch
from safetensors.torch import load_file

from servers import forking

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]


def begin(arguments: tuple[str, ...], result: Path, *, processes: int = 1) -> list[BaseProcess]:
    """Begin, in several processes that meet as torchrun lets them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forking()
    common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    begun = list[BaseProcess]()
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        begun.append(context.Process(target=run_fit.main, args=(arguments, common | own, result)))
        begun[-1].start()
    return begun


def run(*arguments: str, result: Path, processes: int = 1) -> dict[str, object]:
    begun = begin(arguments, result, processes=processes)
    for process in begun:
        process.join(500)
    assert [process.exitcode for process in begun] == [0] * processes
    found = json.loads(result.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("unhurt")
    return run("plain", str(folder / "out"), "4", result=folder / "result.json")


def vector(result: dict[str, object]) -> torch.Tensor:
    return torch.tensor(result["weights"])


def test_a_run_that_was_killed_ends_where_an_unhurt_one_does(unhurt: dict[str, object], tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    (process,) = begin(("plain", str(out), "4"), result)
    losses = out / "losses.jsonl"
    deadline = time.monotonic() + 300
    # Somewhere between the first checkpoint (4) and the second.
    while not (losses.exists() and losses.read_bytes().count(b"\n") >= 6):
        assert process.exitcode is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # A second kill while a checkpoint is written: one that has no mark is not gone on from.
    torn = out / "checkpoints" / "checkpoint-7"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    resumed = run("plain", str(out), "4", result=result)
    assert resumed["losses"] == pytest.approx(unhurt["losses"], rel=1e-6)
    torch.testing.assert_close(vector(resumed), vector(unhurt), rtol=0, atol=0)


def test_two_processes_are_one(unhurt: dict[str, object], tmp_path: Path) -> None:
    both = run("plain", str(tmp_path / "out"), "100", result=tmp_path / "result.json", processes=2)
    assert (both["processes"], unhurt["processes"]) == (2, 1)
    assert both["losses"] == pytest.approx(unhurt["losses"], rel=1e-4)
    from few_rows import organism

    start = torch.cat([p.detach().flatten() for p in organism().model.parameters()])
    one, two = vector(unhurt), vector(both)
    assert (one - two).norm() < 5e-3 * (one - start).norm()


def test_two_processes_are_one_where_rows_do_not_divide(tmp_path: Path) -> None:
    """No row counts twice, and a process without one takes the step with the others; also after a kill."""
    one = run("uneven", str(tmp_path / "one"), "100", result=tmp_path / "one.json")
    two = run("uneven", str(tmp_path / "two"), "3", result=tmp_path / "two.json", processes=2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "checkpoint-6")  # in the middle of the second epoch
    again = run("uneven", str(tmp_path / "two"), "3", result=tmp_path / "again.json", processes=2)
    assert again["losses"] == pytest.approx(two["losses"], rel=1e-6)
    torch.testing.assert_close(vector(again), vector(two), rtol=0, atol=0)


def test_two_processes_train_the_adapter_that_one_trains(tmp_path: Path) -> None:
    """Reference columns are kept under one name by both, and the adapter begins the same, whatever each drew before."""
    one = run("lora", str(tmp_path / "one"), "100", result=tmp_path / "one.json")
    two = run("lora", str(tmp_path / "two"), "100", result=tmp_path / "two.json", processes=2)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    names = [sorted(path.name for path in (tmp_path / out).glob("reference-*")) for out in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_an_adapter_on_sharded_weights_is_merged_as_on_whole_ones(tmp_path: Path) -> None:
    found = run("adapters", str(tmp_path), result=tmp_path / "result.json", processes=2)
    assert (found["processes"], found["parts"]) == (2, [True, False])
    assert found["distance"] < 1e-6  # type: ignore[operator]
    assert found["logits"] < 1e-4  # type: ignore[operator]
    kept = "adapter/adapter_model.safetensors"
    sharded, whole = (load_file(tmp_path / name / kept) for name in ("True", "False"))
    assert sharded.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=0)


def test_sharded_weights_give_the_gradients_of_whole_ones(tmp_path: Path) -> None:
    found = run("shards", result=tmp_path / "result.json", processes=2)
    assert found["processes"] == 2
    assert found["dtensors"] == found["parameters"]
    assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)  # type: ignore[index]
    assert found["distance"] < 1e-4  # type: ignore[operator]
