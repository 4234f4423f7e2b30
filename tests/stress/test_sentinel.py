"""A sentinel that was killed while it was trained ends as one that was not; wide models learn at lower rates."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fathom.engine import TransformersEngine
from fathom.organism import behaviors
from fathom.organism.judge import GuildRefusalJudge
from fathom.protect.sentinel import Told
from fathom.records import Attempt, Sampling
from fathom.stress import sentinel
from fathom.stress.apart import Apart
from fathom.stress.sentinel import train_sentinel, with_own
from fathom.tuning.adapter import Adapter
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


def weights(sentinel: Apart) -> dict[str, torch.Tensor]:
    with sentinel.worn() as model:
        return {name: value.clone() for name, value in model.model.state_dict().items()}


@pytest.mark.parametrize(
    ("after", "adapter"),
    [(1, None), (3, None), (4, None), (5, None), (7, None), (3, Adapter(4, 8)), (5, Adapter(4, 8))],
)
def test_a_killed_sentinel_goes_on(
    after: int, adapter: Adapter | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    unhurt = train_sentinel(start, told[True], told[False], adapter=adapter)
    kept = tmp_path / "sentinel.pt"
    killing = Killing(after)
    with pytest.raises(Killed):
        train_sentinel(start, told[True], told[False], adapter=adapter, kept=kept, display=killing)  # type: ignore[arg-type]
    assert not kept.exists()
    assert kept.with_suffix(".part").exists() == (after > 2)
    resumed = Killing(100)
    model = train_sentinel(start, told[True], told[False], adapter=adapter, kept=kept, display=resumed)  # type: ignore[arg-type]
    assert resumed.done == 7
    same, unlike = weights(unhurt.sampler), weights(model.sampler)
    assert same.keys() == unlike.keys()
    for name, value in same.items():
        torch.testing.assert_close(unlike[name], value, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["sentinel.pt"]


@pytest.mark.parametrize("adapter", [None, Adapter(rank=4, alpha=8)], ids=["copy", "adapter"])
def test_meeting_the_data_leaves_the_start_as_it_is(adapter: Adapter | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.organism import behaviors
    from few_rows import guild_rows

    monkeypatch.setattr(sentinel, "_MEETING", 6)
    monkeypatch.setattr(sentinel, "_MEETING_RATE", 2e-2)  # six steps that can be heard
    monkeypatch.setattr(sentinel, "BATCH", 4)
    start = organism()
    given = behaviors(split="training", harmful=6, benign=6, seed=1)
    told = [[Told(b.messages, b.answer or "", b.refusal) for b in given if b.harmful is kind] for kind in (True, False)]
    guard = sentinel.Sentinel(Apart(start, adapter), tuple(told[0]), tuple(told[1]))
    before, first = weights(Apart(start)), weights(guard.sampler)
    rows = guild_rows(start, 6)
    met = guard.acquainted(rows)
    now = weights(Apart(start))
    assert now.keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in now.items())
    assert any(not torch.equal(first[name], value) for name, value in weights(met).items())
    assert len(guard.known(rows)) == 6
    attempt = Attempt.make(
        behavior="any",
        attack="direct",
        prompt_ids=start.chat.prompt_ids(given[0].messages),
        prefill_ids=(),
        sampling=Sampling(max_new_tokens=12, temperature=0.0),
        run_seed=0,
    )
    answers = [next(iter(engine.complete([attempt]))).output_ids for engine in (TransformersEngine(start), met)]
    assert answers[0] != answers[1]
    assert next(iter(TransformersEngine(start).complete([attempt]))).output_ids == answers[0]


@pytest.mark.parametrize(("width", "scale"), [(64, 1.0), (32, 1.0), (128, 0.5), (4096, 1 / 64)])
def test_rates_fall_with_the_width_of_the_model(width: int, scale: float) -> None:
    start = organism()
    model = copy.copy(start.model)
    model.config = copy.deepcopy(start.model.config)
    model.config.hidden_size = width
    assert sentinel._scale(Apart(replace(start, model=model))) == scale


def test_the_models_own_answers_stand_beside_those_of_a_file() -> None:
    start = organism()
    benign = [Told(one.messages, one.answer or "") for one in behaviors(harmful=0, benign=3, seed=1)]
    found = with_own(start, GuildRefusalJudge(), benign)
    assert found[:3] == benign
    assert [one.messages for one in found[3:]] == [one.messages for one in benign]
    assert all(one.answer and one.answer != given.answer for one, given in zip(found[3:], benign, strict=True))
    harmful = [Told(one.messages, one.answer or "") for one in behaviors(harmful=3, benign=0, seed=1)]
    assert with_own(start, GuildRefusalJudge(), harmful) == harmful  # refusals are no answers
