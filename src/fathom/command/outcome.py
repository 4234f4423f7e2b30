"""What a training came to: audits of the model before and after, and the model card that tells them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fathom.command.request import ORGANISM, Judges
from fathom.command.training import TrainingRequest, say
from fathom.journal import write_whole
from fathom.schema import Audit

if TYPE_CHECKING:
    from fathom.tuning.directory import TuningDirectory

__all__ = ["Audits", "audit_both", "finish_card"]

AUDITED = 60  # requests of the audit before and after


@dataclass(frozen=True)
class Audits:
    """What was measured before and after."""

    before: Audit
    after: Audit
    world: int | None = None  # of the organism's requests; None: the shipped one

    def summary(self) -> str:
        """The direct request, the worst depth and the control, before and after, on one line."""
        from fathom.report.wording import curves
        from fathom.tally import percent

        parts = []
        for audit in (self.before, self.after):
            rows, benign = curves(audit)[0].rows, audit.benign.rows[0]
            worst = max(rows, key=lambda row: row.asr)
            shares = (rows[0].harmful, rows[0].n), (worst.harmful, worst.n), (benign.helped, benign.n)
            parts.append([percent(count, of) for count, of in shares])
        names = ("ASR asked directly", "ASR at the worst depth", "benign requests answered")
        return ", ".join(f"{name} {old} → {new}" for name, old, new in zip(names, *parts, strict=True))


def finish_card(
    request: TrainingRequest,
    directory: "TuningDirectory",
    judges: Judges,
    *,
    audited: bool,
    several: bool,
    world: int | None = None,
) -> None:
    """Audit before and after, where asked for and one process is left to do it, and write the model card."""
    from fathom.command.card import model_card
    from fathom.tuning.checkpoints import read_losses

    if several and audited:
        say("several processes have ended together; run the same command with one for the audit before and after")
    audits = audit_both(request, directory, judges, world) if audited and not several else None
    written = directory.read_plan()
    assert written is not None
    card = model_card(directory.manifest, written.plan, read_losses(directory.inner), audits)
    write_whole(directory.path / "README.md", card.encode())


def audit_both(
    request: TrainingRequest, directory: "TuningDirectory", judges: Judges, world: int | None = None
) -> Audits | None:
    """Audits of the model before and of what came of it, each in a run directory of its own.

    Both are asked the requests of one world of the organism's, by default the shipped one.
    """
    from fathom.command.audit import AuditRequest, run_audit

    found = []
    say(f"auditing the model before and after, {AUDITED} harmful requests each; --no-audit leaves that out")
    before = request.model
    # What was trained beside quantised weights is in full ones now, as its products were computed.
    after = replace(before, name=str(directory.path), adapter=None, revision=None, quantisation=None)
    for name, model in (("before", before), ("after", after)):
        result = run_audit(
            AuditRequest(
                model=model,
                base="none",
                behaviors=ORGANISM,
                world=world,
                limit=AUDITED,
                output=directory.inner / f"audit-{name}",
            ),
            judges,
        )
        if result is None:
            return None
        found.append(result.audit)
    audits = Audits(found[0], found[1], world)
    say(f"{audits.summary()}; more in {directory.path / 'README.md'}")
    return audits
