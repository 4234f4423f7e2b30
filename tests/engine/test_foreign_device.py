"""On a device other than the CPU nothing is left behind: the same figures come out as on the CPU.

The device is a pretended one (`pretend_device`), so that this is tested on machines that have none.
"""

import json
import math

import pytest
import torch

from fathom.__main__ import run
from fathom.command.request import ModelRequest, load_model
from pretend_device import Foreign, pretend

MODEL = ("organism:natural", "--limit", "2", "--max-new-tokens", "4")
AUDIT = ("audit", *MODEL, "--depths", "0,3", "--prefix", "I cannot")
ATTACKS = {  # and how many requests it needs
    "suffix steps=1 width=4 check=1 tries=1": "1",
    "decoding temperatures=0.5 top_ps=0.5 top_ks=3": "1",
}


def figures(path):
    """What an audit found, without what says where it ran."""
    found = json.loads((path / "audit.json").read_text())
    return {name: value for name, value in found.items() if name not in ("environment", "seconds")}


def same(first, second):
    """Equal, and floats to four digits: sums are taken in another order."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        assert all(same(value, second[name]) for name, value in first.items())
    elif isinstance(first, list):
        assert len(first) == len(second)
        assert all(map(same, first, second))
    elif isinstance(first, float) and isinstance(second, float):
        assert math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-4)
    else:
        assert first == second
    return True


def test_the_pretended_device_mixes_as_a_real_one():
    with pretend() as device:
        there = torch.arange(6.0).view(2, 3).to(device)
        assert isinstance(there, Foreign)
        assert there.device == device
        assert torch.equal((there + 1).cpu(), torch.arange(6.0).view(2, 3) + 1)
        assert there[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
        weights = torch.ones(3, device=device, requires_grad=True)
        (there @ weights).sum().backward()
        assert weights.grad.tolist() == [3.0, 5.0, 7.0]
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="indices should be"):
            torch.ones(3)[torch.tensor([1]).to(device)]
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_what_is_built_in_is_on_the_cpu_wherever_it_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pretend():
        assert load_model(ModelRequest(name="organism:natural")).device.type == "cpu"


def test_an_audit_is_the_cpus(tmp_path, capsys):
    assert run([*AUDIT, "--device", "cpu", "--output", str(tmp_path / "here")]) == 0
    capsys.readouterr()
    with pretend() as device:
        assert run([*AUDIT, "--device", str(device), "--output", str(tmp_path / "there")]) == 0
    assert "slower" not in capsys.readouterr().err  # prompts are shared there, too
    assert same(figures(tmp_path / "here"), figures(tmp_path / "there"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda words: words.split()[0])
def test_an_attack_runs_there(attack, tmp_path, capsys):
    asked = ("attack", "organism:natural", "--limit", ATTACKS[attack], "--max-new-tokens", "3", "--with", attack)
    with pretend() as device:
        assert run([*asked, "--temperature", "0", "--device", str(device), "--output", str(tmp_path / "run")]) == 0
    assert "slower" not in capsys.readouterr().err  # what both ways of sharing say where they cannot


def test_models_are_trained_and_measured_there(tmp_path, capsys):
    asked = ("--objective", "constrained,gate", "--steps", "1", "--rates", "1e-3", "--warmup", "0", "--rows", "4")
    with pretend() as device:
        where = ("--device", str(device), "-o", str(tmp_path / "sweep"))
        code = run(["stress", *MODEL, *asked, "--temperature", "0", "--utility-bound", "1", *where])
    assert code == 0
    assert "constrained" in capsys.readouterr().out
