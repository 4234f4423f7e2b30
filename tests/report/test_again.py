"""`fathom report` on each kind of directory: pages of what is stored, or one line of what to do."""

from pathlib import Path

import pytest
from synthetic import report_data, write_run

from fathom.__main__ import run
from fathom.command.report import write_reports


def test_a_trained_models_audits_get_their_pages(tmp_path: Path) -> None:
    (tmp_path / "fathom").mkdir()
    (tmp_path / "fathom" / "manifest.json").write_text("{}")
    runs = [tmp_path / "fathom" / name for name in ("audit-before", "audit-after")]
    for path in runs:
        write_run(report_data(), path)
    assert write_reports(tmp_path) == tuple(path / "report.html" for path in runs)
    assert all((path / "report.html").stat().st_size > 10_000 for path in runs)


@pytest.mark.parametrize(
    ("files", "verb", "said"),
    [
        (("fathom/manifest.json",), "report", "is a trained model without an audit"),
        (("fathom/manifest.json",), "compare", "is a trained model and no run of `fathom audit`"),
        (("fathom/manifest.json",), "judge", "is a trained model and no run of `fathom audit`"),
        (("manifest.json", "checkpoints.jsonl"), "report", "same `fathom stress` command again"),
        (("manifest.json", "stress.json"), "judge", "what `fathom stress` measured"),
        (("asked", "positions.jsonl"), "report", "same `fathom dynamics` command again"),
        (("asked", "dynamics.json"), "compare", "what `fathom dynamics` measured"),
        (("asked", "dynamics.json"), "report", "is not a Dynamics of this version"),
        (("notes.txt",), "report", "is not a run directory"),
        ((), "report", "is not a run directory"),
    ],
)
def test_what_has_no_page_is_one_line(
    files: tuple[str, ...], verb: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert run([verb, str(tmp_path), *([str(tmp_path)] if verb == "compare" else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_without_its_answers_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tables would count answers that nobody can look at."""
    write_run(report_data(), tmp_path)
    lines = (tmp_path / "completions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "completions.jsonl").write_text("".join(lines[:-2]))
    assert run(["report", str(tmp_path)]) == 2
    assert f"lacks 2 of its {len(lines)} answers" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_result_says_how_it_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(report_data(), tmp_path)
    (tmp_path / "audit.json").write_text("{")
    assert run(["report", str(tmp_path)]) == 2
    assert "remove it and run the same `fathom audit` command again" in capsys.readouterr().err
