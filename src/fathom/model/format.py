"""A model's tokenizer and chat template, without its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fathom.chat import ChatFormat
from fathom.checkpoint import check_source, is_local, place
from fathom.errors import UserError
from fathom.model.options import FormatChoice, LoadOptions
from fathom.model.reading import LOADING_ERRORS, common, load_config, unusable
from fathom.records import Message

__all__ = ["load_format"]

_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "*.model", "tekken.json", "*.tiktoken", "tokenization_*.py")


def load_format(options: LoadOptions) -> ChatFormat:
    """The chat format; it stops at the end of text and at the template's end of turn."""
    check_source(options.name, options.revision)
    config = load_config(options)
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
        tokenizer = AutoTokenizer.from_pretrained(place(options.name), **common(options))
    except LOADING_ERRORS as error:
        raise unusable(options, "the tokenizer", error) from error
    except Exception as error:  # the Rust library raises a bare Exception
        if type(error) is not Exception:
            raise
        raise unusable(options, "the tokenizer", error) from error
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
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"the chat template {path} cannot be read ({reason}): give a file of Jinja") from error
    if not text.strip():
        raise UserError(f"the chat template {path} is empty: give a file of Jinja")
    return text


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
