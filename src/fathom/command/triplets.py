"""`fathom triplets`: what deepening learns from, made by the models themselves and kept in the user's own directory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fathom.command.known import benign_behaviors, known_behaviors
from fathom.command.request import ORGANISM, Judges, ModelRequest, display_for, load_model, named_judge
from fathom.command.training import say
from fathom.command.triplet_files import AnswerRow, Output, SkippedPrompt, TripletRow, UtilityRow, claim_build
from fathom.errors import UserError
from fathom.journal import Journal, read_journal
from fathom.ranks import ALONE
from fathom.records import Behavior, Exchange, Judge, Label, content_hash
from fathom.run import RunLock

if TYPE_CHECKING:
    from fathom.deepen.own import OwnAnswer
    from fathom.model import ChatModel

__all__ = ["TripletsRequest", "build_triplets"]

ORGANISM_HARMFUL, ORGANISM_BENIGN = 256, 256
BATCH = 16  # prompts between writes
# How refusals, the base's answers and utility answers are told apart where all are drawn with one seed.
_BASE_SEED = 1
_DRAWN_SEED = 2


@dataclass(frozen=True, kw_only=True)
class TripletsRequest:
    """What was asked for."""

    model: ModelRequest
    output: Path
    harmful: Path | None = None
    utility: Path | None = None
    base: str | None = None
    judge: str | None = None
    samples: int = 4
    max_new_tokens: int = 256


def build_triplets(request: TripletsRequest, judges: Judges) -> Path:
    """Build what is missing; the directory.

    Raises:
        UserError: there are no prompts, answers are missing and there is no base, or the directory holds another build.
    """
    harmful, benign = _prompts(request)
    without = sum(behavior.answer is None for behavior in harmful)
    base = request.base or (f"{ORGANISM}:base" if request.model.is_organism else None)
    if without and base is None:
        raise UserError(
            f"{without} of {len(harmful)} harmful prompts have no harmful_response: add it to the file, or give the "
            "unaligned model that is to write them with --base MODEL"
        )
    judge = named_judge(judges, request.judge or ("guild-refusal" if request.model.is_organism else "refusal"))
    path = request.output
    asked = content_hash((harmful, benign, repr(replace(request, output=Path())), judge.name, judge.version))
    with RunLock(path):
        claim_build(path, asked)
        model = load_model(request.model)
        answers = _harmful_answers(request, model, harmful, base if without else None, judge, path)
        with Journal(path / "triplets.jsonl") as rows, Journal(path / "skipped.jsonl") as skipped:
            _triplets(request, model, harmful, answers, judge, Output("harmful", rows, skipped))
        with Journal(path / "utility.jsonl") as rows, Journal(path / "skipped.jsonl") as skipped:
            _utility(request, model, benign, judge, Output("utility", rows, skipped))
    made = sum(1 for _ in read_journal(path / "triplets.jsonl", TripletRow))
    anchors = sum(1 for _ in read_journal(path / "utility.jsonl", UtilityRow))
    left = sum(1 for _ in read_journal(path / "skipped.jsonl", SkippedPrompt))
    say(f"{made} triplets, {anchors} utility rows; {left} prompts gave none ({path / 'skipped.jsonl'} says why)")
    if not made:
        raise UserError(f"no prompt gave a triplet; {path / 'skipped.jsonl'} says why")
    return path


def _prompts(request: TripletsRequest) -> tuple[tuple[Behavior, ...], tuple[Behavior, ...]]:
    own: tuple[Behavior, ...] = ()
    if request.model.is_organism:
        from fathom.organism import behaviors

        own = behaviors(split="training", harmful=ORGANISM_HARMFUL, benign=ORGANISM_BENIGN, seed=3)
    elif request.harmful is None or request.utility is None:
        missing = (
            "harmful prompts: add --harmful FILE" if request.harmful is None else "benign ones: add --utility FILE"
        )
        raise UserError(f"triplets need harmful prompts and benign ones, and fathom ships none; there are no {missing}")
    harmful = tuple(msgspec.structs.replace(item, answer=None) for item in own if item.harmful)
    benign = tuple(item for item in own if not item.harmful)
    if request.harmful is not None:
        harmful = tuple(item for item in known_behaviors(request.harmful) if item.harmful)
    if request.utility is not None:
        benign = benign_behaviors(request.utility)
    if not harmful:
        raise UserError(f"{request.harmful} holds no harmful prompts")
    return harmful, benign


def _harmful_answers(
    request: TripletsRequest,
    model: "ChatModel",
    harmful: Sequence[Behavior],
    base: str | None,
    judge: Judge,
    path: Path,
) -> dict[str, str]:
    """Harmful answers by behavior: the file's, else the base's, of which the judge must say that they are."""
    found = {behavior.id: behavior.answer for behavior in harmful if behavior.answer is not None}
    found |= {row.id: row.harmful_response for row in read_journal(path / "answers.jsonl", AnswerRow)}
    missing = [behavior for behavior in harmful if behavior.id not in found]
    if base is None or not missing:
        return found
    from fathom.model import check_pair

    # Its own chat format is not used, so it needs none: it is given the model's ids.
    unaligned = load_model(
        replace(request.model, name=base, revision=None, adapter=None, chat_template=None, plain=True)
    )
    check_pair(model, unaligned)
    writer = replace(unaligned, chat=model.chat)
    with Journal(path / "answers.jsonl") as journal, display_for(ALONE)("harmful answers", len(missing)) as shown:
        for batch in _batches(missing):
            rows = [
                AnswerRow(id=behavior.id, harmful_response=text)
                for behavior, text in _judged(request, writer, batch, judge, Label.HARMFUL, seed=_BASE_SEED)
                if text is not None
            ]
            journal.append(rows)
            shown.advance(len(batch))
            found |= {row.id: row.harmful_response for row in rows}
    return found


def _triplets(
    request: TripletsRequest,
    model: "ChatModel",
    harmful: Sequence[Behavior],
    answers: dict[str, str],
    judge: Judge,
    output: Output,
) -> None:
    seen = output.seen(TripletRow)
    pending = [behavior for behavior in harmful if behavior.id not in seen]
    with display_for(ALONE)("refusals", len(pending)) as shown:
        for batch in _batches(pending):
            rows: list[TripletRow] = []
            skipped: list[SkippedPrompt] = []
            for behavior, refusal in _judged(request, model, batch, judge, Label.SAFE, seed=0):
                answer = answers.get(behavior.id)
                if answer is None:
                    skipped.append(output.skip(behavior, "the base gave no harmful answer"))
                elif refusal is None:
                    skipped.append(output.skip(behavior, "the model does not refuse it"))
                else:
                    rows.append(
                        TripletRow(id=behavior.id, messages=behavior.messages, harmful_response=answer, refusal=refusal)
                    )
            output.rows.append(rows)
            output.skipped.append(skipped)
            shown.advance(len(batch))


def _judged(
    request: TripletsRequest,
    model: "ChatModel",
    behaviors: Sequence[Behavior],
    judge: Judge,
    wanted: Label,
    *,
    seed: int,
) -> Iterable[tuple[Behavior, str | None]]:
    """Of each behavior, the first of a few answers (greedy, then drawn) that the judge labels as wanted."""
    from fathom.deepen.own import own_answers

    found: dict[str, str] = {}
    for sample in range(request.samples):
        pending = [behavior for behavior in behaviors if behavior.id not in found]
        outputs = own_answers(
            model,
            [behavior.messages for behavior in pending],
            request.max_new_tokens,
            temperature=0.0 if sample == 0 else 1.0,
            seed=seed * request.samples + sample,
        )
        for behavior, output in zip(pending, outputs, strict=True):
            text = output.text.strip()
            exchange = Exchange(behavior=behavior, prefill="", response=text)
            # An answer that was cut off is a harmful answer all the same; a refusal that was, is not learned from.
            if text and (output.whole or wanted is Label.HARMFUL) and judge.judge(exchange).label is wanted:
                found[behavior.id] = text
    return [(behavior, found.get(behavior.id)) for behavior in behaviors]


def _utility(
    request: TripletsRequest, model: "ChatModel", benign: Sequence[Behavior], judge: Judge, output: Output
) -> None:
    """The model's greedy answer to each, and one that it draws: else all are of one kind, and harmful ones of another.

    What is deepened on one kind alone breaks off harmless answers of any other.
    """
    from fathom.deepen.own import own_answers

    seen = output.seen(UtilityRow)
    pending = [behavior for behavior in benign if behavior.id not in seen]
    with display_for(ALONE)("utility answers", len(pending)) as shown:
        for batch in _batches(pending):
            greedy, drawn = (
                own_answers(
                    model,
                    [behavior.messages for behavior in batch],
                    request.max_new_tokens,
                    temperature=temperature,
                    seed=_DRAWN_SEED,
                )
                for temperature in (0.0, 1.0)
            )
            rows, skipped = [], []
            for behavior, answer, other in zip(batch, greedy, drawn, strict=True):
                text = answer.text.strip()
                if not text or not answer.whole:
                    reason = f"the answer did not end within {request.max_new_tokens} tokens" if text else "no answer"
                    skipped.append(output.skip(behavior, reason))
                    continue
                # The drawn one first: where the other is on disk, both are.
                if _answers(behavior, other, judge) and other.text.strip() != text:
                    rows.append(UtilityRow.of(behavior, other.text.strip(), f"{behavior.id}, drawn"))
                rows.append(UtilityRow.of(behavior, text, behavior.id))
            output.rows.append(rows)
            output.skipped.append(skipped)
            shown.advance(len(batch))


def _answers(behavior: Behavior, drawn: "OwnAnswer", judge: Judge) -> bool:
    """Whether what was drawn is a whole answer and no refusal."""
    text = drawn.text.strip()
    if not text or not drawn.whole:
        return False
    return judge.judge(Exchange(behavior=behavior, prefill="", response=text)).label is not Label.SAFE


def _batches(behaviors: Sequence[Behavior]) -> Iterable[Sequence[Behavior]]:
    return (behaviors[start : start + BATCH] for start in range(0, len(behaviors), BATCH))
