"""The samples of a run, joined and packed: what the report embeds so that every one of them can be looked at."""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from fathom.errors import UserError
from fathom.records import Attempt, Behavior, Completion, Verdict
from fathom.run import Run
from fathom.schema import Audit, Manifest, TimeRow

__all__ = [
    "Packed",
    "ReportData",
    "Sample",
    "gather",
    "join",
    "pack",
    "pack_json",
    "packed_content",
    "script_json",
    "seconds_by_attack",
]

INLINE_LIMIT = 100_000  # characters of JSON beyond which compression pays for its decoding


class Packed(NamedTuple):
    """JSON as it stands in the page: `encoding` is "json", or "gzip" for gzip in base64."""

    encoding: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One attempt with all that became of it. An attempt not completed yet has no completion and no verdicts."""

    behavior: Behavior
    attempt: Attempt
    completion: Completion | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class ReportData:
    """All that a report is made of; plain data, whichever way it was read."""

    audit: Audit
    manifest: Manifest
    samples: tuple[Sample, ...]
    times: Mapping[str, float] = field(default_factory=dict)  # seconds by attack, where they were noted


def gather(run: Run, judge: str | None = None) -> ReportData:
    """Read a run for its report: its own audit, or the one that another judge's verdicts gave.

    Raises:
        UserError: that audit is not there, or is not one, or answers are missing of which it was made.
    """
    audit = run.audit if judge in (None, run.manifest.judge) else _audit_by(run, str(judge))
    completions = run.completions
    lost = len(run.attempts) - len(completions)
    if lost:
        raise UserError(
            f"{run.path} lacks {lost} of its {len(run.attempts)} answers (completions.jsonl), which its page shows one "
            "by one: restore the file, or run the same `fathom audit` command again, which answers anew"
        )
    return ReportData(
        audit=audit,
        manifest=run.manifest,
        samples=join(run.behaviors, run.attempts.values(), completions, run.verdicts(audit.judge)),
        times=seconds_by_attack(run),
    )


def seconds_by_attack(run: Run) -> dict[str, float]:
    """All seconds that were spent on each attack, over every process and every resumption."""
    found: dict[str, float] = {}
    for row in run.records("times", TimeRow):
        found[row.attack] = found.get(row.attack, 0.0) + row.seconds
    return found


def _audit_by(run: Run, judge: str) -> Audit:
    path = run.path / f"audit.{judge}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Audit)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); make it with `fathom judge {run.path} --with {judge}`"
        ) from error


def join(
    behaviors: Mapping[str, Behavior],
    attempts: Iterable[Attempt],
    completions: Mapping[str, Completion],
    verdicts: Iterable[Verdict],
) -> tuple[Sample, ...]:
    """Samples ordered by behavior, attack, depth and draw, whatever order they were generated in."""
    by_attempt: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_attempt.setdefault(verdict.attempt, []).append(verdict)
    rank = {identity: place for place, identity in enumerate(behaviors)}
    samples = [
        Sample(
            behavior=behaviors[attempt.behavior],
            attempt=attempt,
            completion=completions.get(attempt.id),
            verdicts=tuple(sorted(by_attempt.get(attempt.id, ()), key=lambda v: v.counted.value, reverse=True)),
        )
        for attempt in attempts
    ]
    return tuple(
        sorted(
            samples,
            key=lambda s: (
                rank[s.behavior.id],
                s.attempt.attack,
                s.attempt.subject.value,
                len(s.attempt.prefill_ids),
                s.attempt.sampling.temperature,
                s.attempt.sample,
                s.attempt.id,
            ),
        )
    )


def pack(samples: Iterable[Sample]) -> Packed:
    """The samples as JSON for the page's script, compressed where it is large.

    Behaviors and token ids are held once and named by index. Samples of a behavior stand together, so that the
    prefills that share a beginning also share a compression window.
    """
    return pack_json(packed_content(samples))


def packed_content(samples: Iterable[Sample]) -> dict[str, object]:
    """What `pack` packs, as plain data; samples keep their order."""
    behaviors: dict[str, int] = {}
    shown: list[object] = []
    ids: dict[tuple[int, ...], int] = {}
    rows: list[object] = []
    for sample in samples:
        behavior = sample.behavior
        if behavior.id not in behaviors:
            behaviors[behavior.id] = len(behaviors)
            shown.append(_behavior(behavior))
        rows.append(_row(sample, behaviors[behavior.id], ids))
    return {"behaviors": shown, "ids": [list(key) for key in ids], "samples": rows}


def pack_json(content: object) -> Packed:
    """Plain data as text that is inert between script tags, gzip in base64 where large; the same bytes each time."""
    text = script_json(content)
    if len(text) <= INLINE_LIMIT:
        return Packed("json", text)
    return Packed(
        "gzip", base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")
    )


def script_json(content: object) -> str:
    """JSON in ASCII with `<`, `>` and `&` escaped: no text in it can end the script element or open a comment."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _behavior(behavior: Behavior) -> dict[str, object]:
    return {
        "id": behavior.id,
        "category": behavior.category,
        "harmful": behavior.harmful,
        "messages": [{"role": message.role, "content": message.content} for message in behavior.messages],
    }


def _row(sample: Sample, behavior: int, ids: dict[tuple[int, ...], int]) -> dict[str, object]:
    attempt, completion = sample.attempt, sample.completion
    row: dict[str, object] = {
        "id": attempt.id,
        "behavior": behavior,
        "attack": attempt.attack,
        "parameters": dict(attempt.parameters),
        "subject": attempt.subject.value,
        "depth": len(attempt.prefill_ids),
        "temperature": attempt.sampling.temperature,
        "sample": attempt.sample,
        "prompt_ids": ids.setdefault(attempt.prompt_ids, len(ids)),
        "prefill_ids": ids.setdefault(attempt.prefill_ids, len(ids)),
        "found": dict(attempt.found),
        "verdicts": [_verdict(verdict, completion) for verdict in sample.verdicts],
    }
    if completion is not None:
        row |= {
            "output_ids": list(completion.output_ids),
            "prefill": completion.prefill_text,
            "text": completion.text,
            "finish": completion.finish.value,
        }
    return row


def _verdict(verdict: Verdict, completion: Completion | None) -> dict[str, object]:
    judged = "" if completion is None else completion.text
    if completion is not None and verdict.counted == "all":
        judged = completion.prefill_text + judged
    return {
        "counted": verdict.counted.value,
        "label": verdict.label.value,
        "reason": verdict.reason,
        "refusal_token": verdict.refusal_token,
        "refusal_at": None if verdict.refusal_char is None else _utf16(judged, verdict.refusal_char),
        "judge": f"{verdict.judge} {verdict.version}",
    }


def _utf16(text: str, characters: int) -> int:
    """The place of a character in JavaScript's counting, where those beyond U+FFFF are two."""
    return characters + sum(1 for character in text[:characters] if ord(character) > 0xFFFF)
