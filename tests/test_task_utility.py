"""A user's task, scored: every row once, whatever happens in between, and nothing that cannot be right."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import fmean

import msgspec
import pytest

from fathom.__main__ import run
from fathom.command.request import ModelRequest
from fathom.command.task import TaskRequest, run_task
from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.organism.tasks import Task, jsonl, score, task_rows
from fathom.tally import wilson
from fathom.utility import Metric, mean_interval
from fathom.utility.records import ScoredRow, TaskUtility
from fathom.utility.task import TaskRun, Wanted
from few_rows import organism

METRIC = {Task.SUMMARY: Metric.ROUGE_1, Task.QUERY: Metric.EXACT, Task.ARITHMETIC: Metric.NUMBER}
SMALL = ["--max-new-tokens", "3", "--device", "cpu"]


def written(path: Path, task: str = "summary", n: int = 6) -> Path:
    path.write_text(jsonl(task_rows(None, task, "test", n)))
    return path


def rows_of(path: Path) -> list[ScoredRow]:
    return [msgspec.json.decode(line, type=ScoredRow) for line in (path / "rows.jsonl").read_bytes().splitlines()]


def request(data: Path, output: Path, **given: object) -> TaskRequest:
    model = ModelRequest(name="organism:natural", device="cpu")
    values: dict[str, object] = {"model": model, "data": data, "metrics": "rouge1", "max_new_tokens": 12}
    return TaskRequest(**values | {"output": output} | given)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", METRIC)
def test_the_organisms_tasks_are_scored_as_the_organism_scores_them(task: Task) -> None:
    rows = task_rows(None, task, "test", 40)
    for row, other in zip(rows, (*rows[1:], rows[0]), strict=True):
        for said in (row.answer, other.answer, f"{other.answer} {row.answer}", ""):
            assert METRIC[task].score(row.answer, said) == score(task, row.answer, said)


def test_intervals_of_means() -> None:
    assert mean_interval([0.0, 1.0, 1.0]) == wilson(2, 3)
    assert mean_interval([0.4] * 9) == wilson(3.6, 9)  # a bootstrap would have no width
    random = Random(0)
    scores = [random.random() for _ in range(200)]
    low, high = mean_interval(scores)
    assert low < fmean(scores) < high
    assert high - low == pytest.approx(2 * 1.96 * (1 / 12 / 200) ** 0.5, rel=0.2)
    with pytest.raises(ZeroDivisionError):
        mean_interval([])


def test_scores_are_those_of_the_rows(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    data, out = written(tmp_path / "letters.jsonl"), tmp_path / "out"
    given = ["utility", "organism:natural", "--data", str(data), "--metric", "rouge1,exact", "-o", str(out), *SMALL]
    assert run([*given, "--json"]) == 0
    printed = capsysbinary.readouterr().out
    assert printed == (out / "utility.json").read_bytes()
    utility = msgspec.json.decode(printed, type=TaskUtility)
    rows = rows_of(out)
    wanted = [json.loads(line) for line in data.read_text().splitlines()]
    assert [(row.prompt[0].content, row.wanted) for row in rows] == [(one["prompt"], one["response"]) for one in wanted]
    assert [row.source for row in rows] == [f"letters.jsonl:{line}" for line in range(1, 7)]
    for found, metric in zip(utility.scores, (Metric.ROUGE_1, Metric.EXACT), strict=True):
        scores = [metric.score(row.wanted, row.answer) for row in rows]
        assert [row.scores[metric] for row in rows] == scores
        assert (found.metric, found.n, found.score) == (metric.shown, 6, fmean(scores))
        assert (found.low, found.high) == mean_interval(scores)
    assert utility.cut == sum(row.finish == "length" for row in rows) > 0
    assert "cut at 3 tokens" in utility.notes[0]
    assert run(["report", str(out)]) == 2
    assert b"holds what `fathom utility` made, which has no page" in capsysbinary.readouterr().err
    assert run(given) == 0  # nothing is asked again, and people are shown the same
    shown = b" ".join(capsysbinary.readouterr().out.split()).decode()
    assert "ROUGE-1 6" in shown
    assert "rows.jsonl" in shown


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was answered is asked again, rows that came later and other metrics ask only what is missing."""
    data = written(tmp_path / "letters.jsonl")
    asked: list[int] = []
    complete = TransformersEngine.complete

    def stopping(after: int | None) -> Callable[..., object]:
        def stopped(engine: TransformersEngine, attempts: list[object]) -> object:
            asked.append(len(attempts))
            for number, done in enumerate(complete(engine, attempts)):  # type: ignore[arg-type]
                if number == after:
                    raise KeyboardInterrupt
                yield done

        return stopped

    monkeypatch.setattr(TransformersEngine, "complete", stopping(2))
    with pytest.raises(KeyboardInterrupt):
        run_task(request(data, tmp_path / "out"))
    monkeypatch.setattr(TransformersEngine, "complete", stopping(None))
    run_task(request(data, tmp_path / "out", limit=4))
    run_task(request(data, tmp_path / "out"))
    run_task(request(data, tmp_path / "out", metrics="exact"))
    assert asked[0] == 6
    assert sum(asked[1:]) == 4
    run_task(request(data, tmp_path / "whole", metrics="exact"))
    for name in ("rows.jsonl", "utility.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_prompt_that_stands_there_twice_is_two_rows(tmp_path: Path) -> None:
    messages = task_rows(None, "summary", "test", 1)[0].messages
    rows = [Wanted(messages, answer, f"f:{line}") for line, answer in enumerate(("a letter", "no letter"))]
    assert TaskRun(tmp_path, organism(), "f", rows, [Metric.ROUGE_1], 8)().scores[0].n == 2


def test_another_task_or_model_is_refused(tmp_path: Path) -> None:
    data, out = written(tmp_path / "letters.jsonl", n=2), tmp_path / "out"
    run_task(request(data, out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    others = (
        ({"data": written(tmp_path / "queries.jsonl", "query", 2)}, "data differ"),
        ({"max_new_tokens": 13}, "max_new_tokens differ"),
        ({"model": ModelRequest(name="organism:base", device="cpu")}, "weights"),
        ({"model": ModelRequest(name="organism:natural", device="cpu", system="sing .")}, "system differ"),
    )
    for given, said in others:
        with pytest.raises(UserError, match=said):
            run_task(request(**{"data": data, "output": out} | given))  # type: ignore[arg-type]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run_task(request(data, tmp_path / "other"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give either --data FILE with --metric"),
        (["--data", "letters.jsonl", "--tasks", "mmlu"], "give either --data FILE with --metric"),
        (["--data", "letters.jsonl"], "needs a --metric"),
        (["--data", "letters.jsonl", "--metric", "bleu"], "--metric is 'bleu'; choose one of rouge1, exact, number"),
        (["--data", "letters.jsonl", "--metric", ","], "--metric is empty"),
        (["--data", "letters.jsonl", "--metric", "number"], "6 of 6 answers of letters.jsonl have no number"),
        (["--data", "letters.jsonl", "--metric", "exact", "--run"], "--run is of --tasks"),
        (["--data", "gone.jsonl", "--metric", "exact"], "there is no file gone.jsonl"),
        (["--data", "letters.jsonl", "--metric", "exact", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--data", "letters.jsonl", "--metric", "exact", "--endpoint-model", "m"], "without --endpoint"),
        (["--data", "letters.jsonl,prompt=letter", "--metric", "exact"], "no column 'letter' to be its prompt"),
        (["--tasks", "mmlu", "--system", "x"], "lm-eval, which is not told of system"),
        (["--tasks", "mmlu", "--metric", "exact"], "lm-eval, which is not told of --metric"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "letters.jsonl")
    assert run(["utility", "organism:natural", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters.jsonl"]
