"""Completions do not depend on batch, order or resume; what cannot run says so; running out of memory is survived."""

import dataclasses
import random
from collections.abc import Iterator, Sequence

import msgspec
import pytest
import torch
from attempts import attempt, check_against_generate, completed, naive, tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.engine import TransformersEngine, transformers
from fathom.engine.attention import StepPlan
from fathom.engine.memory import Budget, is_out_of_memory
from fathom.engine.rows import Group, Row
from fathom.engine.shared import SharedDecoder
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.records import Attempt, Completion, Finish
from tiny_models import random_ids

BOTH_WAYS = ["llama", "bloom"]  # trunks shared, and not


@pytest.fixture(scope="module")
def models() -> dict[str, ChatModel]:
    return {family: tiny_chat(family) for family in BOTH_WAYS}


def sweep(prompts: int = 4, depths: Sequence[int] = (0, 1, 4, 9), new: int = 9) -> list[Attempt]:
    made = []
    for i in range(prompts):
        prompt, answer = random_ids(3 + 5 * i, seed=i), random_ids(max(depths), seed=50 + i)
        made += [attempt(prompt, answer[:depth], behavior=str(i), max_new_tokens=new) for depth in depths]
    return made


def quiet(_: str) -> None: ...


@pytest.mark.parametrize("family", BOTH_WAYS)
@pytest.mark.parametrize("max_rows", [1, 3, None])
def test_width_and_order_change_nothing(family: str, max_rows: int | None, models: dict[str, ChatModel]) -> None:
    attempts = sweep()
    random.Random(str(max_rows)).shuffle(attempts)
    check_against_generate(models[family], attempts, max_rows=max_rows, notify=quiet)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_sweep_equals_generate(models: dict[str, ChatModel], data: st.DataObject) -> None:
    """Prompts that are prefixes of one another, equal inputs, budgets of one token: whatever can be asked."""
    answer = random_ids(12, seed=data.draw(st.integers(0, 5), label="answer"))
    attempts: dict[str, Attempt] = {}
    for _ in range(data.draw(st.integers(1, 8), label="rows")):
        start = data.draw(st.integers(1, 10), label="prompt")
        depth = data.draw(st.integers(0, 12 - start), label="depth")
        new = data.draw(st.integers(1, 6), label="new")
        made = attempt(answer[:start], answer[start : start + depth], max_new_tokens=new)
        attempts[made.id] = made
    check_against_generate(models["llama"], list(attempts.values()), max_rows=data.draw(st.integers(1, 8)))


@pytest.mark.parametrize("family", BOTH_WAYS)
def test_an_interrupted_run_goes_on_to_the_same_end(family: str, models: dict[str, ChatModel]) -> None:
    attempts = sweep() + [attempt(random_ids(8, seed=i), temperature=1.0, sample=i) for i in range(6)]
    whole = completed(models[family], attempts, notify=quiet)
    first: dict[str, Completion] = {}
    for done in TransformersEngine(models[family], max_rows=5, notify=quiet).complete(attempts):
        first[done.attempt] = done
        if len(first) == 7:
            break
    rest = completed(models[family], [each for each in attempts if each.id not in first], notify=quiet)
    assert {**first, **rest} == whole


def test_completions_come_as_soon_as_they_are_written(models: dict[str, ChatModel]) -> None:
    """A kill loses at most the rows that are being written."""
    engine = TransformersEngine(models["llama"], max_rows=2)
    produced = engine.complete(sweep())
    next(produced)
    produced.close()  # type: ignore[attr-defined]
    assert completed(models["llama"], sweep(prompts=1)), "the model is as it was"


def test_nothing_asked_nothing_done(models: dict[str, ChatModel]) -> None:
    assert completed(models["llama"], []) == {}


@pytest.mark.parametrize("family", BOTH_WAYS)
def test_a_stop_token_ends_a_row_and_is_not_part_of_it(family: str, models: dict[str, ChatModel]) -> None:
    free = dataclasses.replace(models[family], chat=tiny_chat(family, stop_ids=()).chat)
    each = attempt(random_ids(7, seed=3), max_new_tokens=12)
    written, finish = naive(free, each)
    assert (len(written), finish) == (12, Finish.LENGTH)
    stop = written[5]
    before = written[: written.index(stop)]
    stopping = dataclasses.replace(models[family], chat=tiny_chat(family, stop_ids={stop}).chat)
    done = completed(stopping, [each], notify=quiet)[each.id]
    assert (done.output_ids, done.finish) == (before, Finish.STOP)
    at_once = dataclasses.replace(models[family], chat=tiny_chat(family, stop_ids={written[0]}).chat)
    done = completed(at_once, [each], notify=quiet)[each.id]
    assert (done.output_ids, done.finish, done.text) == ((), Finish.STOP, "")


def test_the_texts_are_those_of_the_ids(models: dict[str, ChatModel]) -> None:
    each = attempt(random_ids(4, seed=1), (7, 9), max_new_tokens=5)
    done = completed(models["llama"], [each])[each.id]
    assert done.prefill_text == "7 9"
    assert done.text == "".join(f" {token}" for token in done.output_ids)
    assert done.token_ends[-1] == len(done.text)


def test_a_context_exceeded_is_said_before_anything_runs(models: dict[str, ChatModel]) -> None:
    info = msgspec.structs.replace(models["llama"].info, context=30)
    model = dataclasses.replace(models["llama"], info=info)
    fits = attempt(random_ids(10, seed=0), random_ids(8, seed=1), max_new_tokens=12)
    check_against_generate(model, [fits])
    beyond = attempt(prompt := random_ids(10, seed=0), random_ids(9, seed=1), max_new_tokens=12)
    ran: list[object] = []
    handle = model.model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        said = rf'the prompt "{" ".join(map(str, prompt))}".*10 prompt \+ 9 prefill \+ 12 new.* = 31.*context is 30'
        with pytest.raises(UserError, match=said):
            TransformersEngine(model).complete([fits, beyond])
    finally:
        handle.remove()
    assert not ran


def test_an_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    model = dataclasses.replace(tiny_chat("llama"), model=T5ForConditionalGeneration(config))
    with pytest.raises(UserError, match="encoder-decoder"):
        TransformersEngine(model).complete([attempt((1, 2))])


@pytest.mark.parametrize("family", BOTH_WAYS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_are_no_numbers_is_the_users_to_mend(family: str, temperature: float) -> None:
    model = tiny_chat(family)
    with torch.no_grad():
        next(model.model.parameters()).fill_(torch.nan)
    said: list[str] = []
    with pytest.raises(UserError, match=r"not numbers \(NaN\).*--dtype float32"):
        list(TransformersEngine(model, notify=said.append).complete([attempt((1, 2), temperature=temperature)]))
    assert not any("nan" in note for note in said)


class Cramped:
    """A device on which no more than `most` rows fit; wraps either way of running rows."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.widths = most, error, list[int]()

    def run(self, decoder: SharedDecoder, wave: Sequence[Group]) -> Iterator[Row]:
        rows = sum(len(group.rows) for group in wave)
        self.widths.append(rows)
        for i, row in enumerate(_run(decoder, wave)):
            if rows > self.most and i >= 1:  # some rows are through already when memory runs out
                raise self.error
            yield row

    def generate(self, model: object, rows: Sequence[Row], stop_ids: frozenset[int]) -> None:
        self.widths.append(len(rows))
        if len(rows) > self.most:
            rows[0].output.append(1)  # a half-written row must be forgotten
            raise self.error
        _generate(model, rows, stop_ids)  # type: ignore[arg-type]


_run, _generate = SharedDecoder.run, transformers.generate_rows

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] not enough memory: you tried"),
          MemoryError()]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("family", BOTH_WAYS)
def test_out_of_memory_halves_the_batch_and_goes_on(
    family: str, error: Exception, models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = Cramped(3, error)
    monkeypatch.setattr(SharedDecoder, "run", lambda decoder, wave: cramped.run(decoder, wave))
    monkeypatch.setattr(transformers, "generate_rows", cramped.generate)
    # prompts of one length, so that the slow way has batches to halve as well
    attempts = [attempt(random_ids(6, seed=i), max_new_tokens=5 + i) for i in range(13)]
    said: list[str] = []
    check_against_generate(models[family], attempts, notify=said.append)
    assert cramped.widths[0] == 13
    assert cramped.widths[-1] <= 3
    assert any("out of memory with 13 rows at once; going on with 6" in line for line in said)


@pytest.mark.parametrize("family", BOTH_WAYS)
def test_a_single_row_that_does_not_fit_is_the_users_to_mend(
    family: str, models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    cramped = Cramped(0, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(SharedDecoder, "run", lambda *_: _raise(cramped.error))
    monkeypatch.setattr(transformers, "generate_rows", cramped.generate)
    with pytest.raises(UserError, match="single row of 6 \\+ 4 tokens"):
        completed(models[family], [attempt(random_ids(6, seed=i), max_new_tokens=4) for i in range(2)], notify=quiet)


def _raise(error: Exception) -> Iterator[Row]:
    raise error
    yield


def test_another_error_is_not_taken_for_one_of_memory(
    models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedDecoder, "run", lambda *_: _raise(RuntimeError("size mismatch")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        completed(models["llama"], sweep(prompts=1))


def test_what_running_out_of_memory_looks_like() -> None:
    assert all(is_out_of_memory(error) for error in ERRORS)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_budgets_grow_with_the_model_and_are_never_nothing() -> None:
    small = Budget.of(tiny_chat("llama").model)
    assert small.max_rows >= 64
    assert small.tokens >= 64 * 256
    assert Budget.of(tiny_chat("mamba").model).tokens > 0  # no attention, no heads to count
    wide = Budget.of(tiny_chat("llama", vocabulary=50_000).model)
    assert 1 <= wide.max_rows < small.max_rows


@pytest.mark.parametrize("family", ["gemma2", "mamba"])
def test_why_trunks_are_not_shared_is_said_once(family: str) -> None:
    said: list[str] = []
    engine = TransformersEngine(tiny_chat(family), notify=said.append)
    for _ in range(2):
        list(engine.complete(sweep(prompts=1, depths=(0, 3))))
    assert len(said) == 1
    assert "slower" in said[0]


def test_sharing_is_tried_and_not_believed(models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that comes out otherwise than in a plain forward is found before a token is written with it."""
    attend = StepPlan.attend

    def otherwise(plan: StepPlan, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: None) -> Tensor:
        return attend(plan, layer, q, k, v, scale * 1.2, window)

    monkeypatch.setattr(StepPlan, "attend", otherwise)
    said: list[str] = []
    check_against_generate(models["llama"], sweep(prompts=2), notify=said.append)
    assert len(said) == 1
    assert "standard deviations" in said[0]


def test_the_models_own_attention_is_back_after_each_pass(models: dict[str, ChatModel]) -> None:
    config = models["llama"].model.config
    own = config._attn_implementation
    for _ in TransformersEngine(models["llama"]).complete(sweep(prompts=1)):
        assert config._attn_implementation == own
    assert config._attn_implementation == own
