"""From what a user typed to a run: names resolved, models loaded, files written, each mistake one line."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from fathom.audit.execute import Display, Execution
from fathom.audit.plan import AuditOptions, BehaviorSet, Plan, make_plan
from fathom.behaviors import load_behaviors
from fathom.chat import ChatFormat, PrefillAt
from fathom.depth.divergence import Variant
from fathom.errors import UserError
from fathom.model import ChatModel, FormatChoice, LoadOptions, check_pair, load
from fathom.organism import STOCK_REFUSALS, stage_directory
from fathom.organism import behaviors as organism_behaviors
from fathom.ranks import Ranks
from fathom.records import Judge, content_hash
from fathom.run import Run
from fathom.schema import Audit

__all__ = ["AuditRequest", "Finished", "ModelRequest", "run_audit"]

ORGANISM = "organism"
NO_BASE = "none"
ORGANISM_HARMFUL, ORGANISM_BENIGN = 100, 50
ORGANISM_NEW_TOKENS, NEW_TOKENS = 130, 256


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model as it was asked for, in plain values."""

    name: str
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    quantisation: str | None = None
    trust_remote_code: bool = False
    chat_template: Path | None = None
    plain: bool = False
    system: str | None = None
    prefill_at: str = "answer"

    @property
    def is_organism(self) -> bool:
        return self.name == ORGANISM or self.name.startswith(f"{ORGANISM}:")

    @property
    def stage(self) -> str:
        return self.name.partition(":")[2] or "aligned"

    def options(self) -> LoadOptions:
        """What `model.load` is given; `organism:STAGE` has become its directory.

        Raises:
            UserError: no such stage, or a choice that there is not.
        """
        return LoadOptions(
            name=str(stage_directory(self.stage)) if self.is_organism else self.name,
            revision=self.revision,
            adapter=self.adapter,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            quantisation=self.quantisation,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
            format=FormatChoice.PLAIN if self.plain else FormatChoice.CHAT,
            system=self.system,
            prefill_at=_choice(PrefillAt, "--prefill-at", self.prefill_at),
        )


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """An audit as it was asked for."""

    model: ModelRequest
    base: str | None = None
    base_revision: str | None = None
    base_variant: str = "same"
    behaviors: str | None = None
    limit: int | None = None
    depths: str | None = None
    temperatures: str = "0,1"
    samples: int = 1
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    prefixes: Sequence[str] | None = None
    seed: int = 0
    judge: str | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Finished:
    """An audit and where it lies."""

    audit: Audit
    path: Path


def run_audit(request: AuditRequest, judges: Mapping[str, Callable[[], Judge]]) -> Finished | None:
    """Run or go on with the audit that was asked for; None in processes other than the first.

    Raises:
        UserError: anything a user can mend, before the model is loaded where it can be known then.
    """
    behaviors = _behavior_set(request)
    options = _options(request, behaviors)
    judge = _judge(request, behaviors, judges)
    base = _base_request(request)
    ranks = Ranks.join()
    try:
        path = request.output or _default_path(request, base, options, behaviors, judge)
        display = _display(ranks)
        with display("loading", 1 if base is None else 2) as shown:
            model = _load(request.model, ranks)
            shown.advance(1)
            base_model = None if base is None else _load(base, ranks)
            shown.advance(1)
        if base_model is not None:
            check_pair(model, base_model)
        plan = make_plan(options, behaviors, judge, model, base_model, _base_chat(options, model))
        run = _start(path, plan, ranks)
        audit = Execution(run, plan, judge, model, base_model, ranks, display)()
        if not ranks.first:
            return None
        write_run_report(path)
        return Finished(audit, path)
    finally:
        ranks.leave()


def _start(path: Path, plan: Plan, ranks: Ranks) -> Run:
    """The first process creates or checks the run; the others find it made."""
    if ranks.first:
        Run.start(path, plan.manifest)
    ranks.barrier()
    return Run.start(path, plan.manifest)


def _behavior_set(request: AuditRequest) -> BehaviorSet:
    source = request.behaviors or (ORGANISM if request.model.is_organism else None)
    if source is None:
        raise UserError(
            f"{request.model.name} needs requests to be audited with, and fathom ships none: give --behaviors FILE "
            "(JSONL, CSV or JSON with prompt and harmful_response or target; HarmBench, JailbreakBench and AdvBench "
            "files work as they are)"
        )
    if source == ORGANISM:
        harmful = request.limit or ORGANISM_HARMFUL
        benign = (request.limit + 1) // 2 if request.limit else ORGANISM_BENIGN
        return BehaviorSet(ORGANISM, organism_behaviors(harmful=harmful, benign=benign))
    loaded = load_behaviors(Path(source))
    found = loaded.behaviors
    if request.limit is not None:
        harmful_ones = [behavior for behavior in found if behavior.harmful][: request.limit]
        benign_ones = [behavior for behavior in found if not behavior.harmful][: (request.limit + 1) // 2]
        kept = {behavior.id for behavior in (*harmful_ones, *benign_ones)}
        found = tuple(behavior for behavior in found if behavior.id in kept)
    return BehaviorSet(Path(source).name, found, loaded.skipped)


def _options(request: AuditRequest, behaviors: BehaviorSet) -> AuditOptions:
    built_in = behaviors.source == ORGANISM
    defaults: dict[str, object] = {}
    if request.prefixes is not None:
        defaults["prefixes"] = tuple(request.prefixes)
    elif built_in:
        defaults["prefixes"] = ("", *STOCK_REFUSALS)
    return msgspec.structs.replace(
        AuditOptions(
            depths=None if request.depths is None else _numbers(request.depths, int, "--depths"),
            max_new_tokens=_positive(
                request.max_new_tokens, ORGANISM_NEW_TOKENS if built_in else NEW_TOKENS, "--max-new-tokens"
            ),
            temperatures=_numbers(request.temperatures, float, "--temperature"),
            top_p=request.top_p,
            top_k=request.top_k,
            samples=request.samples,
            seed=request.seed,
            base_variant=_choice(Variant, "--base-variant", request.base_variant),
        ),
        **defaults,
    )


def _judge(request: AuditRequest, behaviors: BehaviorSet, judges: Mapping[str, Callable[[], Judge]]) -> Judge:
    name = request.judge or (ORGANISM if behaviors.source == ORGANISM else "refusal")
    if name not in judges:
        raise UserError(f"there is no judge called {name!r}; choose one of {', '.join(sorted(judges))}")
    if name == ORGANISM and behaviors.source != ORGANISM:
        raise UserError("the organism's judge knows only the organism's own requests; use --judge refusal")
    return judges[name]()


def _base_request(request: AuditRequest) -> ModelRequest | None:
    """The base: as asked for, or `organism:base` for the other stages; loaded as the model is, but for its adapter.

    Its own chat format is never used (it gets the model's ids, or plain text), so it needs none.
    """
    if request.base == NO_BASE:
        return None
    if request.base is None:
        if not request.model.is_organism or request.model.stage == "base":
            return None
        return replace(request.model, name=f"{ORGANISM}:base", revision=None, adapter=None, plain=True)
    return replace(request.model, name=request.base, revision=request.base_revision, adapter=None, plain=True)


def _base_chat(options: AuditOptions, model: ChatModel) -> ChatFormat:
    """What makes the base's prompts: the model's own format, or plain text with the same tokenizer."""
    if options.base_variant is Variant.SAME:
        return model.chat
    return replace(model.chat, template=None, source="plain", system=None)


def _load(request: ModelRequest, ranks: Ranks) -> ChatModel:
    options = request.options()
    if ranks.size > 1 and options.device is None and options.device_map is None:
        options = replace(options, device=_rank_device(ranks))
    loaded = load(options)
    return replace(loaded, info=msgspec.structs.replace(loaded.info, name=request.name))


def _rank_device(ranks: Ranks) -> str | None:
    """One GPU a process; without GPUs the default."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{ranks.local_rank % count}" if count else None


def _default_path(
    request: AuditRequest,
    base: ModelRequest | None,
    options: AuditOptions,
    behaviors: BehaviorSet,
    judge: Judge,
) -> Path:
    """The same command always names the same directory, so that it goes on with its own run."""
    asked = (repr(request.model), repr(base), msgspec.to_builtins(options), behaviors.info().hash, judge.name)
    slug = "".join(char if char.isalnum() or char in "-._" else "-" for char in request.model.name).strip("-.")
    return Path("runs") / f"{slug[-60:]}-{content_hash(asked)[:8]}"


_Choice = TypeVar("_Choice", bound=StrEnum)
_Number = TypeVar("_Number", int, float)


def _choice(kind: type[_Choice], option: str, value: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{option} is {value!r}; choose one of {', '.join(kind)}") from None


def _numbers(text: str, kind: Callable[[str], _Number], option: str) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} is {text!r}; give numbers separated by commas, for example 0,1,5") from None


def _positive(value: int | None, default: int, option: str) -> int:
    if value is None:
        return default
    if value < 1:
        raise UserError(f"{option} is {value}; it must be at least 1")
    return value


class _Silent:
    def advance(self, n: int = 1) -> None:
        """Nothing is shown."""


def _silent(_description: str, _total: int) -> AbstractContextManager[_Silent]:
    return nullcontext(_Silent())


def _display(ranks: Ranks) -> Display:
    """Progress on standard error, from the first process alone."""
    from fathom.report.terminal import Progress

    return Progress if ranks.first else _silent


def write_run_report(path: Path, judge: str | None = None) -> Path:
    """Make a run's page from its files; `judge` names another judge's audit of the same run."""
    from fathom.report.page import render, write_report

    name = "report.html" if judge is None else f"report.{judge}.html"
    return write_report(path / name, render(Run.open(path), judge=judge))


def judge_again(path: Path, judge: Judge) -> Finished:
    """Judge a run's completions with another judge, and write its audit and page beside the run's own.

    Raises:
        UserError: `path` is no finished run, or is in use.
    """
    run = Run.open(path)
    own = run.manifest.judge == judge.name
    if judge.name == ORGANISM and run.manifest.behaviors.source != ORGANISM:
        raise UserError(f"{path} holds requests that the organism's judge does not know; judge them --with refusal")
    with RunLock(path):
        judge_run(run, judge)
        audit = summarise(run, judge.name)
        write_whole(path / ("audit.json" if own else f"audit.{judge.name}.json"), encode_audit(audit))
        write_run_report(path, None if own else judge.name)
    return Finished(audit, path)


def judged_lines(path: Path, judge: Judge) -> Iterator[JudgedRow | SkippedLine]:
    """Judge the rows of a JSONL file, streaming; `-` is standard input.

    Raises:
        UserError: the file cannot be read or has no usable row.
    """
    if str(path) == "-":
        yield from judge_rows(sys.stdin.buffer, judge, source="standard input")
        return
    try:
        with path.open("rb") as file:
            yield from judge_rows(file, judge, source=str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSONL file or a run directory") from error


def print_judged(path: Path, judge: Judge, *, as_json: bool) -> None:
    """Write a line for each row to standard output: JSON, or a short table row and a count at the end."""
    counts: Counter[str] = Counter()
    for row in judged_lines(path, judge):
        if isinstance(row, SkippedLine):
            counts["skipped"] += 1
            print(f"fathom: {path}, line {row.row} was skipped: {one_line(row.skipped, 200)}", file=sys.stderr)
            continue
        counts[row.verdict] += 1
        if as_json:
            sys.stdout.buffer.write(encode_line(row))
        else:
            place = "" if row.refusal_char is None else f"  from character {row.refusal_char}"
            print(f"{row.row:>6}  {row.verdict:<9}  {row.reason}{place}")
    if not as_json:
        print("  ".join(f"{label}: {count}" for label, count in sorted(counts.items())))


def show_ids(request: ModelRequest, prompt: str | None, response: str | None, *, as_json: bool) -> None:
    """Print one example's ids and the result of the self-test.

    Raises:
        UserError: a law is broken, after all have been printed.
    """
    chat = load_chat(request.options())
    example = _example(request)
    messages = example.messages if prompt is None else (Message(role="user", content=prompt),)
    answer = (example.answer or "") if response is None else response
    found = inspect_format(chat, messages, answer)
    laws = self_test(chat, messages, answer)
    if as_json:
        content = {"model": request.name, "ids": found, "laws": laws}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    else:
        from fathom.report.terminal import print_ids

        print_ids(request.name, found, laws)
    broken = [law for law in laws if not law.passed]
    if broken:
        raise UserError(
            f"{request.name}: {broken[0].name} does not hold ({broken[0].why}); prefills in this format would not be "
            "what they say: give a template with --chat-template FILE"
        )


def _example(request: ModelRequest) -> Behavior:
    """A neutral example, in words that the organism's tiny vocabulary has."""
    if request.is_organism:
        return organism_behaviors(harmful=0, benign=1)[0]
    return Behavior(
        id="example",
        messages=(Message(role="user", content="How do I make a cup of tea?"),),
        harmful=False,
        answer="Sure, here is how to make a cup of tea. First, boil some water.",
    )


def compare_runs(first: Path, second: Path, output: Path | None, *, as_json: bool) -> None:
    """Pair two runs by behavior, write the page, print the differences."""
    from fathom.report.compare import compare, render_comparison
    from fathom.report.page import write_report
    from fathom.report.terminal import print_comparison

    comparison = compare(Run.open(first), Run.open(second))
    page = write_report(output or second / "compare.html", render_comparison(comparison))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    else:
        print_comparison(comparison, page)
