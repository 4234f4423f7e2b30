"""`fathom attack` and `fathom audit --suite`: from words on the command line to a suite of attacks."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.errors import UserError
from fathom.report.hostile import one_line

if TYPE_CHECKING:
    from fathom.audit.parts import Ground, Part, Suite
    from fathom.audit.suites import NamedAttack, Wording
    from fathom.engine.endpoint import ServedModel
    from fathom.model import ChatModel

__all__ = ["AttackRequest", "SuiteMaker", "draft_names", "make_suite", "show_costs"]

SuiteMaker = Callable[["ChatModel | ServedModel"], "Suite"]


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """Attacks as they were asked for: a suite's name or file, single ones ("best-of-n n=32"), and limits.

    `with_depth` says whether the depth sweep is run before them, as an audit does.
    """

    suite: str | None = None
    attacks: Sequence[str] = ()
    budget: int | None = None
    frames: Path | None = None
    with_depth: bool = True


def make_suite(request: AttackRequest, built_in: bool, max_new_tokens: int) -> SuiteMaker:
    """What makes the suite, once the model is loaded; everything that can be wrong in words is found before.

    `built_in`: the requests are the organism's.

    Raises:
        UserError: there is no such suite, attack or parameter, or nothing was asked for.
    """
    from fathom.audit.parts import depth_parts, direct_parts
    from fathom.audit.suites import SUITES, suite_of

    named = _named(request)
    wording = _wording(built_in)
    before = depth_parts if request.with_depth else direct_parts
    suite_of(named, wording, budget=request.budget, before=before)

    def suited(loaded: "ChatModel | ServedModel") -> "Suite":
        def suite(ground: "Ground") -> "tuple[Part, ...]":
            longest = max(len(item.prompt_ids) for item in (*ground.harmful, *ground.benign))
            room = None if loaded.context is None else loaded.context - longest - max_new_tokens
            fitting = replace(wording, room=room)
            left_out = _tell if request.suite in SUITES else None  # what was asked for by name is not left out
            return suite_of(named, fitting, budget=request.budget, before=before, left_out=left_out)(ground)

        return suite

    return suited


def draft_names(request: AttackRequest) -> tuple[str, ...]:
    """The draft models that attacks name (`draft=MODEL`), each once."""
    named = (one.parameters.get("draft") for one in _named(request))
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))


def _tell(attack: str, reason: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        named = reason if reason.startswith(attack) else f"{attack}: {reason}"
        print(f"fathom: left out of the suite: {one_line(named)}", file=sys.stderr)


def _named(request: AttackRequest) -> "tuple[NamedAttack, ...]":
    from fathom.audit.suite_file import load_suite
    from fathom.audit.suites import SUITES, NamedAttack

    if request.budget is not None and request.budget < 1:
        raise UserError(f"--budget is {request.budget}; give forward tokens for each behavior, 1 or more")
    named: list[NamedAttack] = []
    if request.suite is not None:
        named += SUITES[request.suite] if request.suite in SUITES else load_suite(Path(request.suite))
    named += [_one(words) for words in request.attacks]
    if request.frames is not None:
        own = {"frames": str(request.frames)}
        if not any(one.name == "framing" for one in named):
            named.append(NamedAttack("framing", {}))
        named = [replace(one, parameters={**one.parameters, **own}) if one.name == "framing" else one for one in named]
    if not named:
        raise UserError(f"no attack was asked for: give --with NAME or --suite {'|'.join(SUITES)}|FILE")
    return tuple(named)


def _one(words: str) -> "NamedAttack":
    """`NAME key=value key=value`; a value is JSON where it can be read as such, else numbers with commas, else text.

    What can only be text (a suffix, a filler) stays as it is, though it may read as JSON.
    """
    from fathom.audit.suites import ATTACKS, NamedAttack

    if not words.strip():
        raise UserError("--with is empty: give NAME or 'NAME key=value …'")
    try:
        name, *settings = shlex.split(words)
    except ValueError as error:
        raise UserError(f"--with {words!r} cannot be read ({error}): give NAME or 'NAME key=value …'") from error
    known: Any = ATTACKS.get(name)
    texts = {one.name for one in fields(known) if one.type in (str, str | None)} if known else set()
    parameters: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--with {words!r}: {setting!r} is no key=value")
        key = key.replace("-", "_")
        parameters[key] = value if key in texts else _value(value)
    return NamedAttack(name, parameters)


def _value(text: str) -> object:
    for form in (text, f"[{text}]") if text else ():
        try:
            return json.loads(form)
        except ValueError:
            continue
    return text


def _wording(built_in: bool) -> "Wording":
    """The organism knows a few hundred words; what is said to it must be made of those."""
    from fathom.attack.framing import Frame
    from fathom.audit.suites import Wording

    if not built_in:
        return Wording()
    from fathom.organism.attack_words import ASK_ON, FILLER, FRAMES

    return Wording(frames=tuple(Frame(*words) for words in FRAMES), ask=ASK_ON, filler=FILLER)


def show_costs(parts: "Sequence[Part]") -> None:
    """What each attack will do at most, on standard error, before it does it."""
    from fathom.audit.suites import planned_costs

    def number(value: int | None, width: int) -> str:
        return f"{'not known' if value is None else f'{value:,}':>{width}}"

    rows = planned_costs(parts)
    print(f"{'attack':<20}{'behaviors':>10}{'attempts':>12}{'forward tokens, at most':>26}", file=sys.stderr)
    for row in rows:
        numbers = f"{row.behaviors:>10,}{number(row.attempts, 12)}{number(row.forward_tokens, 26)}"
        print(f"{row.attack:<20}{numbers}", file=sys.stderr)
    total = sum(row.forward_tokens or 0 for row in rows)
    print(f"{'in all':<42}{total:>26,}", file=sys.stderr)
