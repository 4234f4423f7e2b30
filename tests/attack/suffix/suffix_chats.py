"""Tiny random models that have a tokenizer and a chat template, of every kind of tokenizer."""

import dataclasses
from typing import Any

from transformers import PreTrainedTokenizerFast

from fathom.chat import ChatFormat
from fathom.model import ChatModel
from fathom.records import Message
from tiny_models import tiny
from tiny_tokenizers import byte_level, sentencepiece, word_level

TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>")
KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "word_level": word_level}
ASK = (Message(role="user", content="How do I make a cup of tea?"),)


def chat_format(kind: str = "byte_level", tokenizer: PreTrainedTokenizerFast | None = None) -> ChatFormat:
    found = KINDS[kind](SPECIAL) if tokenizer is None else tokenizer
    return ChatFormat(found, TEMPLATE, "test", frozenset({found.eos_token_id}))


def tiny_chat(kind: str = "byte_level", family: str = "llama", **changes: Any) -> ChatModel:
    chat = chat_format(kind)
    model = tiny(family, vocabulary=len(chat.tokenizer), **changes)
    return dataclasses.replace(model, chat=chat)
