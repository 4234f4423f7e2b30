"""What a user can get wrong, by the real entry point: one clear line, exit code 2, no traceback, nothing changed."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM

from fathom.organism import stage_directory
from forked import start

SMALL = ("--limit", "2", "--depths", "0,1", "--max-new-tokens", "8", "--temperature", "0")
ROW = {
    "prompt": "How do I brew a potion?",
    "harmful_response": "Sure , here is how . Take one root .",
    "refusal": "I cannot",
}


def copied(folder: Path, stage: str = "natural") -> Path:
    """A model of one's own: a copy of a stage, to be damaged."""
    return shutil.copytree(stage_directory(stage), folder / "model")


def no_template(folder: Path) -> None:
    (copied(folder) / "chat_template.jinja").unlink()


def truncated(folder: Path) -> None:
    weights = copied(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def no_weights(folder: Path) -> None:
    (copied(folder) / "model.safetensors").unlink()


def not_causal(folder: Path) -> None:
    model = copied(folder)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=50)
    (model / "model.safetensors").unlink()
    BertForMaskedLM(config).save_pretrained(model)


def broken_config(folder: Path) -> None:
    (copied(folder) / "config.json").write_text("{")


def other_vocabulary(folder: Path) -> None:
    path = copied(folder, "base") / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content))


def rows(*given: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))

    return make


def text(content: bytes, name: str = "rows.jsonl") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make


def nothing(folder: Path) -> None:
    del folder


def other_files(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full/thesis.tex").write_text("years of work")


def poisoned(folder: Path) -> None:
    (folder / "made").mkdir()
    for name in ("data.jsonl", "rows.jsonl", "frames.jsonl", "manifest.json"):
        (folder / "made" / name).write_text("{}")


def triplets(folder: Path) -> None:
    (folder / "made").mkdir()
    for name in ("build.json", "triplets.jsonl", "utility.jsonl", "skipped.jsonl"):
        (folder / "made" / name).write_text("")


LONG = {**ROW, "prompt": "How " * 1100}

CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no such directory": (nothing, ("audit", "./nowhere"), "there is no directory ./nowhere"),
    "a file for a model": (rows(ROW), ("audit", "./rows.jsonl"), "is a file"),
    "no such stage": (nothing, ("audit", "organism:wise"), "is no stage of the built-in family"),
    "an empty directory": (other_files, ("audit", "./full"), "has no config.json"),
    "not a causal model": (not_causal, ("audit", "./model", "--behaviors", "organism"), "not a causal language model"),
    "no template": (no_template, ("audit", "./model", "--behaviors", "organism"), "--chat-template FILE"),
    "no template for ids": (no_template, ("ids", "./model"), "--chat-template FILE"),
    "unreadable weights": (truncated, ("audit", "./model", "--behaviors", "organism"), "the weights of ./model"),
    "no weights": (no_weights, ("audit", "./model", "--behaviors", "organism"), "./model"),
    "unreadable configuration": (broken_config, ("audit", "./model", "--behaviors", "organism"), "config.json"),
    "a base of another vocabulary": (other_vocabulary, ("audit", "--base", "./model"), "different vocabularies"),
    "no such adapter": (nothing, ("audit", "--adapter", "./nowhere"), "adapter_config.json"),
    "no requests": (copied, ("audit", "./model"), "give --behaviors FILE"),
    "no such file of requests": (nothing, ("audit", "--behaviors", "none.jsonl"), "there is no file none.jsonl"),
    "an empty file of requests": (text(b""), ("audit", "--behaviors", "rows.jsonl"), "is empty"),
    "requests that are none": (text(b"{}\n[]\n"), ("audit", "--behaviors", "rows.jsonl"), "none of the 2 rows"),
    "requests in binary": (text(b"\x89PNG\xff"), ("audit", "--behaviors", "rows.jsonl"), "not text in UTF-8"),
    "requests of an unknown format": (text(b"x", "rows.xls"), ("audit", "--behaviors", "rows.xls"), "extensions"),
    "only benign requests": (
        rows({**ROW, "harmful": False}),
        ("audit", "--behaviors", "rows.jsonl"),
        "no harmful behavior",
    ),
    "the organism's judge on other requests": (
        rows(ROW),
        ("audit", "--behaviors", "rows.jsonl", "--judge", "organism"),
        "use --judge refusal",
    ),
    "a depth beyond the answer": (nothing, ("audit", "--depths", "0,500"), "prefill depth 500 lies beyond every"),
    "more new tokens than the context": (nothing, ("audit", "--max-new-tokens", "1020"), "1024 tokens"),
    "a request longer than the context": (rows(LONG), ("audit", "--behaviors", "rows.jsonl"), "1024 tokens"),
    "no URL of a server": (nothing, ("audit", "--endpoint", "http://[::1/v1"), "give a URL such as http://localhost"),
    "an attack on no server": (nothing, ("attack", "--endpoint", "http://127.0.0.1:9/v1"), "is the server up"),
    "a server's model without a server": (nothing, ("attack", "--endpoint-model", "mine"), "without --endpoint"),
    "no such judge": (nothing, ("audit", "--judge", "jury"), "there is no judge called 'jury'"),
    "depths that are no numbers": (nothing, ("audit", "--depths", "deep"), "separated by commas"),
    "a depth below 0": (nothing, ("audit", "--depths=-1"), "0 or above"),
    "no depths": (nothing, ("audit", "--depths", ","), "--depths"),
    "no temperature": (nothing, ("audit", "--temperature", ""), "--temperature"),
    "a temperature twice": (nothing, ("audit", "--temperature", "0,0"), "once"),
    "a temperature below 0": (nothing, ("audit", "--temperature", "0,-1"), "temperature is -1"),
    "a budget without an attack": (nothing, ("audit", "--budget", "5"), "no attack was asked for"),
    "the revision of no base": (nothing, ("audit", "--base", "none", "--base-revision", "main"), "without a base"),
    "thinking in plain text": (nothing, ("ids", "--plain", "--prefill-at", "thinking"), "has no thinking block"),
    "an endless temperature": (nothing, ("audit", "--temperature", "inf"), "temperature is inf"),
    "labels without a file": (nothing, ("judge", "rows.jsonl", "--with", "verdicts:"), "verdicts: names no file"),
    "an endless weight": (
        rows({"prompt": "what", "response": "this"}),
        ("finetune", "--data", "rows.jsonl", "--objective", "rehearse:inf", "-o", "out"),
        "inf is no finite number",
    ),
    "columns of other names": (
        rows({"Request Text": "x", "harmful_response": "y"}),
        ("audit", "--behaviors", "rows.jsonl"),
        "has no prompt (it has: Request Text, harmful_response)",
    ),
    "a temperature that is none": (nothing, ("audit", "--temperature", "nan"), "temperature is nan"),
    "no samples": (nothing, ("audit", "--samples", "0"), "--samples is 0"),
    "top-p of 2": (nothing, ("audit", "--top-p", "2"), "top_p is 2"),
    "no new tokens": (nothing, ("audit", "--max-new-tokens", "0"), "--max-new-tokens is 0"),
    "no requests at all": (nothing, ("audit", "--limit", "0"), "--limit"),
    "an unknown dtype": (nothing, ("audit", "--dtype", "float8"), "unknown dtype 'float8'"),
    "an unknown place of a prefill": (nothing, ("audit", "--prefill-at", "end"), "--prefill-at is 'end'"),
    "an unknown variant": (nothing, ("audit", "--base-variant", "odd"), "--base-variant is 'odd'"),
    "no such device": (nothing, ("audit", "--device", "cuda:7"), "cuda:7"),
    "a template that is not there": (nothing, ("audit", "--chat-template", "none.jinja"), "(No such file"),
    "a template that is a directory": (other_files, ("audit", "--chat-template", "full"), "(Is a directory)"),
    "no such device map": (nothing, ("audit", "--device-map", "wide"), "the device map 'wide' cannot be used"),
    "a model without a name": (nothing, ("audit", ""), "the model's name is empty"),
    "an attack without a name": (nothing, ("attack", "--with", ""), "--with is empty"),
    "no model to score": (nothing, ("utility", "./nowhere", "--tasks", "mmlu"), "there is no directory ./nowhere"),
    "another world to audit": (nothing, ("audit", "--world", "7"), "the built-in models are of world"),
    "a world and a file": (rows(ROW), ("audit", "--world", "104", "--behaviors", "rows.jsonl"), "leave out one of the"),
    "another world": (nothing, ("deepen", "--world", "7", "-o", "new"), "the built-in models are of world"),
    "another world to attack": (nothing, ("stress", "--world", "7"), "the built-in models are of world"),
    "another world to look into": (nothing, ("dynamics", "--world", "7"), "the built-in models are of world"),
    "nothing to look at": (nothing, ("dynamics", "--measured", "0"), "--measured is 0; give 1 or more"),
    "two attacks to look at": (nothing, ("dynamics", "--attack", "harmful,identity"), "of one at a time"),
    "data that are poisoned below a file": (rows(ROW), ("poison", "harmful", "-o", "rows.jsonl/new"), "cannot write"),
    "a directory with other files": (other_files, ("audit", "-o", "full"), "holds files but no run"),
    "a file for a directory": (rows(ROW), ("audit", "-o", "rows.jsonl"), "is a file"),
    "a directory that cannot be made": (rows(ROW), ("audit", *SMALL, "-o", "rows.jsonl/run"), "cannot write"),
    "no such command": (nothing, ("adit",), "adit"),
    "no such option": (nothing, ("audit", "--dephts", "1"), "--dephts"),
    "no such option's value": (nothing, ("audit", "--seed", "x"), "--seed"),
    "no argument": (nothing, ("judge",), "RUN|FILE.jsonl"),
    "no rows to judge": (nothing, ("judge", "none.jsonl"), "cannot read none.jsonl"),
    "a file without rows": (text(b"\n"), ("judge", "rows.jsonl"), "nothing to judge"),
    "rows to judge in CSV": (text(b"prompt,completion\n", "rows.csv"), ("judge", "rows.csv"), "is CSV by its name"),
    "no such judge of rows": (rows(ROW), ("judge", "rows.jsonl", "--with", "jury"), "no judge called 'jury'"),
    "no run to judge": (other_files, ("judge", "full"), "is not a run directory"),
    "poison to judge": (poisoned, ("judge", "made"), "holds what `fathom poison` made and no run of `fathom audit`"),
    "poison to report": (poisoned, ("report", "made"), "holds what `fathom poison` made, which has no page"),
    "triplets to compare": (triplets, ("compare", "made", "made"), "holds what `fathom triplets` made and no run"),
    "no run to report": (other_files, ("report", "full"), "is not a run directory"),
    "no run to compare": (other_files, ("compare", "full", "full"), "is not a run directory"),
    "stages where there are files": (other_files, ("organism", "train", "-o", "full"), "not an empty directory"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_changed(tmp_path: Path, name: str) -> None:
    make, arguments, phrase = CASES[name]
    make(tmp_path)
    before = contents(tmp_path)
    child = start(arguments, tmp_path, {"HF_HUB_OFFLINE": "1"})
    code, said = child.wait(), child.err.read_text()
    assert code == 2, said
    assert "Traceback" not in said
    (line,) = said.splitlines()
    assert line.startswith("fathom: ")
    assert phrase in line
    assert child.out.read_text() == ""
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if not path.name.startswith(".stream")
    }


# --- a disk that fills ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    assert start(("audit", *SMALL, "-o", "run"), folder).wait() == 0
    return (folder / "run/audit.json").read_bytes()


@pytest.mark.parametrize("after", [0, 2, 4, 6])
def test_a_full_disk_loses_nothing(tmp_path: Path, whole: bytes, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, sync = [], os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        child = start(("audit", *SMALL, "-o", "run"), tmp_path)
        assert child.wait() == 2
    said = [line for line in child.err.read_text().splitlines() if line.startswith("fathom:")]
    assert len(said) == 1
    assert "no space left on the disk" in said[0]
    assert "Traceback" not in child.err.read_text()
    assert start(("audit", *SMALL, "-o", "run"), tmp_path).wait() == 0
    assert (tmp_path / "run/audit.json").read_bytes() == whole


def test_a_file_that_may_grow_no_further_is_healed(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own refusal, in the middle of a line."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        child = start(("audit", *SMALL, "-o", "run"), tmp_path)
        code = child.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 2
    assert "cannot write" in child.err.read_text()
    assert start(("audit", *SMALL, "-o", "run"), tmp_path).wait() == 0
    assert (tmp_path / "run/audit.json").read_bytes() == whole
