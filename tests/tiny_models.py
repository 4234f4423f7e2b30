"""Tiny random models of real architectures, large enough to be wrong in the ways in which architectures differ."""

from collections.abc import Mapping
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fathom.chat import ChatFormat
from fathom.model import ChatModel
from model_infos import model_info

VOCABULARY = 97
WINDOW = 8  # of sliding attention: shorter than any sequence under test

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}

FAMILIES: dict[str, Mapping[str, object]] = {
    "llama": _COMMON,
    "mistral": {**_COMMON, "sliding_window": WINDOW},
    "qwen3": {**_COMMON, "head_dim": 8},
    "gemma2": {**_COMMON, "head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        **_COMMON,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {**_COMMON, "sliding_window": WINDOW},
    "phi": _COMMON,  # a head with a bias
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3},
    "gpt_neox": _COMMON,
    "olmo2": _COMMON,
    "mixtral": {**_COMMON, "num_local_experts": 4, "sliding_window": WINDOW},
    "qwen3_moe": {**_COMMON, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "cohere": {**_COMMON, "logit_scale": 0.0625},
    "granite": {**_COMMON, "logits_scaling": 13.0},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},  # positions in the scores
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},  # no attention at all
}


def tiny(family: str = "llama", *, seed: int = 0, vocabulary: int = VOCABULARY, **changes: object) -> ChatModel:
    """A model in float32 and evaluation mode. It has no tokenizer: what it is given are ids."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], "vocab_size": vocabulary, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "lm_head.bias" in name:
            torch.nn.init.normal_(parameter)
    return wrap(model, vocabulary)


def wrap(model: torch.nn.Module, vocabulary: int = VOCABULARY, context: int | None = 256) -> ChatModel:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    info = model_info(
        name="tiny", architecture=type(model).__name__, parameters=parameters, vocabulary=vocabulary, context=context
    )
    return ChatModel(model=model, chat=cast(ChatFormat, None), info=info)


def random_ids(count: int, *, seed: int, vocabulary: int = VOCABULARY) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, vocabulary, (count,), generator=generator).tolist())
