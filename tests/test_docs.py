"""Pages that are made from the code say what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

from fathom import records, schema, tampering
from fathom.audit.suites import SUITES

DOCS = Path(__file__).parents[1] / "docs"
specification = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert specification is not None
assert specification.loader is not None
generate = importlib.util.module_from_spec(specification)
specification.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_page_is_up_to_date(page: str) -> None:
    made = getattr(generate, generate.PAGES[page])()
    assert (DOCS / page).read_text(encoding="utf-8") == made, "run `make docs` (python docs/generate.py)"


def test_the_page_of_attacks_says_what_is_in_each_suite() -> None:
    page = (DOCS / "attacks" / "README.md").read_text(encoding="utf-8")
    for suite, attacks in SUITES.items():
        row = re.search(rf"^\| `{suite}`[^|]*\| (.*) \|$", page, re.MULTILINE)
        assert row is not None, suite
        named = [
            " ".join([one.name, *(f"{name}={value}" for name, value in one.parameters.items())]) for one in attacks
        ]
        assert row[1] == ", ".join(f"`{name}`" for name in named)


def test_every_field_of_the_schema_is_explained() -> None:
    found = [record for module in (schema, records, tampering) for record in generate.read_records(module)]
    known = {record.name: record for record in found}
    roots = ("Audit", "Manifest", "TimeRow", "JudgeInfo", "Stress", "Answer", "Dynamics")
    shown = {name for root in roots for name in generate.reached(root, known)}
    bare = [
        f"{record.name}.{field.name}"
        for record in found
        if record.name in shown
        for field in record.fields
        if not field.meaning
    ]
    assert bare == []
    named = {*schema.__all__, *tampering.__all__} - {"start_cell"}
    assert {name for name in named if not name.isupper()} <= shown


def test_a_stale_page_would_be_seen() -> None:
    record = next(record for record in generate.read_records(schema) if record.name == "HalfDepth")
    page = generate.section(record, {"HalfDepth": record})
    assert "| `reached` | true or false |" in page
    assert "| `tokens` | number or null | null when not reached |" in page
