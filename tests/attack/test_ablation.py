"""A direction ablated by hooks is a direction that no weight writes: against a twin with orthogonal weights."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fathom.attack.ablation import ablated, decoder_layers, without
from fathom.chat import ChatFormat
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Sampling
from tiny_models import FAMILIES, random_ids, tiny

# Where each family's weights write to the residual stream.
WRITERS = {
    "llama": ("o_proj", "down_proj"),
    "mistral": ("o_proj", "down_proj"),
    "qwen3": ("o_proj", "down_proj"),
    "phi3": ("o_proj", "down_proj"),
    "gpt2": ("c_proj",),
    "gpt_neox": ("dense", "dense_4h_to_h"),
    "mixtral": ("o_proj", "down_proj", "w2"),
}


def orthogonal_twin(model: nn.Module, direction: Tensor, family: str) -> nn.Module:
    """A copy whose embeddings and output projections have nothing along the direction."""
    twin = copy.deepcopy(model)
    unit = direction / direction.norm()
    with torch.no_grad():
        for name, module in twin.named_modules():
            last = name.rsplit(".", 1)[-1]
            if isinstance(module, nn.Embedding):
                module.weight -= (module.weight @ unit)[:, None] * unit
            elif last in WRITERS[family] and hasattr(module, "weight"):
                weight = module.weight
                if type(module).__name__ == "Conv1D":  # stored input x output
                    weight -= (weight @ unit)[:, None] * unit
                else:
                    weight -= unit[:, None] * (unit @ weight)
                if getattr(module, "bias", None) is not None:
                    module.bias -= (module.bias @ unit) * unit
        for name, parameter in twin.named_parameters():
            if name.endswith("experts.down_proj"):  # experts x hidden x inner
                parameter.sub_(torch.einsum("h,ei->ehi", unit, torch.einsum("h,ehi->ei", unit, parameter)))
    return twin


@torch.inference_mode()
@pytest.mark.parametrize("family", sorted(WRITERS))
def test_hooks_equal_orthogonal_weights(family: str) -> None:
    model = tiny(family, tie_word_embeddings=False).model
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    ids = torch.tensor([random_ids(20, seed=1)])
    expected = orthogonal_twin(model, direction, family)(ids).logits
    before = model(ids).logits
    with ablated(model, direction):
        found = model(ids).logits
    assert torch.allclose(found, expected, atol=2e-4)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(model(ids).logits, before)  # and afterwards it is as it was


@torch.inference_mode()
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mamba"}))
def test_no_layer_of_any_architecture_passes_the_direction_on(family: str) -> None:
    model = tiny(family).model
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    unit = direction / direction.norm()
    seen: list[Tensor] = []
    layers = decoder_layers(model)
    assert len(layers) == 2
    with ablated(model, direction):
        for layer in layers:  # registered later, so they see what the ablation made of it
            layer.register_forward_hook(lambda _m, _g, out: seen.append(out[0] if isinstance(out, tuple) else out))
        model(torch.tensor([random_ids(12, seed=1)]))
    assert len(seen) == 2
    assert float((seen[-1] @ unit).abs().max()) < 1e-4 * float(seen[-1].abs().max())


class Words(ChatFormat):
    def __init__(self) -> None:
        super().__init__(tokenizer=None, template=None, source="plain", stop_ids=frozenset({3}))  # type: ignore[arg-type]

    def continuation(self, prefill_ids, output_ids):  # type: ignore[no-untyped-def]
        from fathom.chat import Continuation

        return Continuation("", "", tuple(0 for _ in output_ids))


def attempts() -> Iterator[Attempt]:
    for i in range(3):
        answer = random_ids(12, seed=20 + i)
        for depth in (0, 4, 12):
            for temperature in (0.0, 1.0):
                yield Attempt.make(
                    behavior=str(i),
                    attack="a",
                    prompt_ids=random_ids(9 + i, seed=i),
                    prefill_ids=answer[:depth],
                    sampling=Sampling(max_new_tokens=10, temperature=temperature),
                    run_seed=1,
                )


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_the_engine_runs_with_hooks_as_its_twin_without(family: str) -> None:
    """The shared way (and for bloom the slow one) gives what the orthogonal twin gives, token for token."""
    chat_model = dataclasses.replace(tiny(family, tie_word_embeddings=False), chat=Words())
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    WRITERS.setdefault("bloom", ("dense", "dense_4h_to_h"))
    if family == "bloom":  # a norm stands behind its embeddings: the twin is the hooked model, one row at a time
        with ablated(chat_model.model, direction):
            expected = {one.id: next(iter(TransformersEngine(chat_model).complete([one]))) for one in attempts()}
    else:
        twin: ChatModel = dataclasses.replace(
            chat_model,
            model=orthogonal_twin(chat_model.model, direction, family),  # type: ignore[arg-type]
        )
        expected = {done.attempt: done for done in TransformersEngine(twin).complete(list(attempts()))}
    complaints: list[str] = []
    with ablated(chat_model.model, direction):
        engine = TransformersEngine(chat_model, notify=complaints.append)
        found = {done.attempt: done for done in engine.complete(list(attempts()))}
    assert found == expected
    assert bool(complaints) == (family == "bloom")


def test_without_takes_out_the_direction_alone() -> None:
    stream, direction = torch.randn(5, 7, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    unit = direction / direction.norm()
    left = without(stream, unit)
    assert torch.allclose(left @ unit, torch.zeros(5, 7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(left + (stream @ unit)[..., None] * unit, stream)


def test_a_model_without_layers_is_one_clear_line() -> None:
    model = tiny("llama").model
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="no list of 7 decoder layers"):
        decoder_layers(model)
