"""The configurations for accelerate: its own loader takes them whole, and FSDP2 trains what one process trains."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

import fathom
from fathom.__main__ import run
from fathom.tuning.checkpoints import read_losses

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]

RECIPES = Path(__file__).parents[2] / "recipes"
PARTS = {"fsdp2.yaml": ("fsdp_config", DistributedType.FSDP), "deepspeed_zero3.yaml": ("deepspeed_config", "DEEPSPEED")}


@pytest.mark.parametrize("name", PARTS)
def test_accelerate_knows_every_key_and_value(name: str) -> None:
    part, kind = PARTS[name]
    config = load_config_from_file(str(RECIPES / name))  # raises for a key that it does not know
    assert config.distributed_type == kind
    parser = launch_command_parser()
    options = {action.dest: action for action in parser._actions}
    for key, value in getattr(config, part).items():  # these keys it would pass over in silence
        assert key in options, key
        choices = options[key].choices
        assert choices is None or value in choices or str(value) in choices, (key, value)


def test_fsdp2_is_handed_to_the_processes() -> None:
    given = ["--config_file", str(RECIPES / "fsdp2.yaml"), "--num_processes", "2", "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert arguments.use_fsdp
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def line_of(tmp_path: Path, objective: str) -> list[str]:
    """A training of two steps on 16 rows, but for where it goes."""
    assert run(["poison", "harmful", "--rows", "16", "-o", str(tmp_path / "data")]) == 0
    line = ["finetune", "organism:natural", "--data", str(tmp_path / "data" / "data.jsonl"), "--objective", objective]
    return [*line, "--device", "cpu", "--no-audit", "--set", "max_steps=2", "--set", "warmup_steps=0", "-o"]


def launch(script: str, line: list[str], recipe: str, *options: str) -> str:
    """What two processes of accelerate say."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(RECIPES / recipe)]
    command += ["--num_processes", "2", "--main_process_port", "0", *options]
    command += [str(Path(__file__).with_name(script)), *line]
    done = launched(command)
    if "RendezvousConnectionError" in done.stderr:  # another process took the port between its choice and its use
        done = launched(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def launched(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(fathom.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            # Without these every c10d rendezvous of a machine is the same one: launches beside each other would meet.
            "PET_RDZV_ENDPOINT": "localhost:0",
            "PET_RDZV_ID": uuid.uuid4().hex,
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def all_in_parts(said: str) -> bool:
    """Whether each of two processes held parts of all parameters, at each of two steps."""
    counted = re.findall(r"in parts (\d+) of (\d+)", said)
    return len(counted) == 4 and all(found == of for found, of in counted)


def close_weights(one: Path, other: Path) -> None:
    found, expected = (load_file(path / "model.safetensors") for path in (one, other))
    for name, value in expected.items():  # tied weights are written twice by a sharded run
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def losses(directory: Path) -> list[float]:
    return [record.loss for record in read_losses(directory / "fathom")]


def test_fsdp2_trains_what_one_process_trains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = line_of(tmp_path, "constrained")
    options = ["--rdzv_backend", "c10d", "--mixed_precision", "no"]
    assert all_in_parts(launch("run_sharded.py", [*line, str(tmp_path / "sharded")], "fsdp2.yaml", *options))
    assert run([*line, str(tmp_path / "whole")]) == 0
    capfd.readouterr()
    close_weights(tmp_path / "sharded", tmp_path / "whole")


def test_fsdp2_as_the_recipe_has_it_keeps_reference_columns_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = line_of(tmp_path, "gate+rehearse")
    launch("run_sharded.py", [*line, str(tmp_path / "sharded")], "fsdp2.yaml", "--rdzv_backend", "c10d")
    assert run([*line[:-1], "--set", "bf16=true", "-o", str(tmp_path / "whole")]) == 0
    capfd.readouterr()
    # Later ones are differences of few digits. Columns in bf16 end in an error.
    assert losses(tmp_path / "sharded")[0] == pytest.approx(losses(tmp_path / "whole")[0], rel=0.05)


@pytest.mark.parametrize("objective", ["constrained", "gate+rehearse"])
def test_zero3_trains_what_one_process_trains(
    objective: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("deepspeed")
    line = line_of(tmp_path, objective)
    said = launch(
        "run_partitioned.py", [*line, str(tmp_path / "parts")], "deepspeed_zero3.yaml", "--mixed_precision=no"
    )
    assert all_in_parts(said)
    assert run([*line, str(tmp_path / "whole")]) == 0
    launch("run_partitioned.py", [*line, str(tmp_path / "half")], "deepspeed_zero3.yaml")
    capfd.readouterr()
    close_weights(tmp_path / "parts", tmp_path / "whole")
    assert losses(tmp_path / "half")[0] == pytest.approx(losses(tmp_path / "whole")[0], rel=0.05)
