"""What to load and how, and what of it cannot be, told before anything large is read."""

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from fathom.chat import PrefillAt
from fathom.errors import UserError

__all__ = ["DTYPES", "FormatChoice", "LoadOptions", "Quantisation", "check_options", "check_quantised"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FormatChoice(StrEnum):
    """How messages become ids."""

    CHAT = "chat"  # by the chat template
    PLAIN = "plain"  # as plain text, for base models


class Quantisation(StrEnum):
    """Weights in fewer bits, by bitsandbytes."""

    BITS_8 = "8bit"
    BITS_4 = "4bit"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What to load and how.

    `name` is a directory or a name on the Hugging Face hub; `dtype` is auto (as stored), float32, bfloat16 or float16;
    `device` is by default CUDA, else MPS, else CPU; `device_map` ("auto", …) spreads the model instead; `adapter` is a
    PEFT adapter's directory or hub name, which `merged` puts into the weights, to be trained; `quantisation` is a
    `Quantisation`, for weights that are stored in full; `chat_template` is a file of Jinja that replaces the model's
    own.
    """

    name: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    adapter: str | None = None
    merged: bool = False
    quantisation: str | None = None
    trust_remote_code: bool = False
    chat_template: Path | None = None
    format: FormatChoice = FormatChoice.CHAT
    system: str | None = None
    prefill_at: PrefillAt = PrefillAt.ANSWER


def check_options(options: LoadOptions) -> None:
    if options.dtype != "auto" and options.dtype not in DTYPES:
        raise UserError(f"unknown dtype {options.dtype!r}: give auto, {', '.join(DTYPES)}")
    if options.quantisation is not None and options.quantisation not in set(Quantisation):
        raise UserError(f"unknown quantisation {options.quantisation!r}: give {' or '.join(Quantisation)}")
    check_quantised(options, options.quantisation)
    if options.device is not None and options.device_map is not None:
        raise UserError("a device and a device map were both given: leave out one of them")
    if options.format is FormatChoice.PLAIN and options.chat_template is not None:
        raise UserError("a chat template and the plain format were both given: leave out one of them")
    for wanted, package, extra in (
        (options.quantisation, "bitsandbytes", "quantised"),
        (options.adapter, "peft", "peft"),
        (options.device_map, "accelerate", None),
    ):
        if wanted is not None and importlib.util.find_spec(package) is None:
            command = f"pip install 'fathom[{extra}]'" if extra else f"pip install {package}"
            raise UserError(f"{wanted} needs the package {package}, which is not installed: {command}")


def check_quantised(options: LoadOptions, found: str | None) -> None:
    """That weights in so many bits (None: full ones), by option or as they are stored, go with the other options.

    Raises:
        UserError: an adapter would have to be put into them, or they are to be quantised again.
    """
    if options.quantisation is not None and found != options.quantisation:
        raise UserError(
            f"{options.name} is stored quantised already ({found}), and --quantise {options.quantisation} is for full "
            "weights: leave it out"
        )
    if found is not None and options.adapter is not None and options.merged:
        raise UserError(
            f"--adapter {options.adapter} cannot be put into weights in {found}, which would round it away: merge it "
            "into the full weights first (PEFT's merge_and_unload, then save_pretrained), and give that model"
        )
