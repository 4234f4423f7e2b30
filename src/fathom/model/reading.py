"""A model's files as transformers reads them, and its errors as one line."""

from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from transformers import AutoConfig

from fathom.checkpoint import one_line, place
from fathom.errors import UserError
from fathom.model.options import LoadOptions

__all__ = ["LOADING_ERRORS", "common", "load_config", "unusable"]

# What transformers, the hub's client and the file formats raise for files that are not what they should be.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    SafetensorError,
    hub_errors.StrictDataclassError,
)


def common(options: LoadOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def unusable(options: LoadOptions, what: str, error: BaseException) -> UserError:
    """The error for a part of a model that cannot be loaded."""
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{options.name} comes with Python code of its own: read it, and give --trust-remote-code to run it"
        )
    if isinstance(error, torch.OutOfMemoryError):
        fewer = "" if options.quantisation else "--quantise 4bit, "
        return UserError(
            f"{options.name} does not fit into memory: try --dtype bfloat16, {fewer}--device-map auto or --device"
        )
    if options.quantisation is not None and "bitsandbytes" in text:
        return UserError(f"--quantise {options.quantisation} is not possible here: {one_line(text)}")
    if options.device_map is not None and "device_map" in text:
        return UserError(f"the device map {options.device_map!r} cannot be used: give auto, balanced or sequential")
    if "not recognize this architecture" in text:
        text = "this version of transformers does not know its model_type; try pip install --upgrade transformers"
    elif "load report" in text or "mismatched" in text:
        text = "shapes differ from those of config.json; fetch or save it again"
    else:
        text = f"{one_line(text)}; fetch or save it again"
    return UserError(f"{what} of {options.name} cannot be used: {text}")


def load_config(options: LoadOptions) -> Any:
    try:
        return AutoConfig.from_pretrained(place(options.name), **common(options))
    except LOADING_ERRORS as error:
        raise unusable(options, "config.json", error) from error
