"""What a training came to: audits of the model before and after, and the model card that tells them."""

import gc
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.audit import AuditRequest, check_audit, run_audit
from fathom.command.directory import Made, made_by, own_audits
from fathom.command.request import ORGANISM, Judges, ModelRequest, keeps_parts
from fathom.command.training import TrainingRequest, say
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.ranks import ALONE, Ranks
from fathom.run import Run
from fathom.schema import Audit

if TYPE_CHECKING:
    from fathom.model import ChatModel
    from fathom.tuning.directory import TuningDirectory

__all__ = ["Auditing", "Audits", "complete_card", "finish_card"]

AUDITED = 60  # of the organism's requests in the audit before and after
NO_BASE = "none"


@dataclass(frozen=True)
class Audits:
    """What was measured before and after."""

    before: Audit
    after: Audit
    world: int | None = None  # of the organism's requests; None: the shipped one, or a file's

    def summary(self) -> str:
        """The direct request, the worst depth and the control, before and after, on one line."""
        from fathom.report.wording import curves, rated, rated_row

        parts = []
        for audit in (self.before, self.after):
            rows = curves(audit)[0].rows
            shares = [rated_row(rows[0]), rated_row(max(rows, key=lambda row: row.asr))]
            if audit.benign.rows:
                benign = audit.benign.rows[0]
                helped = benign.helped_low, benign.helped_high, benign.undecided
                shares.append(rated(benign.helped, benign.n, *helped))
            parts.append(shares)
        names = ("ASR asked directly", "ASR at the worst depth", "benign requests answered")
        return "; ".join(f"{name} {old} → {new}" for name, old, new in zip(names, *parts, strict=False))


@dataclass(frozen=True)
class Auditing:
    """Audits that are to be made of a model before and after: what both are asked, and by which judges."""

    asked: AuditRequest  # of the model before
    judges: Judges

    @classmethod
    def of(cls, request: TrainingRequest, judges: Judges, world: int | None = None) -> "Auditing | None":
        """What was asked for, checked as far as it can be without the model; None where there is to be no audit.

        `world` is that of a model that is an organism under another name.

        Raises:
            UserError: there are no requests to audit with, or what was given cannot be used.
        """
        asked = request.audits or AuditRequest(model=request.model)
        if request.audit is False:
            return None
        if asked.behaviors in (None, ORGANISM):
            asked = replace(asked, world=world)
        if asked.behaviors is None and not request.model.is_organism:
            if not request.audit:
                _check_unused(asked)
                return None
            if world is None:
                raise UserError(
                    f"an audit needs requests to ask {request.model.name}, and fathom ships none for it: give "
                    "--behaviors FILE"
                )
        found = cls(_completed(asked), judges)
        check_audit(found.asked, judges)
        return found

    @property
    def compared(self) -> bool:
        """Whether the audits have a base."""
        return self.asked.base != NO_BASE

    def check(self, model: "ChatModel") -> None:
        """Raises `UserError` where the requests or depths do not fit the model: before it is trained."""
        check_audit(self.asked, self.judges, model)

    def command(self, path: Path) -> str:
        """What makes the same audits, and completes the card, of a model that lies at `path`."""
        asked = self.asked
        given: dict[str, object] = {
            "--behaviors": None if asked.behaviors == ORGANISM else asked.behaviors,
            "--world": asked.world,
            "--limit": None if asked.behaviors == ORGANISM and asked.limit == AUDITED else asked.limit,
            "--depths": asked.depths,
            "--max-new-tokens": asked.max_new_tokens,
            "--judge": asked.judge,
            "--base": asked.base if self.compared else None,
        }
        options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        return shlex.join(["fathom", "card", str(path), *options])


def _completed(asked: AuditRequest) -> AuditRequest:
    """With what is meant where nothing was said: no base, and a part of the organism's own requests."""
    asked = replace(asked, base=asked.base or NO_BASE, behaviors=asked.behaviors or ORGANISM)
    return replace(asked, limit=asked.limit or AUDITED) if asked.behaviors == ORGANISM else asked


def _check_unused(asked: AuditRequest) -> None:
    """Raises `UserError` for what only an audit would read, where there is none."""
    given = {
        "--limit": asked.limit,
        "--depths": asked.depths,
        "--max-new-tokens": asked.max_new_tokens,
        "--judge": asked.judge,
        "--base": asked.base,
    }
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} {value} without --behaviors: nothing is audited; give --behaviors FILE, too")


def finish_card(directory: "TuningDirectory", auditing: Auditing | None, ranks: Ranks = ALONE) -> None:
    """Audit before and after, where that is asked for, and write the model card: the first process alone.

    Processes that each hold a whole model share the audits. Those of FSDP and DeepSpeed cannot: whatever they load is
    put into parts; they say what makes the audits afterwards.
    """
    if ranks.first:
        # Whoever is stopped while auditing has a card that says so.
        _write_card(directory, _read_audits(directory, auditing))
    if auditing is None:
        return
    if keeps_parts():
        if ranks.first and len(own_audits(directory.path)) < 2:
            made = auditing.command(directory.path)
            say(f"processes that keep parts of a model make no audits before and after; afterwards, with one: {made}")
        return
    audits = _audit_both(directory, auditing, ranks)
    if audits is not None:
        _write_card(directory, audits)
        say(f"{audits.summary()}; more in {directory.path / 'README.md'}")


def _write_card(directory: "TuningDirectory", audits: Audits | None) -> None:
    from fathom.command.card import model_card
    from fathom.tuning.checkpoints import read_losses

    written = directory.read_plan()
    assert written is not None
    card = model_card(directory.manifest, written.plan, read_losses(directory.inner), audits)
    write_whole(directory.path / "README.md", card.encode())


def _read_audits(directory: "TuningDirectory", auditing: Auditing | None) -> Audits | None:
    """Those that were made before, if both were."""
    runs = own_audits(directory.path)
    if len(runs) < 2:
        return None
    before, after = (Run.open(run).audit for run in runs)
    return Audits(before, after, None if auditing is None else auditing.asked.world)


def _audit_both(directory: "TuningDirectory", auditing: Auditing, ranks: Ranks) -> Audits | None:
    """Audits of the model before and of what came of it, each in a run directory of its own; one that is there stays.

    None in processes other than the first.
    """
    asked = auditing.asked
    harmful = "all" if asked.limit is None else f"at most {asked.limit}"
    say(f"auditing the model before and after, {harmful} harmful requests each; --no-audit leaves that out", ranks)
    gc.collect()  # a trainer holds itself in a circle, and its model and optimiser are as large as what is loaded now
    found = []
    for name, model in (("before", asked.model), ("after", _after(asked.model, directory.path))):
        result = run_audit(
            replace(asked, model=model, output=directory.inner / f"audit-{name}"), auditing.judges, joined=ranks
        )
        if result is not None:
            found.append(result.audit)
    return Audits(found[0], found[1], asked.world) if ranks.first else None


def _after(before: ModelRequest, path: Path) -> ModelRequest:
    """What was trained, loaded as the model before it was, on the same device.

    What was trained beside quantised weights is in full ones now, as its products were computed.
    """
    device = "cpu" if before.is_organism and before.quantisation is None else None
    return replace(
        before, name=str(path), adapter=None, revision=None, quantisation=None, device=before.device or device
    )


def complete_card(path: Path, asked: AuditRequest, judges: Judges) -> Path:
    """Make the audits that the card of a trained model lacks, or go on with them; the card.

    Of `asked.model` only where and how it is loaded is read: which one it was, its directory knows.

    Raises:
        UserError: the directory holds no trained model, or there is nothing to ask it.
    """
    from fathom.tuning.directory import TuningDirectory

    directory = TuningDirectory(path)
    if made_by(path) is not Made.TRAINING:
        raise UserError(f"{path} is no model that `fathom finetune` or `fathom deepen` made")
    verb = directory.manifest.verb
    if not directory.finished:
        raise UserError(f"{path} is not finished; run the same `fathom {verb}` command again")
    before = _before(directory, asked.model)
    whole = len(own_audits(path)) == 2 and asked.behaviors is None
    training = TrainingRequest(
        verb=verb, model=before, output=path, audit=not whole, audits=replace(asked, model=before)
    )
    finish_card(directory, Auditing.of(training, judges, asked.world))
    return directory.path / "README.md"


def _before(directory: "TuningDirectory", given: ModelRequest) -> ModelRequest:
    """The model that a directory was trained from, asked as it was for training; `given` says where it is loaded."""
    info, configuration = directory.manifest.model, directory.manifest.configuration
    usual = ModelRequest(name=info.name)
    own = info.template_source in ("model", "plain")
    system, prefill_at = configuration.get("system"), configuration.get("prefill_at", usual.prefill_at)
    return replace(
        given,
        name=info.name,
        revision=info.revision,
        adapter=info.adapter,
        dtype=info.dtype,
        quantisation=info.quantisation if info.quantisation in ("4bit", "8bit") else None,
        plain=info.template_source == "plain",
        chat_template=None if own else directory.path / "chat_template.jinja",
        system=None if system is None else str(system),
        prefill_at=str(prefill_at),
    )
