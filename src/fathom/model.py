"""A causal language model loaded with its tokenizer and chat format, and exactly which one it is.

What can go wrong with a name, a directory or an option is a `UserError` of one line; transformers' own warnings and
bars are silenced while it loads.
"""

import importlib.util
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fathom.chat import ChatFormat, PrefillAt
from fathom.checkpoint import check_source, is_local, one_line, place, quiet
from fathom.errors import UserError
from fathom.identity import describe, identify, vocabulary_size
from fathom.records import Message
from fathom.schema import ModelInfo

__all__ = ["ChatModel", "FormatChoice", "LoadOptions", "Quantisation", "check_pair", "load", "load_chat", "load_info"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "tekken.json", "*.tiktoken", "tokenization_*.py")
# What transformers, the hub's client and the file formats raise for files that are not what they should be.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
    hub_errors.StrictDataclassError,
)


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
    PEFT adapter's directory or hub name; `quantisation` is a `Quantisation`; `chat_template` is a file of Jinja that
    replaces the model's own.
    """

    name: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    adapter: str | None = None
    quantisation: str | None = None
    trust_remote_code: bool = False
    chat_template: Path | None = None
    format: FormatChoice = FormatChoice.CHAT
    system: str | None = None
    prefill_at: PrefillAt = PrefillAt.ANSWER


@dataclass(frozen=True, eq=False)
class ChatModel:
    """A model in evaluation mode, the format that makes its ids, and what it is."""

    model: PreTrainedModel
    chat: ChatFormat
    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where input ids go."""
        embeddings: torch.nn.Module = self.model.get_input_embeddings()
        return next(embeddings.parameters()).device

    @property
    def context(self) -> int | None:
        """The longest input in tokens, where the configuration states one."""
        return self.info.context

    @property
    def vocabulary(self) -> int:
        """How many ids the model knows, embedding padding included."""
        return self.info.vocabulary


def load(options: LoadOptions) -> ChatModel:
    """The model, its tokenizer and its chat format, in evaluation mode on one device (or spread by `device_map`).

    Raises:
        UserError: the name, its files, the adapter, the template or an option cannot be used.
    """
    _check_options(options)
    device = _device(options)
    with quiet():
        chat = _load_format(options)
        model = _load_weights(options)
        if options.adapter is not None:
            model = _with_adapter(model, options.adapter)
        if options.device_map is None and options.quantisation is None:
            _move(model, device, options)
    model.train(False)
    _check_sizes(options, model, chat.tokenizer)
    chat = replace(chat, stop_ids=chat.stop_ids | _configured_stops(model.generation_config))
    return ChatModel(model=model, chat=chat, info=_info(options, model, chat))


def load_chat(options: LoadOptions) -> ChatFormat:
    """The chat format alone, without loading weights; its `stop_ids` are those of `load`.

    Raises:
        UserError: as `load`, but for weights and device.
    """
    _check_options(options)
    with quiet():
        chat = _load_format(options)
        try:
            generation = GenerationConfig.from_pretrained(place(options.name), revision=options.revision or "main")
        except _LOADING_ERRORS:  # models without the file stop at the tokenizer's end of text
            return chat
    return replace(chat, stop_ids=chat.stop_ids | _configured_stops(generation))


def load_info(options: LoadOptions, chat: ChatFormat) -> ModelInfo:
    """What the configuration says of a model whose weights are elsewhere.

    Raises:
        UserError: the configuration cannot be read.
    """
    with quiet():
        return describe(_load_config(options), chat, name=options.name, revision=options.revision)


def check_pair(model: ChatModel, base: ChatModel) -> None:
    """Two models whose next-token distributions are compared must mean the same by every id.

    Ids that only one of the tokenizers has, and padding of the embeddings, may differ.

    Raises:
        UserError: an id stands for different tokens; the first one is named.
    """
    ours, theirs = ({id_: token for token, id_ in pair.chat.tokenizer.get_vocab().items()} for pair in (model, base))
    for id_ in sorted(ours.keys() & theirs.keys()):
        if ours[id_] != theirs[id_]:
            raise UserError(
                f"{model.info.name} and {base.info.name} have different vocabularies: token {id_} is {ours[id_]!r} in "
                f"one and {theirs[id_]!r} in the other; give the base that the model was trained from"
            )
    if not ours.keys() & theirs.keys():
        raise UserError(f"{model.info.name} and {base.info.name} share no token id; give a base of the same family")


# --- what was asked for ---


def _check_options(options: LoadOptions) -> None:
    if options.dtype != "auto" and options.dtype not in _DTYPES:
        raise UserError(f"unknown dtype {options.dtype!r}: give auto, {', '.join(_DTYPES)}")
    if options.quantisation is not None and options.quantisation not in set(Quantisation):
        raise UserError(f"unknown quantisation {options.quantisation!r}: give {' or '.join(Quantisation)}")
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


# --- the parts ---


def _common(options: LoadOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def _unusable(options: LoadOptions, what: str, error: BaseException) -> UserError:
    """The error for a part of a model that cannot be loaded."""
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{options.name} comes with Python code of its own: read it, and give --trust-remote-code to run it"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"{options.name} does not fit into memory: try --dtype bfloat16, --device-map auto or --device"
        )
    if "not recognize this architecture" in text:
        text = "this version of transformers does not know its model_type; try pip install --upgrade transformers"
    elif "load report" in text or "mismatched" in text:
        text = "shapes differ from those of config.json; fetch or save it again"
    else:
        text = f"{one_line(text)}; fetch or save it again"
    return UserError(f"{what} of {options.name} cannot be used: {text}")


def _load_config(options: LoadOptions) -> Any:
    try:
        return AutoConfig.from_pretrained(place(options.name), **_common(options))
    except _LOADING_ERRORS as error:
        raise _unusable(options, "config.json", error) from error


def _check_causal(options: LoadOptions, config: Any) -> None:
    """Whether the weights were saved with a head that predicts the next token."""
    kinds = set(config.architectures or ())
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if options.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (not kinds or bool(kinds & known))
    if not causal or masked or getattr(config, "is_encoder_decoder", False):
        kind = ", ".join(sorted(kinds)) or config.model_type
        raise UserError(f"{options.name} is not a causal language model ({kind}): give one that continues text")


def _load_format(options: LoadOptions) -> ChatFormat:
    """The chat format; it stops at the end of text and at the template's end of turn."""
    check_source(options.name, options.revision)
    config = _load_config(options)
    _check_causal(options, config)
    tokenizer = _load_tokenizer(options)
    template, source = _template(options, tokenizer)
    chat = ChatFormat(tokenizer, template, source, frozenset(), options.system, options.prefill_at)
    stops = {tokenizer.eos_token_id} - {None}
    try:
        end = chat.end_ids([Message(role="user", content="Hello")])
    except UserError:  # a template that refuses this conversation says so when it is given the user's own
        end = ()
    if end and end[0] in chat.special_ids:
        stops.add(end[0])
    return replace(chat, stop_ids=frozenset(stops))


def _load_tokenizer(options: LoadOptions) -> PreTrainedTokenizerBase:
    directory = Path(place(options.name))
    # Without files, some classes make a tokenizer of special tokens alone.
    if is_local(options.name) and not any(any(directory.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(f"{options.name} has no tokenizer files: copy them (tokenizer.json) into the directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place(options.name), **_common(options))
    except _LOADING_ERRORS as error:
        raise _unusable(options, "the tokenizer", error) from error
    except Exception as error:  # the Rust library raises a bare Exception
        if type(error) is not Exception:
            raise
        raise _unusable(options, "the tokenizer", error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or len(tokenizer) == len(tokenizer.all_special_ids):
        raise UserError(f"the tokenizer of {options.name} has no tokens: copy its files into the directory")
    return tokenizer


def _template(options: LoadOptions, tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str]:
    """The chat template and where it comes from."""
    if options.format is FormatChoice.PLAIN:
        return None, "plain"
    if options.chat_template is not None:
        return _template_file(options.chat_template), options.chat_template.name
    try:
        return tokenizer.get_chat_template(), "model"
    except ValueError as error:
        raise UserError(
            f"{options.name} has no chat template: give one with --chat-template FILE, "
            "or --plain for a base model that reads plain text"
        ) from error


def _template_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template {path} cannot be read: {one_line(error)}") from error
    if not text.strip():
        raise UserError(f"the chat template {path} is empty: give a file of Jinja")
    return text


def _quantisation(kind: str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    bits = {"load_in_8bit": True} if Quantisation(kind) is Quantisation.BITS_8 else {"load_in_4bit": True}
    return {"quantization_config": transformers.BitsAndBytesConfig(**bits)}  # type: ignore[no-untyped-call]


def _load_weights(options: LoadOptions) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM  # its annotations forget output_loading_info
    try:
        model, found = loader.from_pretrained(
            place(options.name),
            dtype=_DTYPES.get(options.dtype, "auto"),
            device_map=options.device_map,
            output_loading_info=True,
            **_quantisation(options.quantisation),
            **_common(options),
        )
    except _LOADING_ERRORS as error:
        raise _unusable(options, "the weights", error) from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"the weights of {options.name} lack {len(missing)} of the model's tensors ({missing[0]}, …), which would "
            "be random: fetch or save it again"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a PEFT adapter's layers in place, not merged: merging rounds in half precision."""
    import peft

    if is_local(adapter) and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
        raise UserError(f"{adapter} has no adapter_config.json: give the directory of a PEFT adapter")
    try:
        wrapped = peft.PeftModel.from_pretrained(model, place(adapter))
    except (*_LOADING_ERRORS, hub_errors.HfHubHTTPError) as error:
        raise UserError(
            f"the adapter {adapter} does not fit this model or cannot be read: {one_line(error)}"
        ) from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise UserError(f"the adapter {adapter} learns prompts, which would shift the ids: only weights are supported")
    base = wrapped.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base


def _device(options: LoadOptions) -> torch.device:
    """The device asked for, or the first there is; tried before anything large is read."""
    name = options.device
    if name is None:
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"the device {name!r} cannot be used: {one_line(error, 80)}; try --device cpu") from error


def _move(model: PreTrainedModel, device: torch.device, options: LoadOptions) -> None:
    try:
        model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise _unusable(options, "the weights", error) from error


def _check_sizes(options: LoadOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = vocabulary_size(model)
    # Added tokens may lie beyond the embeddings (Gemma 3 reserves one for images); text never makes those.
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer of {options.name} has {tokenizer.vocab_size} tokens, but the model knows {rows}: "
            "it belongs to another model"
        )


def _configured_stops(generation: Any) -> frozenset[int]:
    """The ids that end generation as it is configured: one, several or none."""
    configured = getattr(generation, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(id_ for id_ in ids if id_ is not None)


def _info(options: LoadOptions, model: PreTrainedModel, chat: ChatFormat) -> ModelInfo:
    return identify(
        model,
        chat,
        name=options.name,
        revision=options.revision,
        adapter=options.adapter,
        quantisation=options.quantisation,
    )
