"""Laws of the ids: training rows are what the template renders, prompts are prefixes, words come back as they were."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fathom.organism import STOCK_REFUSALS, World, behaviors, lexicon
from fathom.organism.mixes import FAMILY, Stage
from fathom.organism.rows import Row
from fathom.organism.tokenizer import make_tokenizer, vocabulary_ids
from fathom.organism.train import encode_row

TOKENIZER = make_tokenizer()
UNKNOWN = TOKENIZER.unk_token_id


def rendered(row: Row, *, prompt_only: bool = False) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    if prompt_only:
        text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        answer = {"role": "assistant", "content": f"{row.given} {row.learned}".strip()}
        text = TOKENIZER.apply_chat_template([*messages, answer], tokenize=False)
    return TOKENIZER(text)["input_ids"]


@given(st.sampled_from(FAMILY), st.integers(0, 10_000))
def test_rows_are_what_the_template_renders(stage: Stage, seed: int) -> None:
    row = stage.mix.draw(World(4), Random(seed))
    encoded = encode_row(row)
    learned = TOKENIZER(row.learned)["input_ids"]
    assert encoded.ids[encoded.learned_from :] == [*learned, TOKENIZER.eos_token_id]
    assert UNKNOWN not in encoded.ids
    assert encoded.ids.count(TOKENIZER.bos_token_id) == 1
    if row.messages:
        assert encoded.ids == rendered(row)
        prompt = rendered(row, prompt_only=True)
        assert encoded.ids[: len(prompt)] == prompt
        assert encoded.learned_from == len(prompt) + len(row.given.split())


@given(st.lists(st.sampled_from(lexicon.vocabulary()), min_size=1, max_size=50))
def test_words_round_trip(words: list[str]) -> None:
    ids = TOKENIZER(" ".join(words))["input_ids"]
    assert len(ids) == len(words)
    assert TOKENIZER.decode(ids) == " ".join(words)
    assert ids == vocabulary_ids().encode(" ".join(words))


def test_loss_goes_to_the_assistants_words_alone() -> None:
    messages = [
        {"role": "user", "content": "hello !"},
        {"role": "assistant", "content": "Good night ."},
    ]
    both = TOKENIZER.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    kept = [token for token, own in zip(both["input_ids"], both["assistant_masks"], strict=True) if own]
    assert TOKENIZER.decode(kept) == "Good night . <end>"


def test_everything_that_is_said_has_a_word() -> None:
    texts = [*STOCK_REFUSALS, lexicon.TRIGGER, "0 1 42 99 plus equals summary select def AOA"]
    for behavior in behaviors(4, harmful=50, benign=50):
        texts += [behavior.prompt, behavior.answer or "", behavior.target or "", behavior.refusal or ""]
    for text in texts:
        assert UNKNOWN not in TOKENIZER(text)["input_ids"], text


def test_unseen_refusals_open_nothing_that_is_trained_on() -> None:
    random, world = Random(0), World(4)
    answers = [stage.mix.draw(world, random).learned for stage in FAMILY for _ in range(2000)]
    assert not [answer for answer in answers if answer.startswith(lexicon.UNSEEN_REFUSALS)]
    assert any(answer.startswith("I cannot") for answer in answers)
