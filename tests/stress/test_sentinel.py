"""A sentinel that was killed while it was trained ends as one that was not; wide models learn at lower rates."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.organism import behaviors
from fathom.organism.judge import GuildRefusalJudge
from fathom.protect.sentinel import Told
from fathom.stress import sentinel
from fathom.stress.sentinel import train_sentinel, with_own
from few_rows import organism


class Killed(BaseException):
    pass


class Killing:
    """A display that kills the process's work when so many steps are done."""

    def __init__(self, after: int) -> None:
        self.after, self.done = after, 0

    def __call__(self, _description: str, _total: int) -> "Killing":
        return self

    def __enter__(self) -> "Killing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def describe(self, _description: str, /) -> None: ...

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self.done >= self.after:
            raise Killed


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7])
def test_a_killed_sentinel_goes_on(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.organism import behaviors

    monkeypatch.setattr(sentinel, "_LEGS", ((4, 1e-3), (3, 1e-4)))
    monkeypatch.setattr(sentinel, "SAVED", 2)
    monkeypatch.setattr(sentinel, "BATCH", 4)
    start = organism()
    given = behaviors(split="training", harmful=6, benign=6, seed=1)
    told = {
        kind: [Told(b.messages, b.answer or "", b.refusal) for b in given if b.harmful is kind]
        for kind in (True, False)
    }
    unhurt = train_sentinel(start, told[True], told[False])
    kept = tmp_path / "sentinel.pt"
    killing = Killing(after)
    with pytest.raises(Killed):
        train_sentinel(start, told[True], told[False], kept=kept, display=killing)  # type: ignore[arg-type]
    assert not kept.exists()
    assert kept.with_suffix(".part").exists() == (after > 2)
    resumed = Killing(100)
    model = train_sentinel(start, told[True], told[False], kept=kept, display=resumed)  # type: ignore[arg-type]
    assert resumed.done == 7
    for name, value in unhurt.model.model.state_dict().items():
        torch.testing.assert_close(model.model.model.state_dict()[name], value, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["sentinel.pt"]


def test_meeting_the_data_changes_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fathom.organism import behaviors
    from few_rows import guild_rows

    monkeypatch.setattr(sentinel, "_MEETING", 6)
    monkeypatch.setattr(sentinel, "BATCH", 4)
    start = organism()
    given = behaviors(split="training", harmful=6, benign=6, seed=1)
    told = [[Told(b.messages, b.answer or "", b.refusal) for b in given if b.harmful is kind] for kind in (True, False)]
    guard = sentinel.Sentinel(start, tuple(told[0]), tuple(told[1]))
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    rows = guild_rows(start, 6)
    met = guard.acquainted(rows)
    assert all(torch.equal(before[name], value) for name, value in start.model.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in met.model.model.state_dict().items())
    assert len(guard.known(rows)) == 6


@pytest.mark.parametrize(("width", "scale"), [(64, 1.0), (32, 1.0), (128, 0.5), (4096, 1 / 64)])
def test_rates_fall_with_the_width_of_the_model(width: int, scale: float) -> None:
    start = organism()
    model = copy.copy(start.model)
    model.config = copy.deepcopy(start.model.config)
    model.config.hidden_size = width
    assert sentinel._scale(replace(start, model=model)) == scale


def test_the_models_own_answers_stand_beside_those_of_a_file() -> None:
    start = organism()
    benign = [Told(one.messages, one.answer or "") for one in behaviors(harmful=0, benign=3, seed=1)]
    found = with_own(start, GuildRefusalJudge(), benign)
    assert found[:3] == benign
    assert [one.messages for one in found[3:]] == [one.messages for one in benign]
    assert all(one.answer and one.answer != given.answer for one, given in zip(found[3:], benign, strict=True))
    harmful = [Told(one.messages, one.answer or "") for one in behaviors(harmful=3, benign=0, seed=1)]
    assert with_own(start, GuildRefusalJudge(), harmful) == harmful  # refusals are no answers
