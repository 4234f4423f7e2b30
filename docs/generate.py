"""Make the pages of the documentation that say what the code says: `python docs/generate.py` writes them.

docs/audit-json.md   the fields of `audit.json` and of the other files of a run, from `fathom.schema`
docs/stress-json.md  those of `stress.json`, `answers.jsonl` and `dynamics.json`, from `fathom.tampering`
docs/commands.md     every command and option, from the command line itself
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer.main

from fathom import records, schema, tampering
from fathom.cli import app

HERE = Path(__file__).parent
PAGES: Mapping[str, str] = {
    "audit-json.md": "audit_json",
    "stress-json.md": "stress_json",
    "commands.md": "commands",
}


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    meaning: str
    optional: bool


@dataclass(frozen=True)
class Record:
    name: str
    text: str
    fields: tuple[Field, ...]


# --- audit.json ---


def audit_json() -> str:
    """The page of `audit.json`, and of the manifest and times beside it."""
    known = {record.name: record for module in (schema, records) for record in read_records(module)}
    shown: list[str] = []
    for root in ("Audit", "Manifest", "TimeRow", "JudgeInfo"):
        shown += [name for name in reached(root, known) if name not in shown]
    head = f"""# `audit.json`, field by field

Schema {schema.SCHEMA}. {first_paragraph(schema.__doc__ or "")}

Strict: a file with an unknown field is of another version. `fathom audit --json` prints the file itself.
`manifest.json` is a [Manifest](#manifest), each line of `times.jsonl` a [TimeRow](#timerow), `judge.NAME.json` a
[JudgeInfo](#judgeinfo); [run.md](run.md) tells what else is in a run's directory. This page is made by
`python docs/generate.py`.
"""
    return head + "".join(section(known[name], known) for name in shown)


def stress_json() -> str:
    """The page of `stress.json`, and of the other files that speak of fine-tuned models."""
    known = {record.name: record for module in (schema, records, tampering) for record in read_records(module)}
    shown: list[str] = []
    for root in ("Stress", "Answer", "Dynamics"):
        shown += [name for name in reached(root, known) if name not in shown]
    head = f"""# `stress.json`, field by field

Schema {tampering.SCHEMA}. {first_paragraph(tampering.__doc__ or "")}

Strict: a file with an unknown field is of another version. `fathom stress --json` prints the file itself, a
[Stress](#stress); each line of `answers.jsonl` beside it is an [Answer](#answer). `fathom dynamics` writes
`dynamics.json`, a [Dynamics](#dynamics). `manifest.json` holds what was asked for: a directory is gone on with only
where its `configuration` is the same. This page is made by `python docs/generate.py`.
"""
    return head + "".join(section(known[name], known) for name in shown)


def read_records(module: object) -> Iterator[Record]:
    """The structs of a module, with the comments behind their fields."""
    source = inspect.getsource(module)  # type: ignore[arg-type]
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body:
        kind = getattr(module, node.name, None) if isinstance(node, ast.ClassDef) else None
        if isinstance(node, ast.ClassDef) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            fields = tuple(
                Field(
                    name=item.target.id,
                    type=ast.unparse(item.annotation),
                    meaning=comments.get(item.end_lineno or item.lineno, ""),
                    optional=item.value is not None and item.target.id != "schema",
                )
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            )
            yield Record(node.name, inspect.cleandoc(ast.get_docstring(node) or ""), fields)


def reached(name: str, known: Mapping[str, Record]) -> list[str]:
    """A record and the records that its fields hold, in the order in which a reader meets them."""
    found = [name]
    for field in known[name].fields:
        for word in words(field.type):
            if word in known and word not in found:
                found += [other for other in reached(word, known) if other not in found]
    return found


def words(annotation: str) -> list[str]:
    return "".join(char if char.isalnum() else " " for char in annotation).split()


def section(record: Record, known: Mapping[str, Record]) -> str:
    rows = "".join(
        f"| `{field.name}` | {plain_type(field.type, known)}{', optional' if field.optional else ''} "
        f"| {cell(field.meaning)} |\n"
        for field in record.fields
    )
    return f"\n## {record.name}\n\n{record.text}\n\n| field | type | meaning |\n| --- | --- | --- |\n{rows}"


def plain_type(annotation: str, known: Mapping[str, Record]) -> str:
    """A type as a reader of JSON calls it."""
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "None": "null"}
    choices = {"Subject": records.Subject, "Counted": records.Counted, "Label": records.Label}
    if annotation.startswith("tuple[") and annotation.endswith("]"):
        return f"list of {plain_type(annotation[6:-1].removesuffix(', ...'), known)}"
    parts = [part.strip() for part in annotation.split(" | ")]
    if len(parts) > 1:
        return " or ".join(plain_type(part, known) for part in parts)
    if annotation.startswith("Mapping[str, "):
        return f"object of {plain_type(annotation[13:-1], known)}"
    if annotation in choices:
        return " or ".join(f"`{choice}`" for choice in choices[annotation])
    if annotation == "Parameter":
        return "text, number or true/false"
    if annotation == "object":
        return "any"
    return f"[{annotation}](#{annotation.lower()})" if annotation in known else names.get(annotation, annotation)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def first_paragraph(text: str) -> str:
    """What a module says after its first sentence."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return paragraphs[1].split("\n`docs/")[0] if len(paragraphs) > 1 else ""


# --- commands ---


def commands() -> str:
    """The page of commands."""
    root = typer.main.get_command(app)
    head = (
        "# Commands\n\n"
        f"{root.help}\n\n"
        "Exit codes: 0, or 2 for a mistake in what was given (one line says which, and what to do), or 130 after "
        "Ctrl-C. Progress goes to standard error. This page is made by `python docs/generate.py` from what "
        "`fathom COMMAND --help` prints.\n"
    )
    return head + "".join(command_section(name, command) for name, command in walk("fathom", root))


def walk(name: str, command: object) -> Iterator[tuple[str, object]]:
    """Every command that does something, with its full name."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, child in inner.items():
        yield from walk(f"{name} {word}", child)


def command_section(name: str, command: object) -> str:
    arguments, options = [], {}
    for parameter in command.params:  # type: ignore[attr-defined]
        if parameter.name == "help":
            continue
        if parameter.param_type_name == "argument":
            metavar = parameter.metavar or parameter.name.upper()
            arguments.append(metavar if parameter.required else f"[{metavar}]")
            options.setdefault("Arguments", []).append((f"`{metavar}`", parameter))
        else:
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            options.setdefault(panel, []).append((", ".join(f"`{opt}`" for opt in parameter.opts), parameter))
    text = inspect.cleandoc(command.help or "")  # type: ignore[attr-defined]
    shown = f"\n## `{' '.join([name, *arguments])}`\n\n{text}\n"
    for panel, found in options.items():
        shown += f"\n| {panel} | |\n| --- | --- |\n"
        shown += "".join(f"| {names} | {cell(described(parameter))} |\n" for names, parameter in found)
    return shown


def described(parameter: object) -> str:
    """An option's help, and its default where the help does not say."""
    text = " ".join((parameter.help or "").split())  # type: ignore[attr-defined]
    default = parameter.default  # type: ignore[attr-defined]
    if default in (None, False, "", ()) or callable(default) or "efault" in text:
        return text
    return f"{text} Default: `{default}`."


def main() -> None:
    for page, maker in PAGES.items():
        (HERE / page).write_text(globals()[maker](), encoding="utf-8")
        print(HERE / page)


if __name__ == "__main__":
    main()
