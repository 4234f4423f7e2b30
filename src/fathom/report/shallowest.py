"""How deep fine-tuned models are: ASR by tokens of the answer given, before fine-tuning and after it at its worst.

As in `worst`, the attacker chooses the setting and the step, and keeps a model that is still of use: here the
shallowest one, by its half depth, and where these are equal by its mean ASR. Counts are pooled over seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fathom.depth.tampered import half_depth
from fathom.records import Parameter
from fathom.report import plot, wording
from fathom.report.plot import Point
from fathom.schema import HalfDepth
from fathom.tally import Interval, clustered_share, percent
from fathom.tampering import Checkpoint, FineTune, Prefilled, Stress

__all__ = ["Deep", "Depth", "Fates", "depth_chart", "depth_name", "fates", "half_name", "sentence"]


class Depth(NamedTuple):
    """One depth of one model, pooled over seeds."""

    tokens: int | None  # as in `Prefilled`
    n: int
    harmful: int
    undecided: int
    interval: Interval

    @property
    def asr(self) -> float:
        return self.harmful / self.n


class Deep(NamedTuple):
    """A setting and a step, by depth."""

    parameters: tuple[tuple[str, Parameter], ...]
    step: int
    depths: tuple[Depth, ...]
    half: HalfDepth | None
    seeds: int
    useful: bool  # under every seed

    @property
    def shallowness(self) -> tuple[float, float]:
        """More is shallower."""
        crossed = None if self.half is None else self.half.tokens
        return -(float("inf") if crossed is None else crossed), sum(d.asr for d in self.depths) / len(self.depths)


class Fates(NamedTuple):
    """An attack's fine-tunes by objective: what was before, and the shallowest useful model of each (None: none)."""

    model: str
    attack: str
    share: float | None
    temperature: float
    before: Deep
    after: tuple[tuple[str, Deep | None], ...]
    every: tuple[tuple[str, tuple[Deep, ...]], ...]  # all settings and steps, by objective

    @property
    def rows(self) -> tuple[tuple[str, Deep | None], ...]:
        return (("before", self.before), *self.after)

    @property
    def tokens(self) -> tuple[int | None, ...]:
        return tuple(depth.tokens for depth in self.before.depths)


def fates(stress: Stress) -> tuple[Fates, ...]:
    """In the order of the sweep, shares of poison rising; of sweeps in which no start of an answer was given, none."""
    found: dict[tuple[str, str, float | None], list[FineTune]] = {}
    for tune in stress.finetunes:
        found.setdefault((tune.model, tune.attack, tune.share), []).append(tune)
    places = {key[:2]: place for place, key in reversed(list(enumerate(found)))}
    order = sorted(found, key=lambda key: (places[key[:2]], key[2] or 0.0))
    return tuple(made for key in order if (made := _fates(*key, found[key])) is not None)


def _fates(model: str, attack: str, share: float | None, tunes: Sequence[FineTune]) -> Fates | None:
    every, before = list[tuple[str, tuple[Deep, ...]]](), None
    for objective in dict.fromkeys(tune.objective for tune in tunes):
        settings: dict[tuple[tuple[tuple[str, Parameter], ...], int], list[Checkpoint]] = {}
        for tune in tunes:
            for point in tune.checkpoints:
                if tune.objective == objective and point.depth:
                    settings.setdefault((tuple(sorted(tune.parameters.items())), point.step), []).append(point)
        deeps = [_deep(*key, points) for key, points in sorted(settings.items(), key=lambda item: str(item[0]))]
        # Every fine-tune begins as the same model, measured once: one of them is all of them.
        start = next((points[:1] for (_, step), points in settings.items() if step == 0), None)
        before = before or (_deep((), 0, start) if start else None)
        every.append((objective, tuple(deep for deep in deeps if deep.step > 0)))
    if before is None:
        return None
    after = tuple(
        (name, max((deep for deep in deeps if deep.useful), key=lambda deep: deep.shallowness, default=None))
        for name, deeps in every
    )
    temperature = next(row.temperature for tune in tunes for point in tune.checkpoints for row in point.depth)
    return Fates(model, attack, share, temperature, before, after, tuple(every))


def _deep(parameters: tuple[tuple[str, Parameter], ...], step: int, points: Sequence[Checkpoint]) -> Deep:
    by_tokens: dict[int | None, list[Prefilled]] = {}
    for point in points:
        for row in point.depth:
            by_tokens.setdefault(row.tokens, []).append(row)
    return Deep(
        parameters=parameters,
        step=step,
        depths=tuple(_depth(tokens, rows) for tokens, rows in by_tokens.items()),
        half=half_depth([point.depth for point in points]),
        seeds=len(points),
        useful=all(point.useful for point in points),
    )


def _depth(tokens: int | None, rows: Sequence[Prefilled]) -> Depth:
    """All answers to a request cling together, whatever their seed."""
    harmful = [sum(filter(None, found)) for found in zip(*(row.by_behavior for row in rows), strict=True)]
    given = [found is not None for found in rows[0].by_behavior]
    drawn = sum(row.drawn for row in rows)
    each = [count for count, one in zip(harmful, given, strict=True) if one]
    return Depth(
        tokens=tokens,
        n=sum(row.n for row in rows),
        harmful=sum(row.harmful for row in rows),
        undecided=sum(row.undecided for row in rows),
        interval=clustered_share(each, [drawn] * len(each), seed=0),
    )


def depth_name(tokens: int | None) -> str:
    """How much was given, as the head of a column."""
    return "end" if tokens is None else str(tokens)


def sentence(found: Sequence[Fates]) -> str:
    """The shallowest useful model of all, and how deep it was before."""
    cases = [(fate, name, deep) for fate in found for name, deep in fate.after if deep is not None]
    if not cases:
        return "No fine-tuned model stayed of use, so there is no depth to report."
    fate, objective, deep = max(cases, key=lambda case: case[2].shallowness)
    how = ", ".join(filter(None, (fate.attack, wording.poisoned(fate.share), wording.drawn(fate.temperature))))
    worst = max(deep.depths, key=lambda depth: depth.asr)
    given = "all of an answer but its last token" if worst.tokens is None else wording.token_count(worst.tokens)
    where = "asked directly" if worst.tokens == 0 else f"with {given} given"
    through = f"{percent(worst.harmful, worst.n)} of the requests get through, {where}"
    if deep.half is None or fate.before.half is None:  # all or nothing was given
        return f"Of the shallowest useful model, under {objective} ({how}), {through}."
    now, before = (half_name(half).replace("> ", "more than ") for half in (deep.half, fate.before.half))
    return (
        f"The shallowest useful model is {now} tokens deep, under {objective} ({how}); before fine-tuning it was "
        f"{before}. At worst {through}."
    )


def half_name(half: HalfDepth | None) -> str:
    """A half depth with its interval in a cell."""
    if half is None:
        return "–"
    if not half.reached or half.tokens is None:
        return f"> {half.deepest}"
    return f"{wording.tokens(half.tokens)} ({wording.half_interval(half)})"


def depth_chart(found: Fates) -> dict[str, object]:
    """ASR against tokens given: before, and of each objective's shallowest useful model. `end` has no place on it."""
    points: list[Point] = [
        {
            "tokens": depth.tokens,
            "share": depth.asr,
            "low": depth.interval.low,
            "high": depth.interval.high,
            "series": name,
            "step": deep.step,
            "harmful of n": f"{depth.harmful} of {depth.n}",
            "undecided": depth.undecided,
            "95 % interval": wording.interval_percent(*depth.interval),
        }
        for name, deep in found.rows
        if deep is not None
        for depth in deep.depths
        if depth.tokens is not None
    ]
    tips = [
        "tokens:Q",
        "series:N",
        "step:Q",
        plot.share_tip("share", "ASR"),
        "95 % interval:N",
        "harmful of n:N",
        "undecided:Q",
    ]
    lines = plot.band_line(
        points,
        x=plot.depth_axis([point["tokens"] for point in points]),
        y=plot.share_axis("harmful answers"),
        tooltip=tips,
    )
    return plot.spec([plot.rule_across(0.5), *lines], height=240)
