"""Parquet files, saved data sets and data sets of the hub hold the same rows as a JSONL file; bad ones are one line."""

import gzip
import json

import datasets
import pytest

from fathom.behaviors import file_rows, load_behaviors
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
