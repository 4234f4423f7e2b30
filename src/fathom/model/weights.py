"""A model's weights, with an adapter where one was given, on their device."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from fathom.checkpoint import is_local, one_line, place
from fathom.errors import UserError
from fathom.identity import vocabulary_size
from fathom.model import quantised
from fathom.model.options import DTYPES, LoadOptions
from fathom.model.reading import LOADING_ERRORS, common, load_config, unusable

__all__ = ["check_sizes", "device_of", "load_weights", "move", "stored_weights", "with_adapter"]


def _placed(options: LoadOptions, device: torch.device) -> dict[str, Any]:
    """Where weights go, and in how many bits: quantised ones are made where they stay, and cannot be moved."""
    config = load_config(options)
    wanted, stored = options.quantisation, getattr(config, "quantization_config", None)
    found: dict[str, Any] = {"device_map": options.device_map}
    if options.device_map is None and (wanted is not None or stored is not None):
        found["device_map"] = {"": str(device)}
    if wanted is not None and stored is None:
        found["quantization_config"] = quantised.request(wanted, options.dtype, config)
    return found


def load_weights(options: LoadOptions, device: torch.device) -> PreTrainedModel:
    """The weights as they are stored, or quantised; those that are go to `device`, or where `device_map` says."""
    model = stored_weights(AutoModelForCausalLM, options, "the weights", **_placed(options, device))
    quantised.keep_as_stored(model)
    return model


def stored_weights(loader: Any, options: LoadOptions, what: str, **placed: Any) -> PreTrainedModel:
    """What one of transformers' automatic classes makes of the files, with every tensor that it has.

    Raises:
        UserError: they cannot be read (`what` names them), or lack some of the tensors.
    """
    try:
        model, found = loader.from_pretrained(
            place(options.name),
            dtype=DTYPES.get(options.dtype, "auto"),
            output_loading_info=True,
            **placed,
            **common(options),
        )
    except LOADING_ERRORS as error:
        raise unusable(options, what, error) from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"the weights of {options.name} lack {len(missing)} of the model's tensors ({missing[0]}, …), which would "
            "be random: fetch or save it again"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def with_adapter(model: PreTrainedModel, adapter: str, *, merged: bool = False) -> PreTrainedModel:
    """The model with a PEFT adapter's layers in place: not merged, which rounds in half precision.

    `merged`: put into the weights all the same, all of which may then be trained.
    """
    import peft

    if is_local(adapter) and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise UserError(f"{adapter} has no adapter_config.json: give the directory of a PEFT adapter")
    try:
        wrapped = peft.PeftModel.from_pretrained(model, place(adapter))
    except (*LOADING_ERRORS, hub_errors.HfHubHTTPError) as error:
        raise UserError(
            f"the adapter {adapter} does not fit this model or cannot be read: {one_line(error)}"
        ) from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise UserError(f"the adapter {adapter} learns prompts, which would shift the ids: only weights are supported")
    base = wrapped.merge_and_unload().requires_grad_(True) if merged else wrapped.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def device_of(options: LoadOptions) -> torch.device:
    """The device asked for, or the first there is; tried before anything large is read."""
    name = options.device
    if name is None:
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {name!r} cannot be used: {one_line(error, 80)}; try --device cpu") from error


def move(model: PreTrainedModel, device: torch.device, options: LoadOptions) -> None:
    try:
        model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise unusable(options, "the weights", error) from error


def check_sizes(options: LoadOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = vocabulary_size(model)
    # Added tokens may lie beyond the embeddings (Gemma 3 reserves one for images); text never makes those.
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer of {options.name} has {tokenizer.vocab_size} tokens, but the model knows {rows}: "
            "it belongs to another model"
        )
