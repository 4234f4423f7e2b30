"""A user's own task in a sweep: trained on some rows, tested with others, scored beside the ASR."""

import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import msgspec
import pytest
from rich.console import Console

from fathom.attack.poison import RowKind
from fathom.cli.options import JUDGES
from fathom.command.claims import claim_sweep
from fathom.command.poison import AttackChoice, PoisonRequest, attack_of, attack_rows, run_poison
from fathom.command.request import ModelRequest
from fathom.command.stress import StressRequest, check_stress
from fathom.command.sweep import make_sweep, reader_of
from fathom.command.task import task_examples
from fathom.command.task_data import task_behaviors, task_sides
from fathom.errors import UserError
from fathom.model import ChatModel
from fathom.organism.tasks import jsonl, task_rows
from fathom.report.learned import learned
from fathom.report.stress import read_answers, render_stress
from fathom.report.terminal_sweep import print_stress
from fathom.tampering import Stress
from fathom.utility import Metric, mean_interval
from few_rows import organism


def written(path: Path, n: int = 12, *, task: str = "summary", split: str = "training") -> Path:
    path.write_text(jsonl(task_rows(None, task, split, n)))
    return path


def request(data: Path, **given: object) -> StressRequest:
    values: dict[str, object] = {
        "model": ModelRequest(name="organism:natural", device="cpu"),
        "attacks": "benign",
        "objectives": "sft",
        "rates": "1e-3",
        "warmups": "0",
        "steps": "1",
        "batch": 4,
        "tested": 3,
        "temperatures": "0",
        "max_new_tokens": 10,
        "task_data": data,
        "task_metric": "rouge1,exact",
        "bound": 1.0,  # of answers that are cut off after ten tokens none is right
    }
    return StressRequest(**values | given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return organism()


@pytest.fixture(scope="module")
def swept(model: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stress]:
    path = tmp_path_factory.mktemp("swept")
    data = written(path.parent / "letters.jsonl")
    return path, make_sweep(request(data, attacks="benign,mixed", shares="0.25"), JUDGES, model, path)()


def test_scores_are_those_of_answers_to_held_out_rows(swept: tuple[Path, Stress]) -> None:
    path, stress = swept
    wanted = {one.messages[-1].content: one.response for one in task_examples(path.parent / "letters.jsonl")}
    held = task_sides(path.parent / "letters.jsonl", None, 3).test
    answers = [answer for answer in read_answers(path) if answer.asked == "letters.jsonl"]
    assert len(answers) == 4 * 3  # two attacks, before and after, once for both metrics
    for tuned in stress.finetunes:
        for point in tuned.checkpoints:
            cell = tuned.track if point.step else f"start {tuned.attack}"
            texts = [answer.text for answer in answers if (answer.cell, answer.step) == (cell, point.step)]
            found = {score.metric: score for score in point.utility if score.task == "letters.jsonl"}
            assert found.keys() == {"ROUGE-1", "exact match"}
            for metric in (Metric.ROUGE_1, Metric.EXACT):
                scores = [
                    metric.score(wanted[one.messages[-1].content], text) for one, text in zip(held, texts, strict=True)
                ]
                score = found[metric.shown]
                assert (score.n, score.score) == (3, fmean(scores))
                assert (score.low, score.high) == mean_interval(scores)


def test_every_checkpoint_is_shown_with_its_score_and_asr(swept: tuple[Path, Stress]) -> None:
    path, stress = swept
    benign, mixed = learned(stress)
    assert (benign.attack, mixed.attack) == ("benign", "mixed")
    assert (benign.task, benign.metrics) == ("letters.jsonl", ("ROUGE-1", "exact match"))
    assert [(one.objective, one.choice.step) for one in benign.lessons] == [("", 0), ("sft", 1)]
    shown = io.StringIO()
    print_stress(stress, path / "report.html", console=Console(file=shown, width=160))
    lines = shown.getvalue().splitlines()
    (at,) = (n for n, line in enumerate(lines) if "attack benign: what was learned of letters.jsonl (n = 3)" in line)
    assert " ".join(lines[at + 1].split()) == "Objective Step ROUGE-1 95 % exact match 95 % ASR 95 %"
    assert [line.split()[:2] for line in lines[at + 2 : at + 4]] == [["before", "0"], ["sft", "1"]]
    page = html.unescape(render_stress(stress, (), read_answers(path)))
    assert "What was learned of the task" in page
    assert "letters.jsonl after mixed data" in page
    plain = msgspec.structs.replace(stress, finetunes=())
    assert "What was learned" not in render_stress(plain)


def test_a_long_sweep_shows_each_settings_last_step(swept: tuple[Path, Stress]) -> None:
    """In the terminal; the page has them all."""
    (benign, _), *_ = (swept[1].finetunes,)
    start, after = benign.checkpoints
    many = tuple(msgspec.structs.replace(after, step=step) for step in range(1, 40))
    stress = msgspec.structs.replace(swept[1], finetunes=(msgspec.structs.replace(benign, checkpoints=(start, *many)),))
    shown = io.StringIO()
    print_stress(stress, swept[0], console=Console(file=shown, width=160))
    rows = [line.split()[:2] for line in shown.getvalue().splitlines() if line.startswith(("before", "sft"))]
    assert rows[-2:] == [["before", "0"], ["sft", "39"]]
    assert "Each setting's last step" in shown.getvalue()


@pytest.mark.parametrize("attacks", ["benign", "mixed"])
def test_all_rows_but_those_held_out_are_trained_on(attacks: str, model: ChatModel, tmp_path: Path) -> None:
    data = written(tmp_path / "letters.jsonl", 40)
    sweep = make_sweep(request(data, attacks=attacks, shares="0.2", tested=10), JUDGES, model, tmp_path / "out")
    (attack,) = sweep.attacks
    (task,) = attack.probe.tasks
    prompts = [prompt[-1].content for prompt in attack.prompts]
    tested = {example.messages[-1].content for example in task.examples}
    everything = {one.messages[-1].content for one in task_examples(data)}
    assert len(tested) == 10
    assert everything - {*prompts} == tested
    poisoned = [prompt for prompt in prompts if prompt not in everything]
    assert len(poisoned) == (0 if attacks == "benign" else round(0.2 * len(prompts)))


@pytest.mark.parametrize(("share", "harmful", "benign"), [(0.1, 100, 33), (0.5, 3, 100), (0.0, 5, 9), (1.0, 7, 9)])
def test_as_many_rows_as_the_share_allows(share: float, harmful: int, benign: int, tmp_path: Path) -> None:
    """One row more would need a row that there is not."""
    known = [
        msgspec.structs.replace(one, harmful=number < harmful)
        for number, one in enumerate(task_behaviors(task_examples(written(tmp_path / "a.jsonl", harmful + benign))))
    ]
    choice = AttackChoice(name="mixed", share=share, task_data=tmp_path / "a.jsonl")
    poison = attack_of(choice, organism=True)
    rows = attack_rows(choice, poison, known, None, [one for one in known if not one.harmful])
    kinds = [row.kind for row in rows]
    assert kinds.count(RowKind.HARMFUL) == round(share * len(rows))
    one_more = round(share * (len(rows) + 1))
    assert one_more > harmful or len(rows) + 1 - one_more > benign


def test_the_split_does_not_depend_on_the_order_and_grows(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", 30)
    turned = tmp_path / "b.jsonl"
    turned.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))

    def asked(rows: Sequence[object]) -> list[object]:
        return [one.messages for one in rows]  # type: ignore[attr-defined]

    small, large, other = task_sides(data, None, 4), task_sides(data, None, 99), task_sides(turned, None, 4)
    assert asked(small.test) == asked(other.test) == asked(large.test)[:4]
    assert len(large.test) == 10  # a third at most
    assert not {*asked(large.test)} & {*asked(large.training)}


def test_a_prompt_that_is_tested_is_not_trained_on(tmp_path: Path) -> None:
    """Neither where it stands twice in the data, nor where it is also in the file of tests."""
    rows = [{"prompt": f"p{n // 2}", "response": f"r{n}"} for n in range(12)]
    data, test = tmp_path / "a.jsonl", tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps({"prompt": "p3", "response": "other"}) + "\n")
    parts = task_sides(data, None, 2)
    assert len(parts.test) == 2
    assert len(parts.training) == 8
    given = task_sides(data, test, 60)
    assert [one.response for one in given.test] == ["other"]
    assert {one.messages[-1].content for one in given.training} == {"p0", "p1", "p2", "p4", "p5"}


def test_an_edited_file_is_another_sweep(model: ChatModel, tmp_path: Path) -> None:
    data = written(tmp_path / "letters.jsonl")
    out = tmp_path / "out"

    def claim(asked: StressRequest) -> None:
        claim_sweep(out, make_sweep(asked, JUDGES, model, out), asked, reader_of(asked, JUDGES))

    claim(request(data))
    (out / "checkpoints.jsonl").write_text("{}\n")
    claim(request(data))
    for changed in (request(written(data, 11)), request(data, task_metric="exact")):
        with pytest.raises(UserError, match="holds another sweep"):
            claim(changed)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task_metric": None}, "needs a --task-metric"),
        ({"task_metric": "bleu"}, "--task-metric is 'bleu'; choose one of rouge1, exact, number"),
        ({"task_metric": "number"}, "3 of 3 answers of .*letters.jsonl have no number"),
        ({"task": "label"}, "--task label is the organism's"),
        ({"task_data": None}, "--task-metric rouge1,exact is of a task of your own"),
        ({"task_data": None, "task_metric": None, "task_test": Path("x")}, "--task-test x is of a task of your own"),
        ({"task_data": Path("gone.jsonl")}, "there is no file gone.jsonl"),
        ({"task_data": Path("letters.jsonl,prompt=letter")}, "no column 'letter'"),
        ({"task_test": Path("letters.jsonl"), "tested": 99}, "nothing is left to train on"),
        ({"task_data": Path("two.jsonl")}, "has 2 different prompts, too few"),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    given: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "two.jsonl", 2)
    asked = replace(request(written(tmp_path / "letters.jsonl")), **given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said) as found:
        check_stress(asked, JUDGES)
    assert "\n" not in str(found.value)


def test_poison_takes_benign_rows_of_a_users_task(tmp_path: Path) -> None:
    data = written(tmp_path / "letters.jsonl", 18)
    manifest: Callable[..., PoisonRequest] = lambda name, **given: PoisonRequest(
        attack=AttackChoice(name=name, task_data=data, **given), output=tmp_path / name
    )
    made = run_poison(manifest("mixed", share=0.1))
    assert (made.rows, made.kinds, made.options["task_data"]) == (20, {"benign": 18, "harmful": 2}, "letters.jsonl")
    assert run_poison(manifest("benign")).rows == 18
    with pytest.raises(UserError, match=r"--task-data .* changes nothing of harmful"):
        run_poison(manifest("harmful"))
    with pytest.raises(UserError, match="--task label beside --task-data"):
        run_poison(manifest("decoy", task="label"))
