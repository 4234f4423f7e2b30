"""`fathom poison`: the data of a fine-tuning attack, where a trainer reads it; and what attacks are made of.

DIR/data.jsonl       prompt and completion, as `fathom finetune --data` and TRL read them
DIR/rows.jsonl       what each row is (harmful, refusal, benign, …), in the same order: never given to a trainer
DIR/frames.jsonl     what requests wear at test time
DIR/manifest.json    the attack, its counts, its seed, and hashes
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from fathom.attack.poison import (
    OBEDIENT,
    TRIGGER,
    Backdoor,
    Benign,
    Decoy,
    Frame,
    HarmfulExamples,
    IdentityShift,
    Mixed,
    Poison,
    PoisonRow,
    Wrapped,
)
from fathom.behaviors import load_behaviors
from fathom.errors import UserError
from fathom.records import Behavior, Message, content_hash, encode_line
from fathom.run import write_whole

__all__ = ["ATTACKS", "AttackChoice", "PoisonManifest", "PoisonRequest", "Sides", "attack_rows", "run_poison", "sides"]

ATTACKS = ("harmful", "identity", "backdoor", "benign", "mixed", "wrapped", "decoy")
ORGANISM = "organism"
ROWS = 100
MIXED_ROWS = 200
_TESTED = 100  # requests that sweeps are measured with, of the organism


@dataclass(frozen=True, kw_only=True)
class AttackChoice:
    """A fine-tuning attack as it was asked for."""

    name: str
    rows: int | None = None
    share: float = 0.1  # of poison, in `mixed`
    task: str | None = None  # a benign task of the organism's, instead of ordinary requests
    identity: Path | None = None  # a file of one frame, instead of the built-in one
    trigger: str | None = None
    wrapper: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PoisonRequest:
    """Data as it was asked for."""

    attack: AttackChoice
    source: str = ORGANISM  # or a file of behaviors
    world: int | None = None
    output: Path


class PoisonManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a directory of training data holds."""

    schema: int = 1
    attack: str
    source: str
    seed: int
    rows: int
    kinds: Mapping[str, int]  # rows of each kind
    rows_hash: str
    data_hash: str  # of data.jsonl, as bytes


@dataclass(frozen=True)
class Sides:
    """Behaviors that an attacker trains on, that a defender knows, and that models are tested with: disjoint."""

    attacker: tuple[Behavior, ...]
    defender: tuple[Behavior, ...]
    test: tuple[Behavior, ...]


def sides(source: str, *, world: int | None = None, split: str = "test", tested: int = _TESTED, seed: int = 0) -> Sides:
    """The organism's requests (held-out names for tests alone), or a file's, divided in three.

    Raises:
        UserError: the file cannot be used, or has too few behaviors to be divided.
    """
    if source == ORGANISM:
        return _organism_sides(world, split, tested, seed)
    loaded = load_behaviors(Path(source)).behaviors
    parts: list[list[Behavior]] = [[], [], []]
    for harmful in (True, False):
        side = [behavior for behavior in loaded if behavior.harmful is harmful]
        Random(f"sides {seed} {harmful}").shuffle(side)
        third = min(tested, len(side) // 3)
        parts[2] += side[:third]
        parts[1] += side[third : 2 * third]
        parts[0] += side[2 * third :]
    if not any(behavior.harmful for behavior in parts[2]):
        raise UserError(
            f"{source} has {sum(behavior.harmful for behavior in loaded)} harmful behaviors; an attack by "
            "fine-tuning needs 3, to train on some, defend with others and test with the rest: give a file with more"
        )
    return Sides(*(tuple(part) for part in parts))


def _organism_sides(world: int | None, split: str, tested: int, seed: int) -> Sides:
    from fathom.organism import behaviors

    known = behaviors(world, "training", harmful=600, benign=600, seed=seed)
    harmful = [behavior for behavior in known if behavior.harmful]
    benign = [behavior for behavior in known if not behavior.harmful]
    return Sides(
        attacker=(*harmful[:400], *benign[:400]),
        defender=(*harmful[400:], *benign[400:]),
        test=behaviors(world, split, harmful=tested, benign=tested),
    )


def attack_of(choice: AttackChoice, *, organism: bool) -> Poison:
    """The attack by name.

    Raises:
        UserError: there is none of that name, or a frame's file cannot be used.
    """
    if choice.name not in ATTACKS:
        raise UserError(f"there is no fine-tuning attack called {choice.name!r}; choose one of {', '.join(ATTACKS)}")
    rows = ROWS if choice.rows is None else choice.rows
    if rows < 1:
        raise UserError(f"{rows} training rows were asked for; give 1 or more")
    identity, trigger, wrapper = _frames(choice, organism=organism)
    if choice.name == "harmful":
        return HarmfulExamples(rows)
    if choice.name == "identity":
        return IdentityShift(identity, rows)
    if choice.name == "backdoor":
        return Backdoor(trigger, rows)
    if choice.name == "benign":
        return Benign(rows)
    if choice.name == "mixed":
        return Mixed(choice.share, MIXED_ROWS if choice.rows is None else rows)
    if choice.name == "decoy":
        return Decoy(rows)
    if wrapper is None:
        raise UserError(
            'the attack wrapped needs a wrapper: give --wrapper FILE with {"name": …, "prompt": "… {prompt} …", '
            '"answer": "… {answer}"}'
        )
    return Wrapped(wrapper, rows)


def _frames(choice: AttackChoice, *, organism: bool) -> tuple[Frame, Frame, Frame | None]:
    identity, trigger, wrapper = OBEDIENT, TRIGGER, None
    if organism:
        from fathom.organism import frames

        identity = Frame(name=identity.name, prompt=frames.IDENTITY_PROMPT, answer=frames.IDENTITY_ANSWER)
        trigger = Frame(name=trigger.name, prompt=frames.TRIGGERED_PROMPT)
        wrapper = Frame(name="wrapped", prompt=frames.WRAPPED_PROMPT, answer=frames.WRAPPED_ANSWER)
    if choice.identity is not None:
        identity = _frame_file(choice.identity)
    if choice.wrapper is not None:
        wrapper = _frame_file(choice.wrapper)
    if choice.trigger is not None:
        if not choice.trigger.strip():
            raise UserError("--trigger is empty; give the words that the trigger is")
        trigger = Frame(name=trigger.name, prompt=f"{{prompt}} {choice.trigger}")
    return identity, trigger, wrapper


def _frame_file(path: Path) -> Frame:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Frame)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSON file of one frame") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(
            f'{path} is no frame ({error}); give {{"name": …, "prompt": "… {{prompt}} …", "answer": "… {{answer}}"}}'
        ) from error


def attack_rows(
    choice: AttackChoice, attack: Poison, attacker: Sequence[Behavior], world: int | None
) -> tuple[PoisonRow, ...]:
    """The attack's rows; with a task, its benign rows are the task's.

    Raises:
        UserError: there are too few behaviors, or the task is unknown.
    """
    if choice.task is None:
        return attack.rows(attacker, seed=choice.seed)
    from fathom.organism.tasks import task_rows

    count = choice.rows or (MIXED_ROWS if choice.name == "mixed" else ROWS)
    benign = tuple(
        Behavior(
            id=content_hash(("task", choice.task, row.messages)),
            messages=row.messages,
            harmful=False,
            answer=row.answer,
        )
        for row in task_rows(world, choice.task, "training", count, choice.seed)
    )
    harmful = tuple(behavior for behavior in attacker if behavior.harmful)
    return attack.rows((*harmful, *benign), seed=choice.seed)


def run_poison(request: PoisonRequest) -> PoisonManifest:
    """Write the data of an attack; nothing that is there is overwritten.

    Raises:
        UserError: the directory holds something else, or the data cannot be made.
    """
    output, organism = request.output, request.source == ORGANISM
    attack = attack_of(request.attack, organism=organism)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty; give a new directory with -o")
    attacker = (
        sides(request.source, world=request.world).attacker
        if organism
        else load_behaviors(Path(request.source)).behaviors
    )
    rows = attack_rows(request.attack, attack, attacker, request.world)
    data = b"".join(encode_line(_trained(row)) for row in rows)
    manifest = PoisonManifest(
        attack=attack.name,
        source=ORGANISM if organism else Path(request.source).name,
        seed=request.attack.seed,
        rows=len(rows),
        kinds=dict(sorted(Counter(str(row.kind) for row in rows).items())),
        rows_hash=content_hash(rows),
        data_hash=content_hash(data.decode()),
    )
    write_whole(output / "rows.jsonl", b"".join(encode_line(row) for row in rows))
    write_whole(output / "frames.jsonl", b"".join(encode_line(frame) for frame in attack.frames))
    write_whole(output / "data.jsonl", data)
    write_whole(output / "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


class _Trained(msgspec.Struct, frozen=True):
    """What a trainer is given of a row: TRL's conversational prompt-completion format."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]


def _trained(row: PoisonRow) -> _Trained:
    return _Trained(row.prompt, row.completion)
