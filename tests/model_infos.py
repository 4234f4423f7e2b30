"""What a model is, where a test needs no model: the fields that matter are given, the others are made up."""

import msgspec

from fathom.schema import ModelInfo

_INFO = ModelInfo(
    name="m",
    revision=None,
    adapter=None,
    architecture="LlamaForCausalLM",
    parameters=1,
    dtype="float32",
    quantisation=None,
    weights_hash="w",
    tokenizer_hash="t",
    template_hash=None,
    template_source="plain",
    vocabulary=500,
    context=None,
)


def model_info(**fields: object) -> ModelInfo:
    return msgspec.structs.replace(_INFO, **fields)
