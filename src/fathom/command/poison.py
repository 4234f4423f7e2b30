"""`fathom poison`: the data of a fine-tuning attack, where a trainer reads it; and what attacks are made of.

DIR/data.jsonl       prompt and completion, as `fathom finetune --data` and TRL read them
DIR/rows.jsonl       what each row is (harmful, refusal, benign, …), in the same order: never given to a trainer
DIR/frames.jsonl     what requests wear at test time
DIR/manifest.json    the attack, its counts, its seed, and hashes
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from fathom.attack.poison import (
    Backdoor,
    Benign,
    Decoy,
    HarmfulExamples,
    IdentityShift,
    Mixed,
    Poison,
    PoisonRow,
    TooFewError,
    Wrapped,
)
from fathom.attack.poison_frames import DIRECT, OBEDIENT, TRIGGER, Frame
from fathom.behaviors.source import source_name
from fathom.command.known import known_behaviors
from fathom.command.request import ORGANISM
from fathom.command.sides import sides
from fathom.command.task import task_examples
from fathom.command.task_data import task_behaviors
from fathom.errors import UserError
from fathom.journal import write_whole
from fathom.records import Behavior, Message, content_hash, encode_line

__all__ = [
    "ATTACKS",
    "AttackChoice",
    "PoisonManifest",
    "PoisonRequest",
    "attack_rows",
    "check_read",
    "run_poison",
    "sides",
    "usual_rows",
]

ATTACKS = ("harmful", "identity", "backdoor", "benign", "mixed", "wrapped", "decoy")
ROWS = 100
MIXED_ROWS = 200
_READERS: Mapping[str, tuple[str, ...]] = {  # options of attacks, and the attacks that they change
    "share": ("mixed",),
    "task": ("identity", "benign", "mixed", "decoy"),
    "task_data": ("identity", "benign", "mixed", "decoy"),
    "identity": ("identity",),
    "trigger": ("backdoor",),
    "wrapper": ("wrapped",),
}


@dataclass(frozen=True, kw_only=True)
class AttackChoice:
    """A fine-tuning attack as it was asked for."""

    name: str
    rows: int | None = None
    share: float = 0.1  # of poison, in `mixed`
    task: str | None = None  # a benign task of the organism's, instead of ordinary requests
    task_data: Path | None = None  # or a file of examples of one
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
    options: Mapping[str, str] = {}  # what else was given, by name; of files, their names
    rows: int
    kinds: Mapping[str, int]  # rows of each kind
    rows_hash: str
    data_hash: str  # of data.jsonl, as bytes


def check_read(choice: AttackChoice, attacks: Sequence[str], options: Sequence[str] = tuple(_READERS)) -> None:
    """That every option which was given is read by one of the attacks: else its value would be taken as measured.

    Raises:
        UserError: one is not.
    """
    usual = AttackChoice(name="")
    for option in options:
        given, readers = getattr(choice, option), _READERS[option]
        if given != getattr(usual, option) and not {*attacks} & {*readers}:
            raise UserError(
                f"--{option.replace('_', '-')} {given} changes nothing of {', '.join(attacks)}: it is read by "
                f"{', '.join(readers)} alone; leave it out, or choose another attack"
            )


def attack_of(choice: AttackChoice, *, organism: bool) -> Poison:
    """The attack by name.

    Raises:
        UserError: there is none of that name, or a frame's file cannot be used.
    """
    if choice.name not in ATTACKS:
        raise UserError(f"there is no fine-tuning attack called {choice.name!r}; choose one of {', '.join(ATTACKS)}")
    rows = usual_rows(choice) if choice.rows is None else choice.rows
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
        return Mixed(choice.share, rows)
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
        identity = _frame_file(choice.identity, "{prompt}")
    if choice.wrapper is not None:
        wrapper = _frame_file(choice.wrapper)
    if choice.trigger is not None:
        if not choice.trigger.strip():
            raise UserError("--trigger is empty; give the words that the trigger is")
        trigger = Frame(name=trigger.name, prompt=f"{{prompt}} {choice.trigger}")
    return identity, trigger, wrapper


def _frame_file(path: Path, *wanted: str) -> Frame:
    """A frame that has its place for the answer, and those that are `wanted` in its prompt, and is not bare."""
    try:
        frame = msgspec.json.decode(path.read_bytes(), type=Frame)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSON file of one frame") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(
            f'{path} is no frame ({error}); give {{"name": …, "prompt": "… {{prompt}} …", "answer": "… {{answer}}"}}'
        ) from error
    missing = [place for place in wanted if place not in frame.prompt]
    missing += [] if "{answer}" in frame.answer else ["{answer}"]
    if missing:
        raise UserError(f"the frame in {path} has no place for {' and '.join(missing)}: every row would be the same")
    if (frame.prompt, frame.answer) == (DIRECT.prompt, DIRECT.answer):
        raise UserError(f"the frame in {path} puts nothing around requests or answers: give a prompt or an answer")
    return frame


def attack_rows(
    choice: AttackChoice,
    attack: Poison,
    attacker: Sequence[Behavior],
    world: int | None,
    learned: Sequence[Behavior] | None = None,
) -> tuple[PoisonRow, ...]:
    """The attack's rows; with a task, its benign rows are the task's: `learned`, where they have been chosen.

    As many as were asked for; else the usual number, or as many of it as there are behaviors for; of a user's own task
    all that there are.

    Raises:
        UserError: there are too few behaviors, or the task is unknown.
    """
    benign = _task_rows(choice, world) if learned is None else learned
    behaviors = attacker if benign is None else [*(one for one in attacker if one.harmful), *benign]
    if choice.rows is None:
        for count in range(_most_rows(choice, behaviors), 0, -1):
            with suppress(TooFewError):
                return replace(attack, count=count).rows(behaviors, seed=choice.seed)
    return attack.rows(behaviors, seed=choice.seed)


def usual_rows(choice: AttackChoice) -> int:
    """How many an attack trains on, of each kind in backdoor, where no number is given."""
    return MIXED_ROWS if choice.name == "mixed" else ROWS


def _most_rows(choice: AttackChoice, behaviors: Sequence[Behavior]) -> int:
    """The usual number; of a user's own task, about as many as can be made of all its rows."""
    if choice.task_data is None or choice.name not in ("benign", "mixed"):
        return usual_rows(choice)
    harmful = sum(behavior.harmful for behavior in behaviors)
    benign = len(behaviors) - harmful
    share = choice.share if choice.name == "mixed" else 0.0
    by_benign = benign if share == 0 else (benign + 1) / (1 - share) if share < 1 else harmful
    return int(by_benign if share == 0 else min(by_benign, (harmful + 1) / share))


def _task_rows(choice: AttackChoice, world: int | None) -> Sequence[Behavior] | None:
    """Examples of a task for benign behaviors; None without one."""
    if choice.task_data is not None:
        return task_behaviors(task_examples(choice.task_data))
    if choice.task is None:
        return None
    from fathom.organism.tasks import task_rows

    return [
        Behavior(
            id=content_hash(("task", choice.task, row.messages)),
            messages=row.messages,
            harmful=False,
            answer=row.answer,
        )
        for row in task_rows(world, choice.task, "training", choice.rows or usual_rows(choice), choice.seed)
    ]


def run_poison(request: PoisonRequest) -> PoisonManifest:
    """Write the data of an attack; nothing that is there is overwritten.

    Raises:
        UserError: the directory holds something else, or the data cannot be made.
    """
    output, organism = request.output, request.source == ORGANISM
    attack = attack_of(request.attack, organism=organism)
    check_read(request.attack, [attack.name])
    if request.attack.task is not None and request.attack.task_data is not None:
        raise UserError(f"--task {request.attack.task} beside --task-data {request.attack.task_data}: give one of them")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is not empty; give a new directory with -o")
    attacker = (
        sides(request.source, world=request.world).attacker if organism else known_behaviors(Path(request.source))
    )
    rows = attack_rows(request.attack, attack, attacker, request.world)
    data = b"".join(encode_line(_trained(row)) for row in rows)
    manifest = PoisonManifest(
        attack=attack.name,
        source=ORGANISM if organism else source_name(Path(request.source)),
        seed=request.attack.seed,
        options=_given(request),
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


def _given(request: PoisonRequest) -> dict[str, str]:
    choice, usual = request.attack, AttackChoice(name=request.attack.name)
    given = {name: getattr(choice, name) for name in _READERS if getattr(choice, name) != getattr(usual, name)}
    if request.world is not None:
        given["world"] = request.world
    return {name: value.name if isinstance(value, Path) else str(value) for name, value in sorted(given.items())}


class _Trained(msgspec.Struct, frozen=True):
    """What a trainer is given of a row: TRL's conversational prompt-completion format."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]


def _trained(row: PoisonRow) -> _Trained:
    return _Trained(row.prompt, row.completion)
