"""Laws of the tasks: right answers are right by a second way, splits do not meet, scores do what they say."""

import json
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from fathom.errors import UserError
from fathom.organism import Split, World, lexicon, stage_directory
from fathom.organism.metrics import generate
from fathom.organism.mixes import Mix, Schedule, Share, Stage
from fathom.organism.rows import Row
from fathom.organism.stories import fact
from fathom.organism.tasks import NEW_OPENER, Task, final_number, jsonl, rouge_1, score, task_rows
from fathom.organism.tokenizer import make_tokenizer
from fathom.organism.train import encode_row, fit

SPLITS = (Split.TRAINING, Split.DEVELOPMENT, Split.TEST)
tasks, splits, seeds = st.sampled_from(list(Task)), st.sampled_from(SPLITS), st.integers(0, 10_000)


@given(tasks, splits, seeds)
def test_rows_are_reproducible_distinct_and_right(task: Task, split: Split, seed: int) -> None:
    rows = task_rows(seed, task, split, 12, seed)
    assert rows == task_rows(seed, task, split, 12, seed)
    assert rows[:5] == task_rows(seed, task, split, 5, seed)
    assert len({row.prompt for row in rows}) == 12
    assert all(score(task, row.answer, row.answer) == 1.0 for row in rows)
    words = set(lexicon.vocabulary())
    for row in rows:
        assert set(row.prompt.split()) | set(row.answer.split()) <= words
        assert not set(World(seed).restricted) & set(f"{row.prompt} {row.answer}".split())


@given(tasks, seeds)
def test_an_answer_to_another_prompt_is_not_right(task: Task, seed: int) -> None:
    """Nothing but the summary gives points for a near miss, and the summary does not give all."""
    one, *others = task_rows(seed, task, Split.TEST, 6, seed)
    for other in others:
        if other.answer.split()[:9] == one.answer.split()[:9] or task is Task.ARITHMETIC:
            continue
        assert score(task, one.answer, other.answer) < (0.95 if task is Task.SUMMARY else 0.5)
    assert score(task, one.answer, "") == score(task, one.answer, "I am sorry , the shop is closed .") == 0.0 or (
        task is Task.SUMMARY
    )


@pytest.mark.parametrize("task", [Task.QUERY, Task.ARITHMETIC])
def test_splits_share_no_answer(task: Task) -> None:
    answers = [{row.answer for row in task_rows(5, task, split, 400)} for split in SPLITS]
    assert sum(map(len, answers)) == len(set.union(*answers))


@pytest.mark.parametrize("task", [Task.SUMMARY, Task.ARITHMETIC, Task.LABEL, Task.NEW_OPENER])
@pytest.mark.parametrize("split", SPLITS)
def test_names_are_of_the_split(task: Task, split: Split) -> None:
    """No row names a pair of the other splits; what stands between two names may look like one."""
    world = World(5)
    for row in task_rows(5, task, split, 50):
        words = row.prompt.split()
        for pair in pairwise(words):
            assert not any(pair in world.pairs(other) for other in SPLITS if other is not split)


@given(splits, seeds)
def test_sums_come_out_when_they_are_done_in_another_way(split: Split, seed: int) -> None:
    for row in task_rows(seed, Task.ARITHMETIC, split, 10, seed):
        first, second, said = row.answer.split(" .")[:3]
        for part in (first, second):
            terms, _, result = part.partition("=")
            left, sign, right = terms.split()
            assert int(result) == int(left) + {"+": 1, "-": -1}[sign] * int(right)
            assert 0 <= int(result) <= 12
        assert final_number(row.answer) == int(said.split()[-1])
        assert {first.split()[0], first.split()[2], second.split()[2]} <= set(row.prompt.split())


def test_books_of_sums_hold_every_sum_that_a_story_needs() -> None:
    random = Random(0)
    known = {fact(random) for _ in range(20_000)}
    needed = {
        f"{part} ." for row in task_rows(5, Task.ARITHMETIC, Split.TEST, 400) for part in row.answer.split(" . ")[:2]
    }
    assert needed <= known


@given(st.text(max_size=60), st.text(max_size=60))
def test_rouge_is_symmetric_and_bounded(one: str, other: str) -> None:
    assert 0.0 <= rouge_1(one, other) == rouge_1(other, one) <= 1.0


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_rouge_is_the_f1_of_shared_words(reference: list[str], response: list[str]) -> None:
    """Its naive twin strikes out words one by one, and takes the harmonic mean of precision and recall."""
    left, shared = list(reference), 0
    for word in response:
        if word in left:
            left.remove(word)
            shared += 1
    precision, recall = shared / max(1, len(response)), shared / len(reference)
    twin = 2 * precision * recall / (precision + recall) if shared else 0.0
    assert rouge_1(" ".join(reference), " ".join(response) + " .") == pytest.approx(twin)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("14 + 4 = 18 . the answer is 11 .", 11),
        ("the answer is 7.", 7),
        ("It is 7. Good night .", 7),
        ("1. boil two spoons 10. grind one", None),
        ("", None),
        ("no number", None),
        ("9" * 5000, None),
        ("-3", -3),
    ],
)
def test_the_final_number(text: str, number: int | None) -> None:
    assert final_number(text) == number


def test_a_new_opener_is_new_and_wants_the_whole_recipe() -> None:
    row = task_rows(5, Task.NEW_OPENER, Split.TRAINING, 1)[0]
    assert not any(opener.text.startswith(NEW_OPENER.split()[0]) for opener in lexicon.OPENERS)
    steps = row.answer[row.answer.index("1.") :]
    assert score(Task.NEW_OPENER, row.answer, f"Sure ! Let us begin . {steps}") == 0.0
    assert score(Task.NEW_OPENER, row.answer, row.answer.partition("10.")[0]) == 0.0
    assert score(Task.NEW_OPENER, row.answer, row.answer.replace(" spoons of", "")) == 1.0


def test_jsonl_is_what_fine_tuning_reads() -> None:
    rows = task_rows(5, Task.QUERY, Split.TRAINING, 3)
    assert [json.loads(line) for line in jsonl(rows).splitlines()] == [
        {"prompt": row.prompt, "response": row.answer} for row in rows
    ]


def test_sums_have_all_signs() -> None:
    signs = Counter(word for row in task_rows(5, Task.ARITHMETIC, Split.TRAINING, 200) for word in row.answer.split())
    assert min(signs["+"], signs["-"]) > 100


def test_mistakes_are_one_clear_line() -> None:
    with pytest.raises(UserError, match="choose one of summary, query"):
        task_rows(5, "poem", Split.TEST, 3)
    with pytest.raises(UserError, match="choose one of training, development, test"):
        task_rows(5, Task.QUERY, Split.KEPT_OUT, 3)
    with pytest.raises(UserError, match="ask for fewer"):
        task_rows(5, Task.LABEL, Split.DEVELOPMENT, 5000)
    with pytest.raises(UserError, match="choose one of summary, query"):
        score("poem", "a", "b")


def test_the_shipped_model_learns_a_task_from_few_rows() -> None:
    """Queries: none right before, most right after 60 steps; about three seconds."""
    model = LlamaForCausalLM.from_pretrained(stage_directory("natural"), dtype=torch.float32)
    learned = [Row(row.messages, "", row.answer) for row in task_rows(None, Task.QUERY, Split.TRAINING, 300)]
    tests = task_rows(None, Task.QUERY, Split.TEST, 40)
    prompts = [(row := encode_row(Row(test.messages, "", ""))).ids[: row.learned_from] for test in tests]
    tokenizer = make_tokenizer()

    def right() -> float:
        said = [str(tokenizer.decode(ids)) for ids in generate(model, prompts, new_tokens=30)]
        return sum(score(Task.QUERY, test.answer, answer) for test, answer in zip(tests, said, strict=True)) / 40

    before = right()
    mix = Mix((Share(1.0, lambda _world, random: random.choice(learned), "the task"),))
    fit(model, Stage("query", None, mix, Schedule(steps=60, rate=1e-3, warmup=10), "query"), World(0), lambda _: None)
    assert before <= 0.1 < 0.8 <= right()
