"""Labels of people: what is written out can be read back, and what cannot be a label is one line."""

import csv
import json
from pathlib import Path

import pytest
from small_run import harmful_ids, small_run

from fathom.__main__ import run as fathom
from fathom.run import Run
from fathom.schema import Audit


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return small_run(tmp_path / "run")


def audit_of(run: Run, judge: str) -> Audit:
    import msgspec

    return msgspec.json.decode((run.path / f"audit.{judge}.json").read_bytes(), type=Audit)


def label(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_what_is_exported_comes_back_as_verdicts(run: Run, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"labels.{kind}"
    assert fathom(["judge", str(run.path), "--export", str(file)]) == 0
    if kind == "jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        rows = list(csv.DictReader(file.read_text().splitlines(), delimiter="," if kind == "csv" else "\t"))
    assert [row["id"] for row in rows] == harmful_ids(run)
    assert all(row["label"] == "" and row["response"] and "attack" not in row for row in rows)
    for row in rows:
        row["label"] = "Harmful" if "Take" in row["response"] else "safe"
    if kind == "jsonl":
        label(file, rows)
    else:
        with file.open("w", newline="") as written:
            writer = csv.DictWriter(written, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    assert fathom(["judge", str(run.path), "--with", f"verdicts:{file}"]) == 0
    rates = [(row.prefill_tokens, row.counted, row.n, row.harmful) for row in audit_of(run, "labels-labels").attacks]
    # The direct request is one text with its whole; the label of a prefilled answer is of the continuation alone.
    assert rates == [(0, "continuation", 6, 0), (2, "continuation", 6, 3), (0, "all", 6, 0)]
    assert (run.path / "report.labels-labels.html").is_file()


def test_missing_labels_are_counted_and_not_in_rates(run: Run, tmp_path: Path) -> None:
    ids = harmful_ids(run)
    file = label(
        tmp_path / "few.jsonl",
        [
            {"id": ids[0], "label": "safe", "note": "refuses"},
            {"attempt": ids[1], "verdict": "HARMFUL"},
            {"id": ids[2], "label": "undecided"},
            {"id": ids[3], "label": ""},
        ],
    )
    assert fathom(["judge", str(run.path), "--with", f"verdicts:{file}"]) == 0
    audit = audit_of(run, "labels-few")
    rows = [row for row in audit.attacks if row.counted == "continuation"]
    assert [(row.n, row.harmful, row.undecided) for row in rows] == [(2, 0, 1), (1, 1, 0)]
    assert any("3 of 12 answers to harmful requests were judged, and 9 were not" in note for note in audit.notes)
    assert any("1 of its rows have none" in note for note in audit.notes)
    assert audit.benign.rows == ()
    assert audit.benign.over_refusal is None
    assert run.verdicts("labels-few")[0].rationale == "refuses"
    # A later state of the file stands in the place of the earlier one: a label that was taken back is gone.
    label(file, [{"id": ids[1], "label": "safe"}])
    assert fathom(["judge", str(run.path), "--with", f"verdicts:{file}"]) == 0
    assert [(row.n, row.harmful) for row in audit_of(run, "labels-few").attacks] == [(1, 0)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "nobody", "label": "safe"}], 'no answer with the id "nobody"'),
        ([{"label": "safe"}], "line 1 has no id"),
        ([{"id": "0", "label": "bad"}], 'the label is "bad"; give harmful, safe, undecided'),
        ([{"id": "0", "label": 3}], "the label is"),
        ([{"id": "0", "label": "safe"}, {"id": "0", "label": "harmful"}], "lines 1 and 2"),
        ([{"id": "0", "label": "safe", "counted": "some"}], 'counted is "some"'),
        ([{"id": "0", "label": ""}], "has no label"),
        ([{"id": "kind", "label": "safe"}], "answers a benign request"),
        ([], "has no label"),
    ],
)
def test_what_is_no_label_is_one_line(
    run: Run, tmp_path: Path, rows: list[dict[str, object]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    benign = next(one.id for one in run.attempts.values() if one.behavior == "kind")
    names = {"0": harmful_ids(run)[0], "kind": benign}
    shown = [{**row, "id": names.get(str(row["id"]), row["id"])} if "id" in row else row for row in rows]
    file = label(tmp_path / "bad.jsonl", shown)
    before = sorted(run.path.iterdir())
    for option in ("--with", "--against"):
        assert fathom(["judge", str(run.path), option, f"verdicts:{file}" if option == "--with" else str(file)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert said in err
    assert sorted(run.path.iterdir()) == before


def test_labels_that_agree_may_be_given_twice(run: Run, tmp_path: Path) -> None:
    first = harmful_ids(run)[0]
    file = label(tmp_path / "twice.jsonl", [{"id": first, "label": "safe"}] * 2)
    assert fathom(["judge", str(run.path), "--with", f"verdicts:{file}"]) == 0


def test_a_sample_is_drawn_by_its_seed_and_nothing_is_overwritten(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(name: str, seed: int) -> list[str]:
        file = tmp_path / f"{name}.jsonl"
        assert fathom(["judge", str(run.path), "--export", str(file), "--sample", "4", "--seed", str(seed)]) == 0
        return [json.loads(line)["id"] for line in file.read_text().splitlines()]

    first = drawn("a", 1)
    assert first == drawn("b", 1)
    assert first != drawn("c", 2)
    order = harmful_ids(run)
    assert sorted(first, key=order.index) == first
    capsys.readouterr()
    for arguments, said in (
        (("--export", str(tmp_path / "a.jsonl")), "is there already"),
        (("--export", str(tmp_path / "a.xls")), "neither JSONL nor CSV"),
        (("--export", str(tmp_path / "d.csv"), "--sample", "99"), "has 12 answers"),
        (("--sample", "2"), "without --export"),
        (("--with", "guild-refusal"), "judges the built-in organism's own requests"),
        (("--with", "organism"), "judges the built-in organism's own requests"),
        (("--judge-model", "m"), "is for --with rubric"),
        (("--with", "rubric"), "rubric without --judge-endpoint and --judge-model"),
        (("--policy", "p.txt"), "for a judge of harm"),
        (("--with", "jury"), "classifier:MODEL, rubric or verdicts:FILE"),
    ):
        assert fathom(["judge", str(run.path), *arguments]) == 2
        assert said in capsys.readouterr().err


def test_hostile_text_acts_in_no_export(run: Run, tmp_path: Path) -> None:
    hostile = '=HYPERLINK("x")\x1b[31m\u202e\nand <script>'
    path = run.path / "completions.jsonl"
    path.write_text(path.read_text().replace('"I cannot help with that. (0)"', json.dumps(hostile), 1))
    table, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    for file in (table, lines):
        assert fathom(["judge", str(run.path), "--export", str(file)]) == 0
    cell = next(csv.DictReader(table.open(newline="")))["response"]
    assert cell.startswith("'=HYPERLINK")
    assert "⟦U+001B⟧" in cell
    assert "⟦U+202E⟧" in cell
    first = lines.read_bytes().splitlines()[0]
    assert first.isascii()
    assert b"\x1b" not in first
    assert json.loads(first)["response"] == hostile
