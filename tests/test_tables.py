"""Parquet files, saved data sets and data sets of the hub hold the same rows as a JSONL file; bad ones are one line."""

import csv
import gzip
import json
import re

import datasets
import pytest

from fathom.behaviors import file_rows, load_behaviors
from fathom.behaviors.source import source_name
from fathom.command.known import file_hash
from fathom.errors import UserError
from fathom.tuning.examples import load_examples

ROWS = [
    {"prompt": "Brew it.", "harmful_response": "First, …", "refusal": "No.", "harmful": True},
    {"prompt": "Sweep the floor?", "harmful_response": "With a broom.", "refusal": None, "harmful": False},
]
CARD = "---\nconfigs:\n- config_name: x\n  data_files: a.parquet\n- config_name: y\n  data_files: b.parquet\n---\n"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """In a directory of its own, where `org/name` is found before the hub is asked, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def dataset():
    return datasets.Dataset.from_list(ROWS)


def write(dataset, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(str(path))


def as_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_every_form_holds_the_same_behaviors(alone, dataset):
    expected = load_behaviors(as_lines(alone / "rows.jsonl"))
    assert len(expected.behaviors) == 2
    write(dataset, alone / "rows.parquet")
    write(dataset, alone / "org" / "name" / "train.parquet")
    dataset.save_to_disk(str(alone / "saved"))
    (alone / "rows.jsonl.gz").write_bytes(gzip.compress((alone / "rows.jsonl").read_bytes()))
    for given in (alone / "rows.parquet", alone / "saved", alone / "rows.jsonl.gz", alone.__class__("hf:org/name")):
        assert load_behaviors(given) == expected
        assert [row.line for row in file_rows(given)] == [1, 2]
        assert file_hash(given) == file_hash(given)


def test_conversations_and_lists_come_through(alone):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    write(datasets.Dataset.from_list([{"messages": turns}]), alone / "chats.parquet")
    (example,) = load_examples(alone / "chats.parquet").examples
    assert (example.messages[0].content, example.response) == ("Hello", "Good day.")


def test_splits_and_configurations_are_told(alone, dataset):
    for split in ("train", "test"):
        write(dataset, alone / "org" / "splits" / f"{split}.parquet")
    for part in ("a", "b"):
        write(dataset, alone / "org" / "parts" / f"{part}.parquet")
    (alone / "org" / "parts" / "README.md").write_text(CARD)
    hub = alone.__class__
    with pytest.raises(UserError, match=r"hf:org/splits has the splits test, train: .* hf:org/splits,split=test"):
        load_behaviors(hub("hf:org/splits"))
    assert load_behaviors(hub("hf:org/splits,split=test")).behaviors
    with pytest.raises(UserError, match=r"hf:org/parts has the configurations x, y: .* hf:org/parts,config=x"):
        load_behaviors(hub("hf:org/parts"))
    assert load_behaviors(hub("hf:org/parts,config=y")).behaviors
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(str(alone / "dict"))
    with pytest.raises(UserError, match=r"several splits: give one of .*dict/train"):
        load_behaviors(alone / "dict")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hf:", "give hf:ORG/NAME"),
        ("hf:org/name,splits=x", "'splits=x' is not understood"),
        ("hf:org/name,split=x,split=y", "'split=y' is not understood"),
        ("hf:org/nowhere", "hf:org/nowhere cannot be read"),
        ("bad.parquet", "is no Parquet file that can be read"),
        ("bad.jsonl.gz", "is not compressed by gzip, or broken"),
        ("broken/", "is no saved data set that can be read"),
        ("gone.parquet", "there is no file"),
    ],
)
def test_what_cannot_be_read_is_one_line(alone, given, said):
    for name in ("bad.parquet", "bad.jsonl.gz"):
        (alone / name).write_bytes(b"nonsense")
    (alone / "broken").mkdir()
    (alone / "broken" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=said) as found:
        load_behaviors(alone.__class__(given))
    assert "\n" not in str(found.value)


TALKS = [
    {"id": "1", "dialogue": "A: soup?\nB: yes", "summary": "They eat.", "question": "Who?", "context": "a kitchen"},
    {"id": "2", "dialogue": "A: {no}\nB: ok", "summary": "They do not.", "question": "Why?", "context": "a hall"},
]


def as_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(TALKS[0]))
        writer.writeheader()
        writer.writerows(TALKS)


def test_columns_of_other_names_are_named_wherever_rows_are_taken(alone):
    talks = datasets.Dataset.from_list(TALKS)
    write(talks, alone / "talks.parquet")
    write(talks, alone / "org" / "talks" / "train.parquet")
    as_csv(alone / "talks.csv")
    hashes = set()
    for place in ("talks.parquet", "talks.csv", "hf:org/talks,split=train"):
        given = alone.__class__(f"{place},prompt=dialogue,answer=summary")
        learned = [(one.messages[0].content, one.response) for one in load_examples(given).examples]
        assert learned == [(row["dialogue"], row["summary"]) for row in TALKS]  # nothing of question and context
        behaviors = load_behaviors(given).behaviors
        assert [(one.id, one.messages[-1].content, one.answer) for one in behaviors] == [
            (row["id"], row["dialogue"], row["summary"]) for row in TALKS
        ]
        hashes.add(file_hash(given))
    assert len(hashes) == 2  # the same rows, which stand on other lines in CSV
    assert file_hash(alone.__class__("talks.csv,prompt=question")) not in hashes
    assert source_name(alone / "talks.csv,prompt=In / out: {dialogue}") == "talks.csv"
    assert source_name(alone.__class__("hf:org/talks,split=train,answer=summary")) == "hf:org/talks,split=train"


def test_a_prompt_is_put_together_from_columns(alone):
    as_csv(alone / "talks.csv")
    text = "Sum up, in a line:\n{dialogue}\n## {Context}"
    found = load_examples(alone / f"talks.csv,prompt={text},answer=summary").examples
    assert found[0].messages[0].content == "Sum up, in a line:\nA: soup?\nB: yes\n## a kitchen"
    assert found[1].messages[0].content == "Sum up, in a line:\nA: {no}\nB: ok\n## a hall"  # braces of a text stay


def test_a_file_whose_name_has_a_comma_is_that_file(alone):
    name = "rows,prompt=goal.jsonl"
    as_lines(alone / name)
    assert [one.prompt for one in load_behaviors(alone / name).behaviors] == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "talks.csv,prompt=dialog",
            "talks.csv has no column 'dialog' to be its prompt: its columns are 'id', 'dialogue'",
        ),
        ("talks.csv,prompt=Sum up {dialog}", "no column 'dialog' to be its prompt"),
        ("talks.csv,prompt=dialogue,prompt=summary", "'prompt=summary' is not understood"),
        ("talks.csv,prompt=", "'prompt=' is not understood"),
        ("talks.csv,split=train", "config, split and revision are of data sets of the hub"),
        ("talks.csv,promt=dialogue", "'promt=dialogue' is not understood"),
        ("none.csv,prompt=dialogue", "there is no file none.csv"),
        ("hf:org/talks,promt=dialogue", "'promt=dialogue' is not understood"),
        (f"talks.csv,prompt={'x' * 400}", "no column 'xxx"),
    ],
)
def test_columns_that_cannot_be_named_are_one_line(alone, given, said):
    as_csv(alone / "talks.csv")
    with pytest.raises(UserError, match=re.escape(said)) as found:
        load_examples(alone.__class__(given))
    assert "\n" not in str(found.value)
