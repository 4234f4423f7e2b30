"""What deepening learns: recovery rows and an anchor, mixed, and what a simulated attacker is given."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fathom.command.request import display_for, keeps_parts
from fathom.command.sources import (
    LOOSE,
    ORGANISM_NEW_TOKENS,
    Sources,
    Utility,
    anchor_rows,
    loosened_anchor,
)
from fathom.command.training import Training, asked_in, check_warmup
from fathom.ranks import ALONE
from fathom.records import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from transformers import PreTrainedModel

    from fathom.command.deepen import DeepenRequest
    from fathom.deepen.adversary import Adversary, Attackable, Hardening
    from fathom.deepen.mixture import Mixture
    from fathom.deepen.recovery import EncodedTriplet
    from fathom.deepen.resist import LookAhead, Resistance
    from fathom.deepen.starts import StartSampler
    from fathom.deepen.triplets import Triplet
    from fathom.model import ChatModel
    from fathom.tuning.directory import TuningDirectory, WrittenPlan
    from fathom.tuning.rows import TrainingRow
    from fathom.tuning.settings import Settings

    BeforeStep: TypeAlias = Callable[[PreTrainedModel, int], None]

__all__ = ["Deepening"]

MINED_TRIPLETS = 64
MINED_DEPTHS = (1, 2, 3, 5, 8, 13, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480)


@dataclass(frozen=True)
class Deepening:
    """A `TrainingJob`: all epochs' rows drawn ahead, and one pass over them."""

    request: "DeepenRequest"
    mixture: "Mixture"
    longest: int | None  # C of the paper in tokens; None: each answer's own length
    sampler: "StartSampler | None"  # None: mined from the model
    sources: Sources
    settings: "Settings"
    adversary: "Adversary | None"
    resistance: "Resistance | None"

    @property
    def notes(self) -> tuple[str, ...]:
        return self.sources.notes

    def check(self, model: "ChatModel") -> None:
        """Whatever can be trained can be deepened; an adversary needs room."""
        if self.adversary is not None:
            self._attackable(self.adversary, model)

    def configuration(self) -> dict[str, object]:
        mixture, starts = self.mixture, "mined" if self.sampler is None else self.sampler.name
        beside = "".join(f"; {part}" for part in (self.adversary, self.resistance) if part is not None)
        asked: dict[str, object] = {
            "objective": f"recovery rows ({starts}), {mixture.share} share of alpha = {mixture.alpha:g}, "
            f"{mixture.recovery} + {mixture.utility} rows a step, anchored by {mixture.anchor}{beside}",
            "sources": content_hash(repr(self.sources)),
            "mixture": repr(mixture),
            "loosened": self.request.chosen.loosened,
            "drawn": self.request.chosen.drawn,
            "starts": "mined" if self.sampler is None else repr(self.sampler),
            "lora": repr(self.request.training.lora),
            "settings": self.settings.plain,
            **asked_in(self.request.training.model),
        }
        if self.adversary is not None:
            asked["adversary"] = repr(self.adversary)
        if self.resistance is not None:
            asked["resistance"] = repr(self.resistance)
        return asked

    def write_plan(self, model: "ChatModel", directory: "TuningDirectory") -> None:
        from fathom.deepen.recovery import encode_triplets, recovery_rows
        from fathom.tuning.directory import TuningPlan
        from fathom.tuning.rows import fit_length, rows_hash

        settings, mixture, request = self.settings, self.mixture, self.request
        triplets = encode_triplets(model.chat, self.sources.triplets)
        sampler = self.sampler
        if sampler is None:
            sampler = _mined(request.chosen.p0, model, self.sources.triplets)
        steps = self._steps(len(triplets))
        check_warmup(settings.with_defaults(max_steps=steps), steps * mixture.batch)
        recoveries = recovery_rows(model.chat, triplets, sampler, steps * mixture.recovery, seed=settings.seed)
        loose = loosened_anchor(self.sources.utility, request.chosen.loosened, settings.seed)
        rows = mixture.mix(recoveries, self._anchor(model, loose), seed=settings.seed)
        fitted = fit_length(rows, context=model.context, max_length=settings.max_length, chat=model.chat)
        notes = (*self.notes, *self._notes(sampler, triplets, len(loose)))
        directory.write_plan(
            fitted.rows,
            TuningPlan(rows=len(fitted.rows), rows_hash=rows_hash(fitted.rows), cut=fitted.cut, notes=notes),
        )

    def summary(self, written: "WrittenPlan") -> Iterator[str]:
        from fathom.tuning.directory import TuningDirectory

        yield from (note for note in written.plan.notes if note not in self.notes)  # those were said already
        steps = written.plan.rows // self.mixture.batch
        kept = TuningDirectory(self.request.training.output).inner / "rows.jsonl"
        yield f"{written.plan.rows} rows in {steps} steps, in {kept}"

    def training(self, model: "ChatModel", written: "WrittenPlan") -> Training:
        from fathom.deepen.mixture import Anchor
        from fathom.protect.objectives import Composed, HeldToReference
        from fathom.tuning.objective import PlainNll

        held = self.mixture.anchor is Anchor.KL
        # The rows are all epochs, drawn ahead: one pass over them.
        steps = len(written.rows) // self.mixture.batch
        return Training(
            Composed((PlainNll(), HeldToReference())) if held else PlainNll(),
            self.settings.with_defaults(max_steps=steps),
            divisor=self.mixture.divisor,
            ordered=1,
            before_step=self._before_step(model, written),
            save_every=1 if self.resistance is None else self.resistance.every,
        )

    def _before_step(self, model: "ChatModel", written: "WrittenPlan") -> "BeforeStep | None":
        parts: list[BeforeStep] = []
        if self.adversary is not None:
            parts.append(self._hardening(self.adversary, model, written))
        if self.resistance is not None:
            parts.append(self._look_ahead(self.resistance, model, written))

        def all_of_them(trained: "PreTrainedModel", step: int) -> None:
            for part in parts:
                part(trained, step)

        return all_of_them if parts else None

    def _hardening(self, adversary: "Adversary", model: "ChatModel", written: "WrittenPlan") -> "Hardening":
        """The triplets, and the plan's anchor, for an adversary to stand behind."""
        from fathom.deepen.adversary import Hardening, answerable
        from fathom.deepen.starts import PaperStarts
        from fathom.tuning.rows import Kind

        attackable = self._attackable(adversary, model)
        anchor = [row for row in written.rows if row.kind is Kind.UTILITY]
        batch = self.settings.values["per_device_train_batch_size"]
        assert isinstance(batch, int)
        return Hardening(
            adversary,
            model.chat,
            attackable,
            answerable(anchor, attackable, adversary, self._limit(model)),
            PaperStarts(adversary.p0, self.longest),
            seed=self.settings.seed,
            batch=batch,
        )

    def _attackable(self, adversary: "Adversary", model: "ChatModel") -> "tuple[Attackable, ...]":
        from fathom.attack.suffix.text import around_place
        from fathom.deepen.adversary import Attackable, with_room
        from fathom.deepen.recovery import encode_triplets

        chat, triplets = model.chat, self.sources.triplets
        items = [
            Attackable(encoded, *around_place(chat, triplet.source, triplet.messages))
            for triplet, encoded in zip(triplets, encode_triplets(chat, triplets), strict=True)
        ]
        return with_room(items, adversary, self._limit(model))

    def _limit(self, model: "ChatModel") -> int | None:
        """The most tokens of a row; None: any."""
        limits = [limit for limit in (model.context, self.settings.max_length) if limit is not None]
        return min(limits, default=None)

    def _steps(self, triplets: int) -> int:
        """An epoch is one pass over the triplets."""
        values = self.settings.values
        most, epochs = values.get("max_steps", -1), values["num_train_epochs"]
        if isinstance(most, int) and most > 0:
            return most
        assert isinstance(epochs, int | float)
        return max(1, round(epochs * triplets / self.mixture.recovery))

    def _anchor(self, model: "ChatModel", loose: Sequence[Utility]) -> "tuple[TrainingRow, ...]":
        """The model's own answers, and those to prompts that were loosened, as long as the longest of the others."""
        drawn = self.request.chosen.drawn
        rows = anchor_rows(model, self.sources.utility, drawn=drawn, display=display_for(ALONE))
        if not loose:
            return rows
        most = max((len(row.response_ids) for row in rows), default=0)
        longest = max(ORGANISM_NEW_TOKENS, most)
        return (*rows, *anchor_rows(model, loose, longest, display=display_for(ALONE)))

    def _notes(self, sampler: "StartSampler", triplets: "Sequence[EncodedTriplet]", loose: int) -> Iterator[str]:
        if self.sampler is None:
            yield f"starts: {sampler.name}"
        longest = self.longest
        short = 0 if longest is None else sum(len(triplet.answer_ids) < longest for triplet in triplets)
        if short and self.request.starts in ("paper", "insertion"):
            yield (
                f"{short} of {len(triplets)} harmful answers are shorter than C = {longest} tokens: their k is drawn "
                "up to their own length"
            )
        if self.request.adversary is None and not self.request.resist and keeps_parts():
            yield "no adversary: it adds to the gradients of whole weights, and each process keeps parts of them"
        if loose:
            yield f"anchor: {loose} prompts were loosened for the model to answer once more"

    def _look_ahead(self, resistance: "Resistance", model: "ChatModel", written: "WrittenPlan") -> "LookAhead":
        """What a simulated attacker trains on, and what becomes of it: the triplets, and the plan's anchor."""
        from msgspec.structs import replace

        from fathom.deepen.recovery import encode_triplets, recovery_row
        from fathom.deepen.resist import LookAhead
        from fathom.deepen.starts import Start
        from fathom.tuning.rows import Kind, fit_length, make_row

        chat, triplets, settings = model.chat, self.sources.triplets, self.settings
        answers = [make_row(chat, t.messages, t.answer, source=t.source) for t in triplets]
        refusals = [recovery_row(chat, t, Start()) for t in encode_triplets(chat, triplets)]
        anchor = [row for row in written.rows if row.kind is Kind.UTILITY and not row.source.endswith(LOOSE)]
        benign = dict.fromkeys(replace(row, loss_weight=1.0, held=0.0) for row in anchor)

        def fitting(rows: "Iterable[TrainingRow]") -> "tuple[TrainingRow, ...]":
            return fit_length(rows, context=model.context, max_length=settings.max_length, chat=chat).rows

        seen = {id_ for row in (*written.rows, *answers) for id_ in row.input_ids}
        size = model.model.config.get_text_config().vocab_size
        return LookAhead(
            resistance,
            fitting(answers),
            fitting(refusals),
            fitting(benign),
            seed=settings.seed,
            unseen=[id_ for id_ in range(size) if id_ not in seen],
        )


def _mined(p0: float, model: "ChatModel", triplets: "Sequence[Triplet]") -> "StartSampler":
    """The depths at which the model, as it is, starts a refusal least, weighted by what is missing there."""
    from fathom.deepen.starts import Mined
    from fathom.depth.recovery import recovery, refusal_set
    from fathom.scoring import ReferenceAnswer

    chosen = triplets[:MINED_TRIPLETS]
    items = [
        ReferenceAnswer(
            behavior=triplet.source,
            prompt_ids=model.chat.prompt_ids(triplet.messages),
            answer_ids=model.chat.response_ids(triplet.messages, triplet.answer),
        )
        for triplet in chosen
    ]
    references = [model.chat.response_ids(triplet.messages, triplet.refusal) for triplet in triplets]
    openings = refusal_set(model.chat, (), references, answers=[item.answer_ids for item in items])
    masses: dict[int, list[float]] = defaultdict(list)
    for record in recovery(model, items, openings, MINED_DEPTHS):
        for position, mass in zip(record.positions, record.refusal_mass, strict=True):
            masses[position].append(mass)
    missing = {depth: 1.0 - sum(found) / len(found) for depth, found in masses.items()}
    return Mined(missing, p0)
