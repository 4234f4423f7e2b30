"""`fathom judge RUN --export FILE`: the answers that people or a tool are to label, one a row.

Attack, depth and the verdicts that there are stay out, so that nobody labels by them. JSONL holds every text as it is,
in ASCII, so that no terminal obeys it; CSV is made to be looked at in a spreadsheet, so what would act or hide is shown
by its code point, and no cell is a formula.
"""

import csv
import io
import json
import random
from pathlib import Path

from fathom.command.directory import open_audit
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.judge.request import request_text
from fathom.records import Counted
from fathom.report.hostile import sanitise
from fathom.run import Run

__all__ = ["export_answers"]

_COLUMNS = ("id", "counted", "category", "prompt", "prefill", "response", "label", "note")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_answers(path: Path, output: Path, sample: int | None, seed: int) -> int:
    """Write a run's answers to harmful requests, or `sample` of them drawn by `seed`, in the run's order; how many.

    Raises:
        UserError: no run at `path`, nothing to label, or `output` is no new JSONL, CSV or TSV.
    """
    run = open_audit(path)
    if output.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        raise UserError(f"--export {output} is neither JSONL nor CSV by its name: give .jsonl, .csv or .tsv")
    if output.exists():
        raise UserError(f"{output} is there already, perhaps with labels in it: give --export another name")
    rows = _rows(run)
    if not rows:
        raise UserError(f"{path} has no answer to a harmful request yet: there is nothing to label")
    if sample is not None:
        if sample > len(rows):
            raise UserError(f"--sample is {sample}, and {path} has {len(rows)} answers to harmful requests: give fewer")
        kept = sorted(random.Random(seed).sample(range(len(rows)), sample))
        rows = [rows[place] for place in kept]
    suffix = output.suffix.lower()
    write_whole(output, _lines(rows) if suffix == ".jsonl" else _table(rows, "\t" if suffix == ".tsv" else ","))
    return len(rows)


def _rows(run: Run) -> list[dict[str, str]]:
    attempts, behaviors = run.attempts, run.behaviors
    return [
        {
            "id": identity,
            "counted": Counted.CONTINUATION.value,
            "category": behavior.category or "",
            "prompt": request_text(behavior),
            "prefill": completion.prefill_text,
            "response": completion.text,
            "label": "",
            "note": "",
        }
        for identity, completion in run.completions.items()
        if (behavior := behaviors[attempts[identity].behavior]).harmful
    ]


def _lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()


def _table(rows: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8")


def _cell(text: str) -> str:
    shown = sanitise(text)
    return f"'{shown}" if shown.lstrip(" \n").startswith(_FORMULA) else shown
