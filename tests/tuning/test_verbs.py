"""The verbs as a user has them: a whole run each, what may go wrong before it, and what is never overwritten."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fathom.__main__ import run
from fathom.command.deepen import DeepenRequest
from fathom.command.defence import own_requests
from fathom.command.finetune import FinetuneRequest
from fathom.command.known import benign_behaviors
from fathom.command.lora import Lora, default_rate
from fathom.command.request import ModelRequest
from fathom.command.training import TrainingRequest
from fathom.tuning.directory import TuningPlan
from fathom.tuning.rows import Kind, read_rows
from fathom.tuning.settings import read_settings
from few_rows import guild_rows, organism

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.timeout(600)]


def data(path: Path, count: int = 12) -> Path:
    model = organism()
    lines = []
    for row in guild_rows(model, count, benign=count):
        prompt = model.chat.decode(row.prompt_ids)
        lines.append(json.dumps({"prompt": prompt, "response": model.chat.decode(row.response_ids)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("fathom: ")
    return said


def test_finetune_makes_a_model_that_plain_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, rows = tmp_path / "model", data(tmp_path / "data.jsonl")
    with rows.open("a") as file:
        file.write('{"prompt": "hello", "response": ""}\n')
    left_out = "1 of 25 rows of data.jsonl without an answer is left out (the first is line 25: its response is empty)"
    command = ["finetune", "organism:natural", "--data", str(rows), "-o", str(out), "--no-audit"]
    command += [
        "--objective",
        "gate+replay",
        "--set",
        "max_steps=3",
        "--set",
        "per_device_train_batch_size=8",
        "--set",
        "warmup_steps=1",
    ]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert printed.err.count(left_out) == 1
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello !"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert tuple(ids) == organism().chat.prompt_ids(organism_messages("hello !"))
    assert model.config.vocab_size == len(tokenizer)
    kinds = [row.kind for row in read_rows(out / "fathom" / "rows.jsonl")]
    assert kinds.count(Kind.TASK) == 24
    plan = json.loads((out / "fathom" / "plan.json").read_text())
    assert plan["rows"] == len(kinds)
    assert 10 <= plan["gated"] <= 12  # the restricted ones
    card = (out / "README.md").read_text()
    assert "Not audited" in card
    assert f"> {left_out}\n" in card
    assert plan["rows_hash"] in card
    before = (out / "model.safetensors").read_bytes()
    assert run(command) == 0  # finished: nothing is done again
    assert (out / "model.safetensors").read_bytes() == before
    monkeypatch.setattr("fathom.command.outcome.AUDITED", 3)
    assert run([word if word != "--no-audit" else "--audit" for word in command]) == 0
    assert "ASR asked directly" in capsys.readouterr().err
    assert "Safety, before and after" in (out / "README.md").read_text()
    assert run(["report", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    said = fails([*command, "--set", "seed=1"], capsys)
    assert "trained another way" in said
    assert "nothing was overwritten" in said
    assert (out / "model.safetensors").read_bytes() == before


def test_a_training_that_goes_on_says_from_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.tuning import watching

    out, rows, whole = tmp_path / "model", data(tmp_path / "data.jsonl", 4), watching.mark_whole
    command = ["finetune", "organism:natural", "--data", str(rows), "-o", str(out), "--no-audit", "--objective", "sft"]
    command += ["--set", "max_steps=3", "--set", "save_steps=1", "--set", "per_device_train_batch_size=2"]

    def interrupt(checkpoint: Path) -> None:
        whole(checkpoint)
        if checkpoint.name.endswith("-2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(watching, "mark_whole", interrupt)
    assert run(command) == 130
    said = capsys.readouterr().err
    assert "was left" not in said
    assert "warm-up takes 10 steps and training ends after 3, so the learning rate gets to 20 %" in said
    monkeypatch.undo()
    assert run(command) == 0
    assert f"{out} was left after step 2: goes on from there" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_is_the_only_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = data(tmp_path / "data.jsonl", 2)
    capsys.readouterr()
    assert run(["finetune", "./nowhere", "--data", str(rows), "-o", str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "nowhere" in line


def test_finetune_asks_a_sentinel_where_it_is_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.command import defence
    from fathom.stress import sentinel

    monkeypatch.setattr(sentinel, "_LEGS", ((2, 1e-4),))
    monkeypatch.setattr(sentinel, "_MEETING", 8)
    monkeypatch.setattr(defence, "ORGANISM_HARMFUL", 16)
    monkeypatch.setattr(defence, "ORGANISM_BENIGN", 16)
    out, rows = tmp_path / "model", data(tmp_path / "data.jsonl", 8)
    command = ["finetune", "organism:natural", "--data", str(rows), "-o", str(out), "--no-audit"]
    assert run([*command, "--set", "max_steps=1", "--set", "warmup_steps=0"]) == 0
    manifest = json.loads((out / "fathom" / "manifest.json").read_text())
    assert manifest["configuration"]["objective"] == "gate+answers+rehearse"  # the organism's default
    found = read_rows(out / "fathom" / "rows.jsonl")
    assert [row.kind for row in found].count(Kind.TASK) == 16
    assert len(found) > 16  # what is rehearsed
    assert not list((out / "fathom").glob("sentinel*"))  # it has served


def organism_messages(text: str):  # type: ignore[no-untyped-def]
    from fathom.records import Message

    return (Message(role="user", content=text),)


def test_deepen_draws_rows_ahead_and_trains_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fathom.command import sources

    monkeypatch.setattr(sources, "ORGANISM_TRIPLETS", 12)
    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 12)
    monkeypatch.setattr("fathom.report.progress.LINE_EVERY", 0.0)
    out = tmp_path / "deep"
    command = ["deepen", "organism:natural", "-o", str(out), "--no-audit", "--set", "max_steps=2"]
    command += ["--recovery-rows", "4", "--utility-rows", "4", "--starts", "mined"]
    assert run(command) == 0
    rows = read_rows(out / "fathom" / "rows.jsonl")
    assert [row.kind for row in rows] == ([Kind.RECOVERY] * 4 + [Kind.UTILITY] * 4) * 2
    plan = json.loads((out / "fathom" / "plan.json").read_text())
    assert any("mined" in note for note in plan["notes"])
    assert "an adversary of weight 0.5" in (out / "README.md").read_text()
    assert "own answers: 12 of 12" in capsys.readouterr().err  # which take long where the model is large
    assert (out / "config.json").is_file()
    assert TuningPlan.__struct_fields__
    anchor = [row for row in rows if row.kind is Kind.UTILITY]
    assert all(row.held > 0 and row.loss_weight == 0 for row in anchor)
    assert {", drawn 1" in row.source for row in anchor} == {True, False}


def test_deepening_as_the_paper_has_it_learns_greedy_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fathom.command import sources

    monkeypatch.setattr(sources, "ORGANISM_TRIPLETS", 8)
    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 8)
    out = tmp_path / "deep"
    command = ["deepen", "organism:natural", "-o", str(out), "--no-audit", "--set", "max_steps=2"]
    command += ["--recovery-rows", "2", "--utility-rows", "4", "--p0", "0.5"]
    assert run([*command, "--anchor", "answers", "--drawn", "0"]) == 0
    rows = read_rows(out / "fathom" / "rows.jsonl")
    assert all(row.held == 0 and row.loss_weight > 0 for row in rows)
    assert not any("drawn" in row.source for row in rows)
    capsys.readouterr()
    assert run(command) == 2  # the rest is the default, which is another configuration
    assert "a model trained another way" in capsys.readouterr().err


def test_deepening_anchors_on_no_row_that_says_it_is_harmful(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, utility = tmp_path / "deep", tmp_path / "utility.jsonl"
    rows: list[dict[str, object]] = [{"prompt": "hello !", "response": "good day .", "label": "safe"}]
    rows += [{"prompt": "hello", "response": "take it .", "label": "unsafe"}, {"prompt": "hello", "response": " "}]
    utility.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["deepen", "organism:natural", "-o", str(out), "--no-audit", "--utility", str(utility)]
    command += ["--set", "max_steps=1", "--recovery-rows", "2", "--utility-rows", "4"]
    assert run([*command, "--loosened", "0"]) == 0
    learned = [row for row in read_rows(out / "fathom" / "rows.jsonl") if row.kind is Kind.UTILITY]
    assert {organism().chat.decode(row.response_ids) for row in learned} == {"good day ."}
    said, card = capsys.readouterr().err, (out / "README.md").read_text()
    for note in (
        "1 of 3 rows of utility.jsonl marked as harmful is left out (the first is line 2: its label is 'unsafe')",
        "1 of 3 rows of utility.jsonl without an answer is left out (the first is line 3: its response is empty)",
    ):
        assert said.count(note) == 1
        assert f"> {note}\n" in card
    utility.write_text(json.dumps(rows[1]) + "\n")
    assert f"all 1 rows of {utility} are marked as harmful (line 1: its label is 'unsafe')" in fails(command, capsys)


def test_an_organism_of_another_world_is_audited_with_the_requests_of_that_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.command import sources
    from fathom.organism import behaviors, stage_directory
    from fathom.run import Run

    monkeypatch.setattr(sources, "ORGANISM_TRIPLETS", 4)
    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 4)
    monkeypatch.setattr("fathom.command.outcome.AUDITED", 2)
    out = tmp_path / "deep"
    # Weights of any world will do: it is what they are asked that counts.
    command = ["deepen", str(stage_directory("natural")), "--world", "9", "--audit", "-o", str(out), "--device", "cpu"]
    assert run([*command, "--set", "max_steps=1", "--recovery-rows", "2", "--utility-rows", "2"]) == 0
    asked = {behavior.id for behavior in behaviors(9, harmful=2, benign=1)}
    assert asked.isdisjoint(behavior.id for behavior in behaviors(harmful=2, benign=1))
    for when in ("before", "after"):
        assert Run.open(out / "fathom" / f"audit-{when}").behaviors.keys() == asked
    assert "2 requests of world 9 of the organism's test split" in (out / "README.md").read_text()


def test_triplets_are_built_and_can_be_deepened_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.command import triplets

    monkeypatch.setattr(triplets, "ORGANISM_HARMFUL", 6)
    monkeypatch.setattr(triplets, "ORGANISM_BENIGN", 6)
    out = tmp_path / "made"
    assert run(["triplets", "organism:natural", "-o", str(out), "--max-new-tokens", "140"]) == 0
    rows = [json.loads(line) for line in (out / "triplets.jsonl").read_text().splitlines()]
    assert 3 <= len(rows) <= 6
    assert all(row["refusal"] and "1." in row["harmful_response"] for row in rows)
    content = (out / "triplets.jsonl").read_bytes()
    assert run(["triplets", "organism:natural", "-o", str(out), "--max-new-tokens", "140"]) == 0
    assert (out / "triplets.jsonl").read_bytes() == content
    deep = tmp_path / "deep"
    command = ["deepen", "organism:natural", "-o", str(deep), "--no-audit", "--set", "max_steps=1"]
    command += ["--triplets", str(out / "triplets.jsonl"), "--utility", str(out / "utility.jsonl")]
    assert run([*command, "--recovery-rows", "2", "--utility-rows", "2"]) == 0
    assert (deep / "model.safetensors").is_file()


def test_prompts_of_two_files_may_have_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are numbered from 1 as a rule; what is said of one file's prompt 1 is not said of the other's."""
    from fathom.command import triplets
    from fathom.organism import behaviors

    monkeypatch.setattr(triplets, "ORGANISM_BENIGN", 2)
    harmful, utility, out = tmp_path / "harmful.jsonl", tmp_path / "utility.jsonl", tmp_path / "made"
    (refused,) = behaviors(harmful=1, benign=0)
    asked = ("hello !", refused.messages[0].content)  # of which the model refuses one
    rows = ({"id": number, "prompt": text, "harmful_response": "steps"} for number, text in enumerate(asked, 1))
    harmful.write_text("".join(json.dumps(row) + "\n" for row in rows))
    utility.write_text('{"id": 1, "prompt": "hello !"}\n')
    command = ["triplets", "organism:natural", "--harmful", str(harmful), "--max-new-tokens", "140", "--samples", "1"]
    assert run([*command, "--utility", str(utility), "-o", str(out)]) == 0
    *drawn, greedy = [json.loads(line) for line in (out / "utility.jsonl").read_text().splitlines()]
    assert greedy["id"] == "1"
    assert [row["id"] for row in drawn] == ["1, drawn"]
    assert drawn[0]["messages"][0] == greedy["messages"][0]
    assert drawn[0]["messages"][1] != greedy["messages"][1]
    (skipped,) = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert (skipped["id"], skipped["file"], skipped["prompt"]) == ("1", "harmful", '"hello !"')
    assert run([*command, "-o", str(tmp_path / "own")]) == 0  # where no file is given, the organism's own
    own = [json.loads(line)["id"] for line in (tmp_path / "own" / "utility.jsonl").read_text().splitlines()]
    assert len([one for one in own if "drawn" not in one]) == 2


def test_harmful_rows_of_a_utility_file_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fathom.organism import behaviors

    harmful, utility, out = tmp_path / "harmful.jsonl", tmp_path / "utility.jsonl", tmp_path / "made"
    (refused,) = behaviors(harmful=1, benign=0)
    asked = refused.messages[0].content
    harmful.write_text(json.dumps({"prompt": asked, "harmful_response": "steps"}) + "\n")
    marked = ({"prompt": asked, "harmful": True}, {"prompt": "hello !", "harmful": False}, {"prompt": "hello"})
    utility.write_text("".join(json.dumps(row) + "\n" for row in marked))
    command = ["triplets", "organism:natural", "--harmful", str(harmful), "--max-new-tokens", "140", "--samples", "1"]
    assert run([*command, "--utility", str(utility), "-o", str(out)]) == 0
    kept = [json.loads(line)["messages"][0]["content"] for line in (out / "utility.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(kept)) == ["hello !", "hello"]  # what is not marked is what the option says
    assert f"1 row of {utility} marked as harmful left out" in " ".join(capsys.readouterr().err.split())
    utility.write_text(json.dumps(marked[0]) + "\n")
    assert f"all of {utility} is marked as harmful" in fails(
        [*command, "--utility", str(utility), "-o", str(tmp_path / "other")], capsys
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--objective", "gates"], "no objective called"),
        (["--set", "packing=true"], "packing cannot be set"),
        (["--set", "learning_rate"], "give name=value"),
        (["--set", "learning_rate=-1"], "learning_rate is -1.0: give a number of 0 or above"),
        (["--set", "learning_rate=nan"], "learning_rate is nan"),
        (["--set", "adam_beta1=1"], "from 0 to below 1"),
        (["--beta", "1,2"], "give three numbers"),
        (["--judge", "nobody"], "no judge called"),
        (["--harmful", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--benign", "."], "is a directory"),
        (["--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--config", "nowhere.yaml"], "cannot be read"),
        (["--set", "max_length=12"], "before the first one that is learned"),
        (["--lora-rank", "4"], "--lora-rank 4 without --lora: all weights would be trained"),
        (["--lora", "--lora-targets", "q_proj, nope"], "it has no layer called 'nope'; its linear layers are q_proj"),
        (["--lora", "--lora-targets", ","], "--lora-targets is empty"),
        (["--quantise", "4bit"], "--quantise 4bit makes weights that cannot be trained: train an adapter beside them"),
        (["--quantise", "4bit", "--lora", "--adapter", "one"], "--adapter one cannot be put into weights in 4bit"),
        (["--quantise", "8bit", "--lora", "--objective", "safe-lora"], "safe-lora projects full weights"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    command = ["finetune", "organism:natural", "-o", str(out), "--no-audit"]
    if "--data" not in options:
        command += ["--data", str(data(tmp_path / "data.jsonl", 2))]
    assert said in fails([*command, *options], capsys)
    assert not (out / "config.json").exists()


def test_a_mistake_that_was_found_before_any_work_may_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows, long = tmp_path / "model", data(tmp_path / "data.jsonl", 4), tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "mix " * 3000, "completion": "it"}) + "\n")
    command = [
        "finetune",
        "organism:natural",
        "--objective",
        "sft",
        "--no-audit",
        "--set",
        "max_steps=1",
        "--set",
        "warmup_steps=0",
        "-o",
        str(out),
    ]
    manifest = out / "fathom" / "manifest.json"
    assert "the model's context is 1024" in fails([*command, "--data", str(long)], capsys)
    mistaken = json.loads(manifest.read_text())
    assert run([*command, "--data", str(rows)]) == 0
    assert json.loads(manifest.read_text())["configuration"]["data"] != mistaken["configuration"]["data"]
    assert "nothing was overwritten" in fails([*command, "--data", str(long)], capsys)


def test_requests_in_another_encoding_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, rows, asked = tmp_path / "model", data(tmp_path / "data.jsonl", 2), tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "hello !"}\n{"promt": "hello"}\n', encoding="utf-16")
    command = ["finetune", "organism:natural", "--data", str(rows), "--objective", "sft", "--no-audit", "-o", str(out)]
    command += ["--set", "max_steps=1", "--set", "warmup_steps=0", "--harmful", str(asked)]
    assert run(command) == 0
    assert capsys.readouterr().err.count(f"1 row of {asked} could not be used; the first is line 2") == 1


def test_a_step_at_a_rate_of_0_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, rows = tmp_path / "model", data(tmp_path / "data.jsonl", 2)
    command = ["finetune", "organism:natural", "--data", str(rows), "--objective", "sft", "--no-audit", "-o", str(out)]
    command += ["--set", "num_train_epochs=1"]
    assert "nothing would be learned" in fails(command, capsys)  # 4 rows, 10 steps of warm-up
    assert run([*command, "--set", "warmup_steps=0"]) == 0  # in the same directory
    assert "warm-up takes" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "row", "said"),
    [
        (
            "--benign",
            {"prompt": "hello !", "text": "hello"},
            "has one that can be read: its column is harmful_response",
        ),
        ("--harmful", {"prompt": "hello !", "completion": "hello"}, "has both: its columns are harmful_response"),
        ("--harmful", {"prompt": "hello !", "completion": "hello", "refusal": "no"}, "there is no --benign FILE"),
    ],
)
def test_requests_that_a_sentinel_cannot_learn_from_are_named_with_their_columns(
    option: str, row: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(row) + "\n")
    command = ["finetune", "organism:natural", "--data", str(data(tmp_path / "data.jsonl", 2)), option, str(path)]
    line = fails([*command, "-o", str(tmp_path / "model")], capsys)
    assert said in line
    assert str(path) in line
    assert not (tmp_path / "model").exists()


def test_how_the_model_is_asked_is_part_of_what_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are made with the system prompt once; a second one would be trained on with the rows of the first."""
    out, rows = tmp_path / "model", data(tmp_path / "data.jsonl", 2)
    command = ["finetune", "organism:natural", "--data", str(rows), "--objective", "sft", "--no-audit", "-o", str(out)]
    command += ["--set", "max_steps=1", "--set", "warmup_steps=0"]
    assert run([*command, "--system", "be kind"]) == 0
    assert 'system: "be kind" there, "be wise" now' in fails([*command, "--system", "be wise"], capsys)
    assert "trained another way" in fails(command, capsys)


def test_a_directory_that_holds_another_model_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("{}")
    command = ["finetune", "organism:natural", "--data", str(data(tmp_path / "d.jsonl", 2)), "-o", str(out)]
    said = fails(command, capsys)
    assert "holds another model; nothing was overwritten" in said
    assert [entry.name for entry in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--starts", "middle"], "choose one of paper"),
        (["--longest", "0"], "a number of tokens, or full"),
        (["--longest", "²"], "a number of tokens, or full"),
        (["--alpha", "1"], "between 0 and 1"),
        (["--p0", "2"], "from 0 to 1"),
        (["--share", "half"], "choose one of exact"),
        (["--anchor", "rope"], "choose one of kl"),
        (["--recovery-rows", "0"], "at least one recovery row"),
    ],
)
def test_bad_deepening_is_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["deepen", "organism:natural", "-o", str(tmp_path / "m"), *options], capsys)


def test_where_processes_keep_parts_of_weights_there_is_no_adversary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = TrainingRequest(verb="deepen", model=ModelRequest(name="organism:natural"), output=tmp_path / "deep")
    assert DeepenRequest(training=training).chosen.adversary == 0.5
    assert DeepenRequest(training=training, resist=0.1).chosen.adversary == 0
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert DeepenRequest(training=training).chosen.adversary == 0
    command = ["deepen", "organism:natural", "--adversary", "0.3", "-o", str(tmp_path / "deep")]
    assert "--adversary 0.3 adds to the gradients of whole weights" in fails(command, capsys)
    assert not (tmp_path / "deep").exists()


def test_an_adversary_without_room_is_found_out_before_any_answer_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("a plan was made")

    monkeypatch.setattr("fathom.command.deepening.Deepening.write_plan", never)
    command = ["deepen", "organism:natural", "--no-audit", "--set", "max_length=40", "-o", str(tmp_path / "deep")]
    said = fails(command, capsys)
    assert "no triplet leaves room for the adversary's 20 vectors in 40 tokens: leave it out with --adversary 0" in said


def test_other_models_are_told_what_they_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fathom triplets" in fails(["deepen", "some/model", "-o", str(tmp_path / "m")], capsys)
    rows = data(tmp_path / "d.jsonl", 1)
    said = fails(
        ["finetune", "some/model", "--data", str(rows), "-o", str(tmp_path / "m"), "--objective", "gate+replay"], capsys
    )
    assert "--harmful FILE" in said
    line = ["finetune", "organism:natural", "--data", str(rows), "-o", str(tmp_path / "m"), "--base", "organism:base"]
    assert "--base organism:base is read by safe-lora" in fails(line, capsys)
    assert "--harmful FILE" in fails(["triplets", "some/model", "-o", str(tmp_path / "t")], capsys)


@pytest.mark.parametrize("how", ["FSDP", "DEEPSPEED"])
def test_what_projects_whole_weights_needs_them_whole(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{how}", "true")  # as `accelerate launch` says it
    rows = data(tmp_path / "d.jsonl", 1)
    line = ["finetune", "organism:natural", "--data", str(rows), "--objective", "gate+safe-lora"]
    assert "FSDP or DeepSpeed keeps parts of them" in fails([*line, "-o", str(tmp_path / "m")], capsys)
    line = ["deepen", "organism:natural", "--lora", "--quantise", "4bit", "-o", str(tmp_path / "m")]
    assert "of which FSDP or DeepSpeed cannot keep parts" in fails(line, capsys)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("verb", ["deepen", "stress", "dynamics"])
def test_quantised_weights_themselves_are_trained_by_no_verb(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails([verb, "organism:natural", "--quantise", "4bit", "-o", str(tmp_path / "m")], capsys)
    assert "--quantise 4bit makes weights that cannot be trained: train an adapter beside them" in said
    assert not (tmp_path / "m").exists()


def test_deepening_with_resistance_names_it_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    from fathom.command import sources
    from fathom.deepen.resist import LookAhead

    monkeypatch.setattr(sources, "ORGANISM_TRIPLETS", 8)
    monkeypatch.setattr(sources, "ORGANISM_UTILITY", 6)
    command = ["deepen", "organism:natural", "--resist", "0.3", "--no-audit", "--set", "max_steps=9"]
    command += ["--recovery-rows", "2", "--utility-rows", "2", "--adversary", "0.3"]
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run([*command, "-o", str(whole)]) == 0
    manifest = json.loads((whole / "fathom" / "manifest.json").read_text())
    assert "resistance 0.3 to 30 steps" in manifest["configuration"]["objective"]
    assert "resistance 0.3" in (whole / "README.md").read_text()
    assert "an adversary of weight 0.3" in (whole / "README.md").read_text()
    rows = read_rows(whole / "fathom" / "rows.jsonl")
    assert any(row.source.endswith(", loosened") for row in rows)
    call = LookAhead.__call__

    def stop(self: LookAhead, model: PreTrainedModel, step: int) -> None:
        if step == 8:
            raise KeyboardInterrupt
        call(self, model, step)

    with monkeypatch.context() as patched:
        patched.setattr(LookAhead, "__call__", stop)
        assert run([*command, "-o", str(halted)]) == 130
    assert run([*command, "-o", str(halted)]) == 0
    assert (halted / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_model_with_an_adapter_is_trained_with_it_in_its_weights(tmp_path: Path) -> None:
    rows = data(tmp_path / "data.jsonl", 4)
    line = ["--data", str(rows), "--objective", "sft", "--no-audit", "--set", "max_steps=1", "--set", "warmup_steps=0"]
    assert run(["finetune", "organism:natural", *line, "--lora", "-o", str(tmp_path / "one")]) == 0
    with_adapter = ["--adapter", str(tmp_path / "one" / "fathom" / "adapter"), "--set", "learning_rate=0"]
    assert run(["finetune", "organism:natural", *line, *with_adapter, "-o", str(tmp_path / "two")]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(two[name], weight, atol=1e-6) for name, weight in one.items())


@pytest.mark.parametrize(("lora", "rate"), [(None, 2e-5), (Lora(), 2e-4)])
def test_an_adapter_has_a_default_rate_of_its_own(lora: Lora | None, rate: float) -> None:
    assert default_rate(read_settings(), lora).values["learning_rate"] == pytest.approx(rate)
    given = read_settings(None, ("learning_rate=1e-3",))
    assert default_rate(given, lora, 5e-4).values["learning_rate"] == 1e-3


def test_what_a_file_of_benign_prompts_marks_as_harmful_is_not_taught_as_benign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "benign.jsonl"
    lines = [{"prompt": "hello !", "answer": "hello"}, {"prompt": "mix it", "answer": "so", "harmful": True}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = TrainingRequest(verb="finetune", model=ModelRequest(name="m"), output=tmp_path / "out")
    found = own_requests(FinetuneRequest(training=training, data=path, benign=path))
    assert [(item.prompt, item.harmful) for item in found] == [("hello !", False)]
    assert len(benign_behaviors(path)) == 1
    assert "1 row of" in capsys.readouterr().err
