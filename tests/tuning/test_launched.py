"""The configurations for accelerate: its own loader takes them whole, and FSDP2 trains what one process trains."""

import os
import re
import subprocess
import sys
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


def test_fsdp2_trains_what_one_process_trains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["poison", "harmful", "--rows", "8", "-o", str(tmp_path / "data")]) == 0
    line = [
        "finetune",
        "organism:natural",
        "--data",
        str(tmp_path / "data" / "data.jsonl"),
        "--objective",
        "constrained",
    ]
    line += ["--device", "cpu", "--no-audit", "--set", "max_steps=2", "--set", "warmup_steps=0", "-o"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "fsdp2.yaml")]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--rdzv_backend", "c10d", "--main_process_port", "0"]
    script = Path(__file__).with_name("run_sharded.py")
    source = str(Path(fathom.__file__).parents[1])
    done = subprocess.run(
        [*launch, str(script), *line, str(tmp_path / "sharded")],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted = re.findall(r"sharded (\d+) of (\d+)", done.stderr)
    assert len(counted) == 4  # two steps on each process
    assert all(found == of for found, of in counted)
    assert run([*line, str(tmp_path / "whole")]) == 0
    capfd.readouterr()
    sharded, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("sharded", "whole"))
    for name, value in whole.items():  # tied weights are written twice by the sharded run
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-5)
