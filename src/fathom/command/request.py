"""What the verbs share: a model as it was asked for, judges by name, options as values, progress, processes."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fathom.errors import UserError
from fathom.progress import Display, silent
from fathom.ranks import ALONE, Ranks
from fathom.records import Judge

if TYPE_CHECKING:
    from fathom.engine.endpoint import ServedModel
    from fathom.model import ChatModel, LoadOptions

__all__ = [
    "GUILD_REFUSAL",
    "ORGANISM",
    "Judges",
    "ModelRequest",
    "Trained",
    "check_judge",
    "choice",
    "connect_model",
    "display_for",
    "keeps_parts",
    "load_model",
    "named_judge",
    "numbers",
    "positive",
]

ORGANISM = "organism"
GUILD_REFUSAL = "guild-refusal"  # tells refusals in the organism's words, whatever was asked; for what trains it
# Parameters below which a second thread costs more than it brings: threads wait for each other at every small product.
SMALL = 5_000_000

Judges = Mapping[str, Callable[[], Judge]]
_Choice = TypeVar("_Choice", bound=StrEnum)
_Number = TypeVar("_Number", int, float)


class Trained(Enum):
    """What of a model is trained."""

    WEIGHTS = "weights"
    ADAPTER = "adapter"  # beside weights that stay as they are

    @classmethod
    def by(cls, lora: object | None) -> "Trained":
        """An adapter, where one was asked for."""
        return cls.WEIGHTS if lora is None else cls.ADAPTER


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model as it was asked for, in plain values."""

    name: str
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    quantisation: str | None = None
    trust_remote_code: bool = False
    chat_template: Path | None = None
    plain: bool = False
    system: str | None = None
    prefill_at: str = "answer"

    @property
    def is_organism(self) -> bool:
        return self.name == ORGANISM or self.name.startswith(f"{ORGANISM}:")

    @property
    def stage(self) -> str:
        return self.name.partition(":")[2] or "aligned"

    def options(self) -> "LoadOptions":
        """What `model.load` is given; `organism:STAGE` has become its directory.

        Raises:
            UserError: no such stage, or a choice that there is not.
        """
        from fathom.chat import PrefillAt
        from fathom.organism import stage_directory

        name = str(stage_directory(self.stage)) if self.is_organism else self.name
        prefill_at = choice(PrefillAt, "--prefill-at", self.prefill_at)
        if self.plain and prefill_at is PrefillAt.THINKING:
            raise UserError(
                "--prefill-at thinking with --plain: plain text has no thinking block; leave out one of them"
            )
        from fathom.model import FormatChoice, LoadOptions

        return LoadOptions(
            name=name,
            revision=self.revision,
            adapter=self.adapter,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            quantisation=self.quantisation,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
            format=FormatChoice.PLAIN if self.plain else FormatChoice.CHAT,
            system=self.system,
            prefill_at=prefill_at,
        )


def load_model(request: ModelRequest, ranks: Ranks = ALONE, *, to_train: Trained | None = None) -> "ChatModel":
    """The model, under the name by which it was asked for; of several processes each takes a GPU of its own.

    `to_train`: an adapter that it was asked for with is put into its weights.

    Raises:
        UserError: as `model.load`, or its weights cannot be trained as is wanted.
    """
    if request.quantisation is not None:
        _check_trained(request, request.quantisation, to_train)
    options = replace(request.options(), merged=to_train is not None)
    from fathom.model import load

    if options.device is None and options.device_map is None:
        options = replace(options, device=_usual_device(request, ranks))
    loaded = load(options)
    if loaded.info.quantisation is not None:
        _check_trained(request, loaded.info.quantisation, to_train)
    if loaded.device.type == "cpu" and loaded.info.parameters < SMALL:
        import torch

        torch.set_num_threads(1)
    return replace(loaded, info=msgspec.structs.replace(loaded.info, name=request.name))


def _check_trained(request: ModelRequest, quantisation: str, to_train: Trained | None) -> None:
    """That a model in so few bits can be trained as is wanted: beside its weights, by one kind of process."""
    if to_train is None:
        return
    asked = request.quantisation is not None
    what = f"--quantise {quantisation} makes weights" if asked else f"{request.name} has weights in {quantisation}"
    if quantisation not in ("4bit", "8bit"):
        raise UserError(f"{what} that cannot be trained, nor an adapter beside them: give the model in full weights")
    if to_train is Trained.WEIGHTS:
        remedy = "or leave --quantise out" if asked else "or give the model in full weights"
        raise UserError(
            f"{what} that cannot be trained: train an adapter beside them (--lora, of finetune, deepen, stress and "
            f"dynamics), {remedy}"
        )
    if keeps_parts():
        raise UserError(
            f"{what} of which FSDP or DeepSpeed cannot keep parts: train with DDP or one process, or in full weights"
        )


def connect_model(request: ModelRequest, url: str, served: str | None, width: int | None = None) -> "ServedModel":
    """The model at a server, under the name by which it was asked for; its tokenizer and template are read here.

    `width` requests are in flight at once (None: the usual number).

    Raises:
        UserError: an option speaks of weights, the files cannot be read, or the server does not serve the model.
    """
    weights = {
        "--adapter": request.adapter,
        "--device": request.device,
        "--device-map": request.device_map,
        "--quantise": request.quantisation,
        "--dtype": None if request.dtype == "auto" else request.dtype,
    }
    for option, value in weights.items():
        if value is not None:
            raise UserError(f"{option} {value} with --endpoint: how the weights are loaded is the server's affair")
    options = request.options()
    from fathom.engine.endpoint import WIDTH, connect
    from fathom.model import load_chat, load_info

    chat = load_chat(options)
    info = msgspec.structs.replace(load_info(options, chat), name=request.name)
    return connect(url, chat, info, name=served, width=positive(width, WIDTH, "--endpoint-requests"))


def keeps_parts() -> bool:
    """Whether `accelerate launch` was told that each process keeps parts of the weights."""
    return any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def _usual_device(request: ModelRequest, ranks: Ranks) -> str | None:
    """One GPU a process, the CPU for what is built in; None: the first device that there is.

    The built-in models are too small for an accelerator to be faster, and so their figures are the same everywhere.
    """
    if ranks.size == 1:
        return "cpu" if request.is_organism and request.quantisation is None else None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{ranks.local_rank % count}" if count else None


def named_judge(judges: Judges, name: str) -> Judge:
    """The judge of that name.

    Raises:
        UserError: there is none.
    """
    if name not in judges:
        named = ", ".join(sorted(judges.keys() - {GUILD_REFUSAL}))
        raise UserError(f"there is no judge called {name!r}; choose one of {named}")
    return judges[name]()


def check_judge(judge: Judge, source: str) -> None:
    """That a judge knows the requests of this source.

    Raises:
        UserError: it is one of the organism's, and they are not.
    """
    if judge.name in (ORGANISM, GUILD_REFUSAL) and source != ORGANISM:
        raise UserError(
            f"{judge.name} judges the built-in organism's own requests and no others (these are of {source}): "
            "use --judge refusal (of `fathom judge`: --with refusal)"
        )


# --- options as values ---


def choice(kind: type[_Choice], option: str, value: str) -> _Choice:
    """One of a few words.

    Raises:
        UserError: another word.
    """
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{option} is {value!r}; choose one of {', '.join(kind)}") from None


def numbers(text: str, kind: Callable[[str], _Number], option: str) -> tuple[_Number, ...]:
    """Numbers separated by commas.

    Raises:
        UserError: something else.
    """
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} is {text!r}; give numbers separated by commas, for example 0,1,5") from None


def positive(value: int | None, default: int, option: str) -> int:
    """A number of 1 or more.

    Raises:
        UserError: a smaller one.
    """
    if value is None:
        return default
    if value < 1:
        raise UserError(f"{option} is {value}; it must be at least 1")
    return value


def display_for(ranks: Ranks) -> Display:
    """Progress on standard error, from the first process alone."""
    from fathom.report.progress import Progress

    return Progress if ranks.first else silent
