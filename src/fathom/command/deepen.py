"""`fathom deepen`: recovery rows and an anchor, from files or from the organism, learned as they were drawn ahead."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.deepening import Deepening
from fathom.command.lora import default_rate
from fathom.command.outcome import Auditing, finish_card
from fathom.command.request import Judges, choice, keeps_parts
from fathom.command.sources import load_sources
from fathom.command.training import TrainingRequest, run_job, training_ranks
from fathom.command.worlds import world_asked
from fathom.errors import UserError

if TYPE_CHECKING:
    from fathom.deepen.adversary import Adversary
    from fathom.deepen.resist import Resistance
    from fathom.deepen.starts import StartSampler
    from fathom.tuning.settings import Settings

__all__ = ["DeepenRequest", "run_deepen"]

ORGANISM_RATE = 1e-3  # of its own deepened stage
ATTACKERS = (0.3, 3.0)  # the rates that are simulated, as multiples of deepening's own


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What deepening chooses where it was not asked for otherwise."""

    epochs: float
    p0: float
    alpha: float
    anchor: str
    drawn: int
    loosened: int
    adversary: float


# The paper has 10 epochs, p₀ 0.5, α 0.2 and greedy answers that are learned: the last tokens of answers are not covered
# on every model then, and benign answers are lost.
DEEPENING = Chosen(epochs=20.0, p0=0.2, alpha=0.3, anchor="kl", drawn=1, loosened=1, adversary=0.5)
# The paper's, as its figures were measured; resistance comes slower than depth, and moves what few prompts hold.
RESISTING = Chosen(epochs=50.0, p0=0.5, alpha=0.2, anchor="answers", drawn=0, loosened=4, adversary=0.0)


@dataclass(frozen=True, kw_only=True)
class DeepenRequest:
    """Deepening as it was asked for; what is None is the usual."""

    training: TrainingRequest
    triplets: Path | None = None
    utility: Path | None = None
    starts: str = "paper"
    p0: float | None = None
    longest: str = "100"  # tokens, or "full"
    alpha: float | None = None  # the share of the loss for safety
    share: str = "exact"
    recovery_rows: int = 16
    utility_rows: int = 64
    anchor: str | None = None  # "kl" or "answers"
    drawn: int | None = None  # answers that the model draws to each benign prompt without one, beside its greedy one
    adversary: float | None = None  # the weight of refusals behind vectors that undo them; 0: none
    resist: float = 0.0  # the weight of tamper resistance; 0: none
    loosened: int | None = None  # versions of each benign prompt with words left out, put in and swapped
    world: int | None = None  # of an organism that `fathom organism train` made

    @property
    def chosen(self) -> Chosen:
        """The usual, with what was asked for in its place. Where processes keep parts of weights, no adversary is."""
        usual = RESISTING if self.resist else DEEPENING
        if keeps_parts():
            usual = replace(usual, adversary=0.0)
        given = {field.name: getattr(self, field.name, None) for field in fields(usual)}
        return replace(usual, **{name: value for name, value in given.items() if value is not None})


def run_deepen(request: DeepenRequest, judges: Judges) -> Path:
    """Deepen, or go on with it; the directory of the model.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    from fathom.deepen.mixture import Anchor, Mixture, Share

    training, chosen = request.training, request.chosen
    mixture = Mixture(
        chosen.alpha,
        request.recovery_rows,
        request.utility_rows,
        choice(Share, "--share", request.share),
        choice(Anchor, "--anchor", chosen.anchor),
    )
    world = world_asked(training.model, None, request.world)
    sources = load_sources(training.model, request.triplets, request.utility, world)
    longest = _longest(request.longest)
    sampler = None if request.starts == "mined" else _sampler(request, longest)
    auditing = Auditing.of(training, judges, world)
    from fathom.tuning.settings import read_settings

    settings = read_settings(training.config, training.overrides)
    # The paper states betas and warm-up for section 4 alone; here they are TRL's defaults.
    settings = settings.with_defaults(num_train_epochs=chosen.epochs, adam_beta1=0.9, warmup_steps=0)
    built_in = training.model.is_organism or world is not None
    settings = default_rate(settings, training.lora, ORGANISM_RATE if built_in else None)
    settings = settings.with_batch(mixture.batch, most=mixture.batch)
    adversary, resistance = _adversary(chosen.adversary), _resistance(request, settings)
    job = Deepening(request, mixture, longest, sampler, sources, settings, adversary, resistance)
    with training_ranks(training.model.device) as ranks:
        directory = run_job(training, job, ranks, None if auditing is None else auditing.check)
        finish_card(directory, auditing, ranks)
    return directory.path


def _sampler(request: DeepenRequest, longest: int | None) -> "StartSampler":
    from fathom.deepen.starts import EveryPosition, Insertion, PaperStarts

    paper = PaperStarts(request.chosen.p0, longest)
    samplers: dict[str, StartSampler] = {
        "paper": paper,
        "every-position": EveryPosition(),
        "insertion": Insertion(otherwise=paper),
    }
    if request.starts not in samplers:
        raise UserError(f"--starts is {request.starts!r}; choose one of {', '.join((*samplers, 'mined'))}")
    return samplers[request.starts]


def _longest(text: str) -> int | None:
    if text == "full":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--longest is {text!r}: give a number of tokens, or full for each answer's own length")
    return int(text)


def _adversary(strength: float) -> "Adversary | None":
    from fathom.deepen.adversary import Adversary

    if strength and keeps_parts():
        raise UserError(
            f"--adversary {strength:g} adds to the gradients of whole weights, and FSDP or DeepSpeed keeps parts of "
            "them: train with DDP or one process, or leave it out"
        )
    return Adversary(strength=strength) if strength else None


def _resistance(request: DeepenRequest, settings: "Settings") -> "Resistance | None":
    if not request.resist:
        return None
    from fathom.deepen.resist import Attackers, Resistance

    rate = settings.values["learning_rate"]
    assert isinstance(rate, int | float)
    slowest, fastest = (rate * factor for factor in ATTACKERS)
    return Resistance(attackers=Attackers(slowest=slowest, fastest=fastest), strength=request.resist)
