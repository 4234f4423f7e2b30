"""Labels of answers, from people or from any tool: a file of ids and labels becomes verdicts.

JSONL, CSV or TSV, one answer a row: `id` (or `attempt`: the attempt's id, as `fathom judge RUN --export` writes it),
`label` (or `verdict`): harmful, safe or undecided, and perhaps `note` and `counted` (continuation, the default, or
all). Other columns are let be. A row without a label is one that nobody has judged yet.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fathom.errors import UserError
from fathom.records import Counted, Label, Verdict, content_hash, excerpt
from fathom.run import Run

__all__ = ["Labelled", "Labels", "labels_of", "read_labels"]

_IDS, _LABELS = ("id", "attempt"), ("label", "verdict")
_LABEL_OF = {str(label).lower(): label for label in Label}


@dataclass(frozen=True)
class Labelled:
    """One row: which text, what it is, and where that stands."""

    attempt: str
    counted: Counted
    label: Label
    note: str | None
    line: int  # from 1


@dataclass(frozen=True)
class Labels:
    """The rows of a file that have a label, each text once, and how many have none."""

    source: Path
    rows: tuple[Labelled, ...]
    unlabelled: int

    @property
    def name(self) -> str:
        """What the judge is called, after the file."""
        stem = "".join(
            char if char.isascii() and (char.isalnum() or char in "-_") else "-" for char in self.source.stem
        )
        return f"labels-{stem.strip('-')[:40] or 'file'}"

    @property
    def version(self) -> str:
        return content_hash(sorted((row.attempt, row.counted, row.label, row.note or "") for row in self.rows))

    def verdicts(self) -> list[Verdict]:
        """What the file says, as a judge would have said it."""
        return [
            Verdict(
                attempt=row.attempt,
                judge=self.name,
                version=self.version,
                counted=row.counted,
                label=row.label,
                reason="labelled",
                rationale=row.note,
            )
            for row in self.rows
        ]


def labels_of(run: Run, path: Path) -> Labels:
    """The labels of a run's answers; where nothing was prefilled, a label is of both texts, which are one.

    Raises:
        UserError: the file cannot be read, or one of its rows says nothing of this run, no known label, or something
            else than another row.
    """
    labels = read_labels(path)
    attempts, behaviors, completions = run.attempts, run.behaviors, run.completions
    strange = [row for row in labels.rows if row.attempt not in completions]
    if strange:
        raise UserError(
            f"{path}, line {strange[0].line}: {run.path} has no answer with the id {excerpt(strange[0].attempt)}"
            f"{_more(strange)}; ids are those that `fathom judge {run.path} --export FILE` writes"
        )
    benign = [row for row in labels.rows if not behaviors[attempts[row.attempt].behavior].harmful]
    if benign:
        raise UserError(
            f"{path}, line {benign[0].line}: {benign[0].attempt} answers a benign request{_more(benign)}, of "
            "which harm is not the question; leave such rows out"
        )
    rows = list(labels.rows)
    known = {(row.attempt, row.counted) for row in rows}
    for row in labels.rows:
        if not completions[row.attempt].prefill_text:
            rows += [
                Labelled(row.attempt, other, row.label, row.note, row.line)
                for other in Counted
                if (row.attempt, other) not in known
            ]
    place = {identity: number for number, identity in enumerate(attempts)}
    rows.sort(key=lambda row: (place[row.attempt], row.counted is Counted.ALL))
    return Labels(path, tuple(rows), labels.unlabelled)


def read_labels(path: Path) -> Labels:
    """The labels in a file, whichever run they are of.

    Raises:
        UserError: it cannot be read, a row lacks its id or has no known label, two rows of one text disagree, or there
            is no label in it.
    """
    found: dict[tuple[str, Counted], Labelled] = {}
    unlabelled = 0
    for line, fields in _rows(path):
        row = _labelled(path, line, fields)
        if row is None:
            unlabelled += 1
            continue
        first = found.setdefault((row.attempt, row.counted), row)
        if first.label is not row.label:
            raise UserError(
                f"{path}, lines {first.line} and {row.line}: {excerpt(row.attempt)} is {first.label.lower()} on one "
                f"and {row.label.lower()} on the other; leave one label"
            )
    if not found:
        raise UserError(
            f"{path} has no label: give harmful, safe or undecided in a column `label`, beside the answer's `id`"
        )
    return Labels(path, tuple(found.values()), unlabelled)


def _labelled(path: Path, line: int, fields: Mapping[str, object]) -> Labelled | None:
    """A row as it is meant; None where its label is empty."""
    identity = next((fields[name] for name in _IDS if fields.get(name) not in (None, "")), None)
    if not isinstance(identity, str):
        raise UserError(f"{path}, line {line} has no id: give the answer's id in a column `id`")
    given = next((fields[name] for name in _LABELS if name in fields), None)
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    label = _LABEL_OF.get(given.strip().lower()) if isinstance(given, str) else None
    if label is None:
        raise UserError(
            f"{path}, line {line}: the label is {excerpt(str(given))}; give {', '.join(_LABEL_OF)}, or nothing where "
            "nobody has judged"
        )
    counted = str(fields.get("counted") or Counted.CONTINUATION)
    if counted not in set(Counted):
        raise UserError(f"{path}, line {line}: counted is {excerpt(counted)}; give {' or '.join(Counted)}")
    note = fields.get("note")
    return Labelled(identity.strip(), Counted(counted), label, note if isinstance(note, str) and note else None, line)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        raise UserError(f"{path} is neither JSONL nor CSV by its name: give labels as .jsonl, .csv or .tsv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the labels {path}: {error.strerror}; give a file of JSONL or CSV") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: save it in that encoding") from error
    return _table(path, text, "\t" if kind == ".tsv" else ",") if kind in (".csv", ".tsv") else _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); give one object a line") from error
        if not isinstance(fields, dict):
            raise UserError(f"{path}, line {number} is no JSON object; give one with id and label")
        yield number, fields


def _table(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    limit = csv.field_size_limit(2**31 - 1)  # a long answer is not an error
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        if not set(header) & set(_IDS) or not set(header) & set(_LABELS):
            raise UserError(f"{path} has no columns id and label: its first line must name them")
        line = reader.line_num + 1
        for row in reader:
            first, line = line, reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(header):
                raise UserError(f"{path}, line {first} has {len(row)} fields, where the header has {len(header)}")
            yield first, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not CSV ({error}): mend its quotes") from error
    finally:
        csv.field_size_limit(limit)


def _more(rows: list[Labelled]) -> str:
    return f" (and so {len(rows) - 1} more)" if len(rows) > 1 else ""
