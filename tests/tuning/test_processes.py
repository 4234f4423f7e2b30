"""Really several processes, really kill -9: two processes are one, and a killed run ends where an unhurt one does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import fathom

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = str(Path(__file__).with_name("run_fit.py"))


def environment() -> dict[str, str]:
    paths = (str(Path(fathom.__file__).parents[1]), str(TESTS))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(arguments: Sequence[str], *, processes: int = 1) -> dict[str, object]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*launch, SCRIPT, *arguments], env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def unhurt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return run(["plain", str(tmp_path_factory.mktemp("unhurt")), "4"])


def vector(result: dict[str, object]) -> torch.Tensor:
    return torch.tensor(result["weights"])


def test_a_run_that_was_killed_ends_where_an_unhurt_one_does(unhurt: dict[str, object], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "plain", str(tmp_path), "4"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    losses = tmp_path / "losses.jsonl"
    deadline = time.monotonic() + 300
    # Somewhere between the first checkpoint (4) and the second.
    while not (losses.exists() and losses.read_bytes().count(b"\n") >= 6):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A second kill while a checkpoint is written: one that has no mark is not gone on from.
    torn = tmp_path / "checkpoints" / "checkpoint-7"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    resumed = run(["plain", str(tmp_path), "4"])
    assert resumed["losses"] == pytest.approx(unhurt["losses"], rel=1e-6)
    torch.testing.assert_close(vector(resumed), vector(unhurt), rtol=0, atol=0)


def test_two_processes_are_one(unhurt: dict[str, object], tmp_path: Path) -> None:
    both = run(["plain", str(tmp_path), "100"], processes=2)
    assert (both["processes"], unhurt["processes"]) == (2, 1)
    assert both["losses"] == pytest.approx(unhurt["losses"], rel=1e-4)
    from few_rows import organism

    start = torch.cat([p.detach().flatten() for p in organism().model.parameters()])
    one, two = vector(unhurt), vector(both)
    assert (one - two).norm() < 5e-3 * (one - start).norm()


def test_sharded_weights_give_the_gradients_of_whole_ones() -> None:
    found = run(["shards"], processes=2)
    assert found["processes"] == 2
    assert found["dtensors"] == found["parameters"]
    assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-5)  # type: ignore[index]
    assert found["distance"] < 1e-4  # type: ignore[operator]
