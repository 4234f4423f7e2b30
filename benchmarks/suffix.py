"""One GCG step against nanoGCG 0.3.0's on the same random weights and the very same candidates; losses and choice too.

nanoGCG pins transformers <= 4.47.1, so it runs in an environment of its own, a process beside this one, and the two
take turns. Make that environment once:

    python -m venv nanogcg-env
    nanogcg-env/bin/pip install nanogcg==0.3.0 transformers==4.47.1 torch==2.13.0 numpy
    python benchmarks/suffix.py --nanogcg nanogcg-env/bin/python

or name the interpreter in NANOGCG_PYTHON, for `make bench`. Without it, candidates run whole are the baseline.

A Llama of 63 M parameters with a vocabulary of 49 152: 97 tokens, a suffix of 20, 5 more, a target
of 20; topk 64; fp32.
nanoGCG collects garbage twice a step, which weighs more the smaller the model: times are given with and without it.
Processor time is given beside time on the clock, since it does not depend on what else the machine does.
"""

import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common import Effort, Figure, Goal, environment, info_of, options, peak_memory, table
from fathom.attack.suffix.candidates import best_ids, draw, generator
from fathom.attack.suffix.evaluate import PACKED_CPU, Evaluator, PlainEvaluator, evaluator
from fathom.attack.suffix.objective import loss_of
from fathom.attack.suffix.options import CrossEntropy
from fathom.attack.suffix.problem import Case, Target
from fathom.chat import ChatFormat
from fathom.model import ChatModel
from fathom.scoring import Scorer

WORKER = Path(__file__).with_name("nanogcg_worker.py")
TOPK = 64


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 49_152
    hidden: int = 512
    intermediate: int = 2048
    layers: int = 9
    before: int = 97
    suffix: int = 20
    after: int = 5
    target: int = 20


QUICK = Shape(vocabulary=997, hidden=32, intermediate=64, layers=2, before=30, suffix=8, target=9)


@dataclass(frozen=True)
class Task:
    """One step's inputs; picklable, so that a fresh process can run it."""

    directory: Path
    before: tuple[int, ...]
    suffix: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    threads: int

    @property
    def case(self) -> Case:
        return Case(behavior="random", before_ids=self.before, after_ids=self.after, target=Target(self.target))


def save_model(directory: Path, shape: Shape) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = models.WordLevel({f"w{i}": i for i in range(shape.vocabulary)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")  # type: ignore[no-untyped-call]
    fast.save_pretrained(directory)


def make_task(directory: Path, shape: Shape, threads: int) -> Task:
    draws = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draws.randrange(1, shape.vocabulary) for _ in range(count))

    save_model(directory, shape)
    return Task(directory, ids(shape.before), ids(shape.suffix), ids(shape.after), ids(shape.target), threads)


def load_scorer(directory: Path) -> Scorer:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    info = info_of(model, model.config.max_position_embeddings)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    return Scorer.of(ChatModel(model=model, chat=ChatFormat(tokenizer, None, "plain", frozenset()), info=info))


@dataclass(frozen=True)
class Timed:
    """A step: how long it took, and the loss of every candidate."""

    seconds: float
    cpu_seconds: float
    losses: list[float]


@dataclass(frozen=True)
class NanoTimed(Timed):
    """nanoGCG's, as the worker answers: with its memory in MB, its candidates, and the place of the one it chose."""

    memory: float
    candidates: list[list[int]]
    chosen: int


TIMES: dict[str, Callable[[Timed], float]] = {
    "clock": lambda step: step.seconds,
    "processor": lambda step: step.cpu_seconds,
}


class Ours:
    """fathom's step: gradient, drawing, the check that candidates can be typed, losses, choice."""

    def __init__(self, task: Task, scorer: Scorer) -> None:
        torch.set_num_threads(task.threads)
        self.task, self.scorer = task, scorer
        self.tokenizer = self.scorer.model.chat.tokenizer
        self.evaluator: Evaluator = evaluator(self.scorer, task.case, task.suffix, CrossEntropy(), print)
        self.allowed = torch.ones(self.scorer.vocabulary, dtype=torch.bool)

    def step(self, candidates: Sequence[Sequence[int]]) -> Timed:
        """One step on given candidates; its own are drawn and checked too, and then put aside."""
        given = torch.tensor(candidates)
        start, cpu = time.perf_counter(), time.process_time()
        gradient = self.evaluator.gradient(self.task.suffix, CrossEntropy())
        best = best_ids(gradient.slope, self.allowed, TOPK)
        own = draw(self.task.suffix, best, len(given), 1, generator(0, 0))
        texts = self.tokenizer.batch_decode(own)
        again = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert again == own.tolist()
        distinct, places = torch.unique(given, dim=0, return_inverse=True)
        losses = loss_of(self.evaluator.scores(distinct).reading, self.task.case.target, CrossEntropy())
        losses = losses[places]
        int(losses.argmin())
        return Timed(time.perf_counter() - start, time.process_time() - cpu, losses.tolist())


class NanoGCG:
    """nanoGCG's step, in its own interpreter."""

    def __init__(self, interpreter: str, task: Task) -> None:
        self.interpreter, self.task = interpreter, task
        self.process = subprocess.Popen(
            [interpreter, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        names = ("before", "after", "target")
        self.ask(
            {"model": str(task.directory), "topk": TOPK, "threads": task.threads}
            | {name: getattr(task, name) for name in names}
        )

    def ask(self, request: Mapping[str, object]) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.interpreter} ended: does it have nanogcg 0.3.0? See {Path(__file__).name}")
        answer: object = json.loads(line)
        return answer

    def step(self, width: int, *, collect: bool) -> NanoTimed:
        answer = self.ask({"suffix": self.task.suffix, "width": width, "seed": 1, "collect": collect})
        return msgspec.convert(answer, type=NanoTimed)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Prepared:
    """Makes, in a fresh process, the callable whose memory is measured: all that a search needs beside the model."""

    task: Task
    candidates: list[list[int]]

    def __call__(self) -> "Once":
        return Once(self.task, load_scorer(self.task.directory), self.candidates)


@dataclass(frozen=True)
class Once:
    task: Task
    scorer: Scorer
    candidates: list[list[int]]

    def __call__(self) -> None:
        Ours(self.task, self.scorer).step(self.candidates)


def compare(task: Task, interpreter: str, widths: Sequence[int], rounds: Sequence[int]) -> list[Figure]:
    ours, nano = Ours(task, load_scorer(task.directory)), NanoGCG(interpreter, task)
    nano.step(2, collect=True)
    figures: list[Figure] = []
    for width, count in zip(widths, rounds, strict=True):
        theirs: dict[bool, list[NanoTimed]] = {True: [], False: []}
        mine: list[Timed] = []
        for _ in range(count):
            for collect in (True, False):
                theirs[collect].append(nano.step(width, collect=collect))
            mine.append(ours.step(theirs[True][-1].candidates))
        report(width, mine, theirs)
        figures += compared(task, width, mine, theirs)
    nano.close()
    return figures


def compared(
    task: Task, width: int, mine: Sequence[Timed], theirs: Mapping[bool, Sequence[NanoTimed]]
) -> Iterator[Figure]:
    """Losses, choice, processor time and memory at one width."""
    last, losses = theirs[True][-1], mine[-1].losses
    worst = max(abs(a - b) for a, b in zip(losses, last.losses, strict=True))
    own = min(range(len(losses)), key=losses.__getitem__)
    same = last.candidates[own] == last.candidates[last.chosen]
    name, parts = f"GCG step, width {width}", {"baseline": "nanoGCG 0.3.0", "ours": "shared keys, first change on"}
    yield Figure(f"{name}: largest difference of a loss", worst, "nats", goal=Goal.AT_MOST, target=1e-5)
    yield Figure(f"{name}: the same choice", float(same), "of 1", goal=Goal.AT_LEAST, target=1.0)
    for collect, how in ((True, "as it is"), (False, "without its gc.collect")):
        ratio = statistics.median(step.cpu_seconds for step in theirs[collect]) / statistics.median(
            one.cpu_seconds for one in mine
        )
        yield Figure(f"{name}, nanoGCG {how}, processor time", ratio, **parts, goal=Goal.AT_LEAST, target=2.5)
    memory = peak_memory(Prepared(task, last.candidates)).extra
    ratio = max(step.memory for step in theirs[True]) / memory
    yield Figure(f"{name}: memory beyond the model", ratio, **parts, goal=Goal.AT_LEAST, target=4.0)


def report(width: int, mine: Sequence[Timed], theirs: Mapping[bool, Sequence[NanoTimed]]) -> None:
    print(f"width {width}, {len(mine)} rounds")
    for label, read in TIMES.items():
        own = statistics.median(read(step) for step in mine)
        parts = [f"fathom {own:.2f} s"]
        for collect, name in ((True, "nanoGCG"), (False, "nanoGCG without gc.collect")):
            other = statistics.median(read(step) for step in theirs[collect])
            ratios = [read(step) / read(one) for step, one in zip(theirs[collect], mine, strict=True)]
            parts.append(f"{name} {other:.2f} s, {other / own:.2f} x ({min(ratios):.2f} – {max(ratios):.2f})")
        print(f"  {label}: " + "; ".join(parts), flush=True)


def alone(task: Task) -> list[Figure]:
    """Without nanoGCG: the fast way against the plain one, which is what every candidate costs when run whole."""
    ours = Ours(task, load_scorer(task.directory))
    plain = PlainEvaluator(ours.scorer, task.case, print, PACKED_CPU)
    gradient = ours.evaluator.gradient(task.suffix, CrossEntropy())
    candidates = draw(task.suffix, best_ids(gradient.slope, ours.allowed, TOPK), 64, 1, generator(0, 0))
    start = time.perf_counter()
    theirs = loss_of(plain.scores(candidates).reading, task.case.target, CrossEntropy())
    middle = time.perf_counter()
    own = ours.step(candidates.tolist())
    worst = max(abs(a - b) for a, b in zip(own.losses, theirs.tolist(), strict=True))
    return [
        Figure("GCG step, width 64: largest difference of a loss", worst, "nats", goal=Goal.AT_MOST, target=1e-5),
        Figure(
            "GCG step, width 64",
            (middle - start) / own.seconds,
            baseline="every candidate whole",
            ours="shared keys, first change on",
        ),
    ]


def measure(
    effort: Effort, threads: int, interpreter: str | None, widths: Sequence[int], rounds: Sequence[int]
) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        task = make_task(Path(directory), Shape() if effort is Effort.FULL else QUICK, threads)
        return alone(task) if interpreter is None else compare(task, interpreter, widths, rounds)


def figures(effort: Effort, threads: int) -> list[Figure]:
    return measure(effort, threads, os.environ.get("NANOGCG_PYTHON"), (64, 512), (5, 2))


def main() -> None:
    parser = options(__doc__, threads=1)
    parser.add_argument("--nanogcg", metavar="PYTHON", help="interpreter of the environment with nanogcg 0.3.0")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rounds", type=int, nargs="+", default=[7, 2], help="of each width")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(environment())
    interpreter = given.nanogcg or os.environ.get("NANOGCG_PYTHON")
    print(table(measure(given.effort, given.threads, interpreter, given.widths, given.rounds)))


if __name__ == "__main__":
    main()
