"""Models, attempts and the naive twin that the engine's tests share."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fathom.chat import ChatFormat, Continuation
from fathom.engine import TransformersEngine
from fathom.model import ChatModel
from fathom.records import Attempt, Completion, Finish, Sampling
from tiny_models import tiny

STOPS = frozenset({3, 5, 8, 13})


class IdsOnly(ChatFormat):
    """A chat format whose text is the ids in words."""

    special_tokens = ("<end>",)

    def __init__(self, stop_ids: Iterable[int] = STOPS) -> None:
        super().__init__(tokenizer=cast(PreTrainedTokenizerFast, None), template=None, source="plain",
                         stop_ids=frozenset(stop_ids))  # fmt: skip

    def tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split()))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def continuation(self, prefill_ids: Sequence[int], output_ids: Sequence[int]) -> Continuation:
        words = [f" {token}" for token in output_ids]
        ends = tuple(len("".join(words[: i + 1])) for i in range(len(words)))
        return Continuation(" ".join(map(str, prefill_ids)), "".join(words), ends)


def tiny_chat(family: str = "llama", *, stop_ids: Iterable[int] = STOPS, **changes: Any) -> ChatModel:
    return dataclasses.replace(tiny(family, **changes), chat=IdsOnly(stop_ids))


def byte_tokenizer(special: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens that a template writes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[-1])


def family_template(name: str) -> str:
    """A family's chat template as the installed TRL ships it."""
    trl = pytest.importorskip("trl", reason="the templates of model families come with TRL")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def attempt(
    prompt: Sequence[int], prefill: Sequence[int] = (), *, behavior: str = "b", sample: int = 0, **sampling: float
) -> Attempt:
    return Attempt.make(
        behavior=behavior,
        attack="prefill",
        prompt_ids=prompt,
        prefill_ids=prefill,
        sampling=Sampling(**{"max_new_tokens": 12, **sampling}),  # type: ignore[arg-type]
        run_seed=7,
        sample=sample,
    )


def completed(model: ChatModel, attempts: Sequence[Attempt], **options: object) -> dict[str, Completion]:
    done = list(TransformersEngine(model, **options).complete(attempts))  # type: ignore[arg-type]
    assert len({completion.attempt for completion in done}) == len(done), "an attempt was completed twice"
    return {completion.attempt: completion for completion in done}


@torch.inference_mode()
def naive(model: ChatModel, attempt: Attempt) -> tuple[tuple[int, ...], Finish]:
    """`generate` on one row: what a greedy attempt must give."""
    ids = torch.tensor([attempt.prompt_ids + attempt.prefill_ids])
    out = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=attempt.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(model.chat.stop_ids) or None,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    if out[-1] in model.chat.stop_ids:
        return tuple(out[:-1]), Finish.STOP
    return tuple(out), Finish.LENGTH


def check_against_generate(model: ChatModel, attempts: Sequence[Attempt], **options: object) -> None:
    done = completed(model, attempts, **options)
    assert done.keys() == {attempt.id for attempt in attempts}
    for each in attempts:
        assert (done[each.id].output_ids, done[each.id].finish) == naive(model, each)
