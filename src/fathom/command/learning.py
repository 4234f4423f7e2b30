"""What a sweep's objectives make of an attack's rows: the start is asked about them, and a sentinel is trained."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.sides import Sides
from fathom.command.training import say
from fathom.progress import Display
from fathom.records import Judge

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.stress.plan import Attack, Learnt
    from fathom.stress.sentinel import Sentinel
    from fathom.tuning.adapter import Adapter

__all__ = ["Learner"]


@dataclass(frozen=True, eq=False)
class Learner:
    """Asks the start what an objective wants to know of an attack's rows, and keeps a sentinel."""

    model: "ChatModel"
    parts: Sides
    reader: Judge
    kept: Path
    display: Display
    organism: bool  # its behaviors are; their answers are of all kinds
    adapter: "Adapter | None"  # what a sentinel is, instead of a copy of the model
    _sentinel: "list[Sentinel]" = field(default_factory=list)

    def __call__(self, attack: "Attack", objective: str) -> "Learnt":
        from fathom.protect.objectives import parse_objective
        from fathom.protect.prepare import Requests, prepare
        from fathom.protect.weights import Anchor
        from fathom.stress.plan import Learnt

        chosen = parse_objective(objective)
        wanted = Requests(
            harmful=tuple(behavior.messages for behavior in self.parts.defender if behavior.harmful)[:128],
            benign=tuple(behavior.messages for behavior in self.parts.defender if not behavior.harmful)[:128],
        )
        sentinel = self._guard() if chosen.answers is not None else None
        prepared = prepare(
            chosen,
            self.model,
            attack.rows,
            attack.prompts,
            self.reader,
            wanted,
            sentinel=sentinel,
            display=self.display,
        )
        if chosen.gate is not None or chosen.answers is not None:
            say(f"{attack.kind.label}, {objective}: {prepared.gated} of {len(attack.rows)} rows held")
        proximal = chosen.proximal
        return Learnt(
            prepared.rows,
            prepared.per_token,
            None if proximal is None else lambda: Anchor(proximal),
            gated=prepared.gated,
            calm=prepared.calm,
        )

    def _guard(self) -> "Sentinel":
        if not self._sentinel:
            from fathom.protect.sentinel import Told
            from fathom.stress.sentinel import train_sentinel, with_own

            harmful, benign = (
                [
                    Told(behavior.messages, behavior.answer, behavior.refusal)
                    for behavior in self.parts.defender
                    if behavior.answer is not None and behavior.harmful is kind
                ]
                for kind in (True, False)
            )
            if not self.organism:
                benign = with_own(self.model, self.reader, benign, display=self.display)
            found = train_sentinel(
                self.model, harmful, benign, adapter=self.adapter, kept=self.kept, display=self.display
            )
            self._sentinel.append(found)
        return self._sentinel[0]
