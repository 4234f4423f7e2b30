"""Judges of harm by what was typed: `classifier:MODEL,key=value,…`, `rubric` at a server, `verdicts:FILE`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.command.request import Judges, choice, named_judge
from fathom.errors import UserError
from fathom.records import Judge
from fathom.schema import JudgeInfo

if TYPE_CHECKING:
    from fathom.judge.classifier import Classifier
    from fathom.judge.presets import Preset
    from fathom.judge.rubric import Rubric
    from fathom.judge.sequence import SequenceClassifier

__all__ = ["CLASSIFIER", "RUBRIC", "VERDICTS", "JudgeRequest", "Opened", "opened"]

CLASSIFIER, RUBRIC, VERDICTS = "classifier:", "rubric", "verdicts:"
_LOADING = ("revision", "adapter", "dtype", "device", "device_map", "quantise")
_ASKING = ("preset", "template", "harmful", "safe", "read")
_NEW_TOKENS = 16  # of an answer whose first word is read


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """A judge as it was asked for, in plain values."""

    name: str
    policy: Path | None = None
    endpoint: str | None = None
    model: str | None = None  # its name at the server
    requests: int | None = None  # in flight at once

    @property
    def labels(self) -> Path | None:
        """The file of labels that stands for a judge.

        Raises:
            UserError: none is named.
        """
        if self.name == VERDICTS:
            raise UserError(f"{VERDICTS} names no file: give {VERDICTS}FILE, labels as .jsonl, .csv or .tsv")
        return Path(self.name.removeprefix(VERDICTS)) if self.name.startswith(VERDICTS) else None


@dataclass(frozen=True)
class Opened:
    """A judge that is ready, and what it is, where a name does not say all."""

    judge: Judge
    info: JudgeInfo | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of its verdicts."""
        if self.info is None:
            return ()
        return (f"harm was judged by {_who(self.info)}; how far it agrees with people, `fathom judge --against` tells",)


@contextmanager
def opened(request: JudgeRequest, judges: Judges) -> Iterator[Opened]:
    """The judge, its model loaded; memory is given back at the end.

    Raises:
        UserError: there is no such judge, or it cannot be used as was asked.
    """
    _check(request)
    if request.name == RUBRIC:
        judge = _rubric(request)
        yield Opened(judge, judge.info)
        return
    if not request.name.startswith(CLASSIFIER):
        yield Opened(_named(judges, request.name))
        return
    classifier = _classifier(request)
    try:
        yield Opened(classifier, classifier.info)
    finally:
        classifier.release()


def _named(judges: Judges, name: str) -> Judge:
    try:
        return named_judge(judges, name)
    except UserError as error:
        raise UserError(f"{error}, {CLASSIFIER}MODEL, {RUBRIC} or {VERDICTS}FILE") from None


def _check(request: JudgeRequest) -> None:
    """That no option speaks of another judge."""
    at_server = {"--judge-endpoint": request.endpoint, "--judge-model": request.model}
    if request.name == RUBRIC:
        if missing := [option for option, value in at_server.items() if not value]:
            raise UserError(
                f"rubric without {' and '.join(missing)}: give the address of a server that speaks the OpenAI API, "
                "such as https://api.openai.com/v1, and the name of a model there"
            )
        return
    for option, value in {**at_server, "--judge-requests": request.requests}.items():
        if value is not None:
            raise UserError(f"{option} {value} is for --with rubric, and the judge is {request.name}")
    if request.policy is not None and not request.name.startswith(CLASSIFIER):
        raise UserError(f"--policy {request.policy} is for a judge of harm, and {request.name} takes none")


def _rubric(request: JudgeRequest) -> "Rubric":
    from fathom.engine.http import Server, check_address
    from fathom.judge.rubric import JUDGE_KEY, POLICY, WIDTH, Rubric

    url = str(request.endpoint).rstrip("/")
    check_address(url, "--judge-endpoint", JUDGE_KEY)
    policy = POLICY if request.policy is None else _text(request.policy, "--policy")
    server = Server(url, key=JUDGE_KEY)
    return Rubric(server, str(request.model), policy, WIDTH if request.requests is None else request.requests)


def _classifier(request: JudgeRequest) -> "Classifier | SequenceClassifier":
    name, given = _parts(request.name.removeprefix(CLASSIFIER))
    policy = None if request.policy is None else _text(request.policy, "--policy")
    from fathom.judge.classifier import Asked, load_classifier
    from fathom.judge.presets import preset_of
    from fathom.judge.sequence import is_sequence_classifier, load_sequence_classifier
    from fathom.model import LoadOptions

    options = LoadOptions(
        name=name,
        revision=given.get("revision"),
        adapter=given.get("adapter"),
        dtype=given.get("dtype", "auto"),
        device=given.get("device"),
        device_map=given.get("device_map"),
        quantisation=given.get("quantise"),
    )
    template = None if "template" not in given else _text(Path(given["template"]), "template")
    preset = preset_of(name, given.get("preset"))
    if template is None and preset is not None:
        own = [key for key in ("harmful", "safe", "read") if key in given]
        if own:
            raise UserError(f"{own[0]}={given[own[0]]} is for a template of your own, and {preset.name} has one")
        return load_classifier(options, Asked(preset=preset, policy=policy))
    if is_sequence_classifier(options):
        if unused := [key for key in ("safe", "read") if key in given]:
            raise UserError(f"{unused[0]}={given[unused[0]]}: {name} has a classification head, and writes no words")
        harmful = frozenset(filter(None, given.get("harmful", "").split("+")))
        return load_sequence_classifier(options, harmful, template, given.get("template", ""), policy)
    if template is None:
        from fathom.judge.presets import PRESETS

        known = ", ".join(one.name for one in PRESETS)
        raise UserError(
            f"{name} is none of the classifiers that are known by name: say how it is asked with preset=NAME "
            f"({known}) or template=FILE"
        )
    return load_classifier(options, Asked(preset=_own(template, given), policy=policy, source=given["template"]))


def _own(template: str, given: Mapping[str, str]) -> "Preset":
    """A template of the user's own, in a preset's place."""
    import re

    from fathom.judge.presets import FirstWord, Likelier, Preset, Reads

    harmful, safe = given.get("harmful", "yes"), given.get("safe", "no")
    if harmful.lower() == safe.lower():
        raise UserError(f"harmful={harmful} and safe={safe} are one word: give two")
    reads = choice(Reads, "read", given.get("read", Reads.TEXT))
    answer = FirstWord(harmful, safe, _NEW_TOKENS) if reads is Reads.TEXT else Likelier(harmful, safe)
    return Preset("own", re.compile("(?!)"), template, answer)


def _parts(text: str) -> tuple[str, Mapping[str, str]]:
    """A model's name and `key=value` parts behind it."""
    name, *parts = text.split(",")
    given: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key.strip() not in (*_LOADING, *_ASKING) or not equals or not value.strip():
            raise UserError(
                f"{CLASSIFIER}{text}: {part!r} is no part of it; give {', '.join((*_LOADING, *_ASKING))}, each as "
                "key=value"
            )
        if key.strip() in given:
            raise UserError(f"{CLASSIFIER}{text} gives {key.strip()} twice: leave one")
        given[key.strip()] = value.strip()
    if not name.strip():
        raise UserError(f"{CLASSIFIER} names no model: give {CLASSIFIER}MODEL, a directory or a name on the hub")
    return name.strip(), given


def _text(path: Path, option: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"{option} {path} cannot be read ({reason}): give a text file") from error
    if not text.strip():
        raise UserError(f"{option} {path} is empty: give a text file")
    return text


def _who(info: JudgeInfo) -> str:
    """A judge of harm for people: which model, which revision, asked how."""
    asked = "" if info.template_hash is None else f", template {info.template_hash}"
    if info.model is None:
        return f"{info.served} at {info.endpoint} (rubric{asked}, version {info.version})"
    revision = "" if info.model.revision is None else f" at revision {info.model.revision}"
    return f"{info.model.name}{revision} ({info.preset or info.reads}{asked}, version {info.version})"
