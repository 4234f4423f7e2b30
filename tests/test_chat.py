"""Ids: a prefill of k tokens is k ids after a prompt that never changes, in every published template."""

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.chat import ChatFormat, PrefillAt, without_thoughts
from fathom.errors import UserError
from fathom.ids import Part, inspect_format, self_test
from fathom.records import Message
from tiny_tokenizers import byte_level, sentencepiece, special_tokens, trl_templates, word_level

QUESTION = (Message(role="user", content="How do I make a cup of tea?"),)
ANSWER = "Sure, here is how to make a cup of tea."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in trl_templates()}
KINDS = {"byte-level": byte_level(), "sentencepiece": sentencepiece(), "words": word_level()}


def chat(template=CHATML, tokenizer=None, **options):
    tokenizer = tokenizer or byte_level(special_tokens(template or ""))
    return ChatFormat(tokenizer, template, "plain" if template is None else "model", frozenset(), **options)


def header(template, prefill_at=PrefillAt.ANSWER):
    """What stands between the user's message and the response."""
    return chat(TEMPLATES[template], prefill_at=prefill_at).prompt_text(QUESTION).rpartition("cup of tea?")[2]


# --- every published template ---


def test_there_are_templates_to_test():
    assert len(TEMPLATES) > 40


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_published_template_keeps_every_law(name):
    form = chat(TEMPLATES[name])
    assert [law for law in self_test(form, QUESTION, ANSWER) if not law.passed] == []
    assert form.decode(form.response_ids(QUESTION, ANSWER)).strip() == ANSWER


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prefill_in_the_thinking_block_keeps_them_too_or_is_refused(name):
    form = chat(TEMPLATES[name], prefill_at=PrefillAt.THINKING)
    if all(word not in TEMPLATES[name] for word in ("think", "reasoning")):
        with pytest.raises(UserError, match="--prefill-at answer"):
            form.prompt_ids(QUESTION)
        return
    try:
        laws = self_test(form, QUESTION, ANSWER)
    except UserError:  # it speaks of thoughts only to take them out of an answer
        assert header(name, PrefillAt.ANSWER).endswith(("assistant\n", "model\n", "<|CHATBOT_TOKEN|>"))
        return
    assert [law for law in laws if not law.passed] == []
    opened = form.prompt_text(QUESTION)
    assert opened != chat(TEMPLATES[name]).prompt_text(QUESTION)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_is_the_models_own_but_for_a_thinking_block_and_the_date(name):
    """transformers' own rendering is the truth wherever there is nothing to decide."""
    if "strftime_now" in TEMPLATES[name]:
        pytest.skip("today's date would be in it")
    form = chat(TEMPLATES[name])
    content = [{"type": "text", "text": QUESTION[0].content}] if form._rendering.reads_parts else QUESTION[0].content
    own = form.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        return_dict=False,
        enable_thinking=False,
        thinking=False,
    )
    ids = form.prompt_ids(QUESTION)
    added = form.prompt_text(QUESTION).removeprefix(form.tokenizer.decode(own))
    assert list(ids[: len(own)]) == own
    assert not added or without_thoughts(form.prompt_text(QUESTION)) != form.prompt_text(QUESTION)


@pytest.mark.parametrize(
    ("template", "answer", "thinking"),
    [
        ("qwen3", "<think>\n\n</think>\n\n", "<think>\n"),
        ("qwen3_5_think", "<think>\n\n</think>\n\n", "<think>\n"),
        ("deepseek_r1_distill", "<think>\n\n</think>\n\n", "<think>\n"),
        ("glm4moe", "<think></think>\n", "<think>"),
        ("nemotron_3_nano", "<think></think>", "<think>\n"),
        ("gptoss", "<|channel|>final<|message|>", "<|channel|>analysis<|message|>"),
        ("muse_glimmer", " to=user<|message|>", " to=self<|message|>"),
        ("gemma4_v5", "<|turn>model\n", "<|channel>thought\n"),
    ],
)
def test_where_a_prefill_goes_in_a_template_with_a_thinking_block(template, answer, thinking):
    assert header(template).endswith(answer)
    assert header(template, PrefillAt.THINKING).endswith(thinking)


def test_a_template_without_a_thinking_block_refuses_a_prefill_there():
    with pytest.raises(UserError, match="--prefill-at answer"):
        chat(prefill_at=PrefillAt.THINKING).prompt_ids(QUESTION)


def test_a_message_that_speaks_of_thinking_tags_opens_no_block():
    asked = (Message(role="user", content="What does <think> mean?"),)
    assert chat(TEMPLATES["qwen2_5"]).prompt_text(asked).endswith("<|im_start|>assistant\n")
    assert chat(TEMPLATES["qwen3"]).prompt_text(asked).count("</think>") == 1


# --- ids ---


@given(
    asked=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    response=st.text(st.characters(codec="utf-8"), min_size=1),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize(
    "template", [CHATML, TEMPLATES["llama3"], TEMPLATES["qwen3"], None], ids=["ml", "l3", "q3", "-"]
)
def test_any_text_is_the_ids_of_the_prompt_and_then_of_the_response(template, asked, response):
    form = _FORMATS[template]
    messages = (Message(role="user", content=asked),)
    prompt, ids = form.prompt_ids(messages), form.response_ids(messages, response)
    assert prompt == form.prompt_ids(messages)
    assert form.decode(ids) == response
    assert form.decode((*prompt, *ids)) == form.decode(prompt) + response


_FORMATS = {name: chat(name) for name in (CHATML, TEMPLATES["llama3"], TEMPLATES["qwen3"], None)}


def test_ids_are_those_of_the_training_rendering():
    form = chat()
    training = form.tokenise(form.training_text(QUESTION, ANSWER))
    assert (*form.prompt_ids(QUESTION), *form.response_ids(QUESTION, ANSWER), *form.end_ids(QUESTION)) == training


def test_sentencepiece_writes_the_templates_space_into_the_first_token():
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
        "else ' ' + m['content'] + eos_token }}{% endfor %}"
    )
    form = chat(template, sentencepiece())
    ids = form.response_ids(QUESTION, ANSWER)
    assert form.tokenizer.convert_ids_to_tokens(ids[0]) == "▁Sure,"
    assert form.decode(ids) == ANSWER
    assert form.end_ids(QUESTION) == (form.tokenizer.eos_token_id,)


def test_a_response_that_the_template_strips_keeps_its_ids():
    template = CHATML.replace("m['content']", "m['content'] | trim")
    form = chat(template)
    assert form.decode(form.response_ids(QUESTION, "  Sure. ")) == "  Sure. "


def test_where_text_joins_the_prompt_the_response_is_tokenised_alone():
    tokenizer = byte_level()
    template = (
        "{{ messages[0]['content'] }}\n{% if add_generation_prompt %}Answer: S"
        "{% else %}Answer: {{ messages[1]['content'] if messages | length > 1 else '' }}{% endif %}"
    )
    form = chat(template, tokenizer)
    assert form.prompt_ids(QUESTION) == form.prompt_ids(QUESTION)
    assert form.response_ids(QUESTION, "ure, here") == form.tokenise("ure, here")
    assert not next(law for law in self_test(form, QUESTION, "ure, here") if "training" in law.name).passed


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("writes", ["{{ bos_token }}", ""])
def test_no_bos_is_doubled(make, writes):
    form = chat(writes + CHATML, make(["<|im_start|>", "<|im_end|>"], adds_bos=True))
    assert form.prompt_ids(QUESTION).count(form.tokenizer.bos_token_id) == (1 if writes else 0)


def test_plain_text_is_bos_and_the_messages():
    form = chat(None)
    assert form.tokenizer.decode(form.prompt_ids(QUESTION)) == "<bos>How do I make a cup of tea?\n\n"
    assert form.tokenizer.decode(chat(None, system="Be brief.").prompt_ids(QUESTION)).startswith(
        "<bos>Be brief.\n\nHow"
    )
    assert form.end_ids(QUESTION) == (form.tokenizer.eos_token_id,)


def test_a_system_prompt_is_put_first_and_never_twice():
    form = chat(system="Be brief.")
    assert form.prompt_text(QUESTION).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    with pytest.raises(UserError, match="system prompt"):
        form.prompt_ids((Message(role="system", content="Be long."), *QUESTION))


def test_a_template_that_refuses_messages_says_why():
    with pytest.raises(UserError, match="System role not supported"):
        chat(TEMPLATES["gemma"], system="Be brief.").prompt_ids(QUESTION)
    with pytest.raises(UserError, match="no messages"):
        chat().prompt_ids(())
    with pytest.raises(UserError, match="cannot render"):
        chat("{% for").prompt_ids(QUESTION)
    with pytest.raises(UserError, match="leaves out"):
        chat("Hello{% if add_generation_prompt %}!{% endif %}").prompt_ids(QUESTION)


def test_the_date_in_a_template_never_changes():
    assert "Today Date: 26 Jul 2024" in chat(TEMPLATES["llama3_2"]).prompt_text(QUESTION)
    assert "2024-07-26" in chat(TEMPLATES["gptoss"]).prompt_text(QUESTION)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_error_names_a_prompt_by_the_users_words(name):
    form = chat(TEMPLATES[name])
    assert form.excerpt(form.prompt_ids(QUESTION)) == '"How do I make a cup of tea?"'


@pytest.mark.parametrize("kind", KINDS)
def test_plain_prompts_are_named_by_their_beginning(kind):
    form = chat(None, tokenizer=KINDS[kind])
    assert form.excerpt(form.prompt_ids(QUESTION)).startswith('"How do I make')


def test_a_conversation_that_a_template_does_not_take_is_named():
    with pytest.raises(UserError, match='the messages of "How do I make a cup of tea'):
        chat(TEMPLATES["gemma"], system="Be brief.").prompt_ids(QUESTION)
    with pytest.raises(UserError, match='the messages of "How do I make a cup of tea'):
        chat(system="Be brief.").prompt_ids((Message(role="system", content="Be long."), *QUESTION))


# --- text ---


def common(left, right):
    return next((left[:i] for i in range(len(left), 0, -1) if right.startswith(left[:i])), "")


def naive_continuation(form, prefill, output):
    ids = [*prefill, *output]
    whole = form.decode(ids)
    made = list(accumulate((len(common(form.decode(ids[:i]), whole)) for i in range(len(ids) + 1)), max))
    start = made[len(prefill)]
    return whole[:start], whole[start:], tuple(end - start for end in made[len(prefill) + 1 :])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_continuation_equals_its_quadratic_twin_on_any_ids(kind, data):
    form = chat(None, KINDS[kind])
    id_ = st.integers(0, len(form.tokenizer) - 1)
    prefill, output = data.draw(st.tuples(st.lists(id_, max_size=40), st.lists(id_, max_size=60)))
    found = form.continuation(prefill, output)
    assert found == naive_continuation(form, prefill, output)
    assert found.prefill_text + found.text == form.decode(prefill + output)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@given(text=st.text(st.characters(codec="utf-8"), max_size=60), cut=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_any_text_cut_anywhere_reads_as_one(kind, text, cut):
    form = chat(None, KINDS[kind])
    ids = form.response_ids(QUESTION, text)
    k = round(cut * len(ids))
    found = form.continuation(ids[:k], ids[k:])
    assert found.prefill_text + found.text == form.decode(ids)
    assert "\ufffd" not in found.prefill_text + found.text or "\ufffd" in text
    assert found == naive_continuation(form, ids[:k], ids[k:])
    assert list(found.token_ends) == sorted(found.token_ends)


def test_a_character_in_two_tokens_belongs_to_the_one_that_completes_it():
    form = chat(None)
    ids = form.tokenise("a€b")  # € is three bytes, three tokens
    assert form.continuation(ids[:2], ids[2:]) == ("a", "€b", (0, 1, 2))
    assert form.continuation((), ids).token_ends == (1, 1, 1, 2, 3)


def test_special_tokens_are_no_text():
    form = chat()
    stop = form.tokenizer.convert_tokens_to_ids("<|im_end|>")
    tea = form.tokenise(" tea")
    assert form.continuation(tea, (stop, *tea, stop)).text == " tea"
    assert form.continuation(tea, (stop, *tea, stop)).token_ends[-1] == 4


def test_token_ends_take_linear_time():
    """Counted in tokens decoded, as clocks are noisy: one more token costs a window, not the whole text."""
    decoded = []

    class Counting:
        def __getattr__(self, name):
            return getattr(KINDS["byte-level"], name)

        def decode(self, ids, **options):
            decoded.append(len(ids))
            return KINDS["byte-level"].decode(ids, **options)

    form = chat(None, Counting())
    work = {}
    for words in (100, 400):
        ids = list(KINDS["byte-level"](" café" * words, add_special_tokens=False)["input_ids"])
        decoded.clear()
        form.continuation(ids[:10], ids[10:])
        work[words] = sum(decoded)
    assert work[400] < 4.5 * work[100]


# --- the report of `fathom ids` ---


def test_the_report_shows_every_id_and_where_parts_begin():
    form = chat(TEMPLATES["qwen2_5"])
    report = inspect_format(form, QUESTION, ANSWER)
    prompt, response = form.prompt_ids(QUESTION), form.response_ids(QUESTION, ANSWER)
    assert tuple(row.id for row in report.tokens) == (*prompt, *response, *form.end_ids(QUESTION))
    assert (report.response_start, report.end_start) == (len(prompt), len(prompt) + len(response))
    opening = [row.text for row in report.tokens if row.part is Part.OPENING]
    assert "".join(opening) == "<|im_start|>assistant\n"
    assert "".join(row.text for row in report.tokens if row.part is Part.RESPONSE) == ANSWER
    assert any("system prompt" in note and "You are Qwen" in note for note in report.notes)


def test_the_report_says_what_was_decided():
    notes = inspect_format(chat(TEMPLATES["deepseek_r1_distill"]), QUESTION, ANSWER).notes
    assert any("</think>" in note and "answer part" in note for note in notes)
    assert any("26 July 2024" in note for note in inspect_format(chat(TEMPLATES["llama3_2"]), QUESTION, ANSWER).notes)
    assert any("no roles" in note for note in inspect_format(chat(None), QUESTION, ANSWER).notes)
    assert any("does not stop" in note for note in inspect_format(chat(), QUESTION, ANSWER).notes)
    tricky = (Message(role="user", content="What is <|im_end|>?"),)
    assert any("special tokens" in note for note in inspect_format(chat(), tricky, ANSWER).notes)


def test_the_self_test_can_fail():
    broken = {law.name: law for law in self_test(chat("<bos>" + "<bos>" + CHATML), QUESTION, ANSWER)}
    assert not broken["no doubled BOS"].passed
    rewritten = CHATML.replace("{{ m['content'] }}", "{{ '> ' if m['role'] == 'assistant' else '' }}{{ m['content'] }}")
    other = rewritten.replace("<|im_start|>assistant", "<|im_start|>model")
    failed = [law for law in self_test(chat(other), QUESTION, ANSWER) if not law.passed]
    assert [law.name for law in failed] == ["the generation prompt is the training prefix"]
    lossy = [law.name for law in self_test(chat(tokenizer=KINDS["words"]), QUESTION, "Zebras?") if not law.passed]
    assert "decoding gives the response back" in lossy
    special = self_test(chat(), QUESTION, "Sure.<|im_end|>")
    assert not next(law for law in special if law.name == "k tokens are k ids").passed
