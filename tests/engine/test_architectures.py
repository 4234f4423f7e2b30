"""Every architecture writes, token for token, what `generate` writes for one row alone."""

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt, byte_tokenizer, check_against_generate, family_template, tiny_chat

from fathom.chat import ChatFormat
from fathom.model import ChatModel, LoadOptions, load
from fathom.records import Attempt, Message
from tiny_models import random_ids

# Families with a chat template in TRL, and the special tokens that it writes.
TEMPLATES = {
    "llama": ("llama3", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "qwen3": ("qwen3", ["<|im_start|>", "<|im_end|>"]),
    "qwen3_moe": ("qwen3", ["<|im_start|>", "<|im_end|>"]),
    "gemma3_text": ("gemma3", ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "phi3": ("phi3", ["<|user|>", "<|assistant|>", "<|end|>"]),
    "cohere": ("cohere", ["<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]),
}
SHARED = ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2", "mixtral", "qwen3_moe"]
SHARED += ["cohere", "granite", "phi"]
# capped scores, positions inside the scores, no attention at all
UNSHARED = ["gemma2", "bloom", "mamba"]

STORIES = Path(os.environ.get("FATHOM_SHARED", Path(__file__).parents[3] / "shared")) / "models" / "stories260k"
QUESTIONS = ("hi", "How tall is the old oak by the mill?", "Name a river.")
ANSWER = "Sure, the one by the mill is about twenty metres."


def with_format(model: ChatModel, family: str) -> ChatModel:
    name, special = TEMPLATES.get(family, (None, ["<s>", "</s>"]))
    tokenizer = byte_tokenizer(special)
    chat = ChatFormat(
        tokenizer=tokenizer,
        template=family_template(name) if name else None,
        source="model" if name else "plain",
        # several, so that tiny random models do stop early now and then
        stop_ids=frozenset({len(tokenizer) - 1, 10, 20, 30, 40}),
    )
    return dataclasses.replace(model, chat=chat)


def sweep(model: ChatModel) -> list[Attempt]:
    """Prompts of different lengths, depths that share them, budgets that end rows at different times."""
    attempts = []
    for question in QUESTIONS:
        messages = (Message("user", question),)
        prompt, answer = model.chat.prompt_ids(messages), model.chat.response_ids(messages, ANSWER)
        for depth in (0, 1, 7, len(answer)):
            new = {0: 24, 1: 1, 7: 9}.get(depth, 16)
            attempts.append(attempt(prompt, answer[:depth], behavior=question, max_new_tokens=new))
    return attempts


@pytest.mark.parametrize("family", SHARED)
def test_trunks_are_shared_and_outputs_are_those_of_generate(family: str) -> None:
    vocabulary = 256 + 4
    model = with_format(tiny_chat(family, vocabulary=vocabulary, **_long(family)), family)
    complaints: list[str] = []
    check_against_generate(model, sweep(model), notify=complaints.append)
    assert not complaints


@pytest.mark.parametrize("family", UNSHARED)
def test_other_attention_takes_the_slow_way_says_so_and_is_exact(family: str) -> None:
    model = tiny_chat(family)
    prompts = [random_ids(length, seed=length) for length in (4, 11, 19)]
    answer = random_ids(15, seed=1)
    attempts = [attempt(prompt, answer[:depth]) for prompt in prompts for depth in (0, 1, 6, 15)]
    complaints: list[str] = []
    check_against_generate(model, attempts, notify=complaints.append)
    assert len(complaints) == 1
    assert "slower" in complaints[0]


@pytest.mark.parametrize("seed", range(3))
def test_random_sweeps_through_a_sliding_window(seed: int) -> None:
    """The window (8) leaves the trunk while a row writes, and then leaves the row's own first tokens."""
    draw = random.Random(seed)
    model = tiny_chat("mistral", seed=seed, stop_ids={3})
    attempts = []
    for i in range(6):
        prompt, answer = random_ids(draw.randint(1, 30), seed=10 * seed + i), random_ids(20, seed=i)
        attempts += [
            attempt(prompt, answer[:depth], max_new_tokens=draw.randint(1, 30)) for depth in (0, draw.randint(1, 20))
        ]
    check_against_generate(model, attempts)


def test_positions_that_change_with_length_take_the_slow_way() -> None:
    """Under dynamic rotary scaling a long row in the batch would change the positions of the short ones."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_chat("llama", max_position_embeddings=24, rope_parameters=rope)
    attempts = [attempt(random_ids(length, seed=length), max_new_tokens=10) for length in (5, 20, 30)]
    complaints: list[str] = []
    check_against_generate(model, attempts, notify=complaints.append)
    assert "rotary" in complaints[0]


def test_settings_for_generation_that_a_model_brings_do_not_count() -> None:
    """A repetition penalty or a sampling default in generation_config.json is no part of an attempt."""
    attempts = [attempt(random_ids(9, seed=i), max_new_tokens=20) for i in range(4)]
    for family in ("llama", "bloom"):
        model = tiny_chat(family, stop_ids=())
        expected = {each.id: naive_greedy(model, each) for each in attempts}
        model.model.generation_config.repetition_penalty = 5.0
        model.model.generation_config.suppress_tokens = list(range(40))
        from attempts import completed

        assert {id_: done.output_ids for id_, done in completed(model, attempts).items()} == expected
        assert model.model.generation_config.repetition_penalty == 5.0


def naive_greedy(model: ChatModel, each: Attempt) -> tuple[int, ...]:
    from attempts import naive

    return naive(model, each)[0]


@pytest.mark.skipif(not STORIES.is_dir(), reason="the pretrained model of the project's shared files is not here")
def test_trained_weights_with_a_template_given(tmp_path: Path) -> None:
    """Weights that others trained, without a template of their own; ids, text and finish are those of `generate`."""
    template = tmp_path / "story.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    model = load(LoadOptions(name=str(STORIES), chat_template=template, device="cpu"))
    asked = [(Message("user", text),) for text in ("Once upon a time, there was a girl.", "Tom had a red ball.")]
    attempts = []
    for messages in asked:
        prompt, answer = model.chat.prompt_ids(messages), model.chat.response_ids(messages, "She liked to play in the")
        attempts += [attempt(prompt, answer[:depth], max_new_tokens=24) for depth in (0, 2, len(answer))]
    complaints: list[str] = []
    check_against_generate(model, attempts, notify=complaints.append)
    assert not complaints


def _long(family: str) -> dict[str, Any]:
    length = {"gpt2": "n_positions"}.get(family, "max_position_embeddings")
    return {length: 1024}
