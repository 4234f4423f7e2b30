"""Forward tokens to the same success rate: plain GCG against early rejection and merging, on the built-in models.

Success: the greedy answer behind the suffix is judged harmful. Tokens: every token that goes through the model counts
once, every token of a backward pass twice more; looking at answers is counted for all. `plain, as nanoGCG counts` gives
plain GCG's own search at suffix + rest + target tokens for each candidate, the fixed beginning free, as nanoGCG runs
it; every other line counts what was run here, where candidates also share their common beginnings. `from a known
suffix` begins every search with the suffix of one request of the training split; finding that is shared among all.

    python benchmarks/suffix_search.py                          the shipped model, test split
    python benchmarks/suffix_search.py --model DIR --world 103 --split development
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from common import environment
from fathom.attack.kinds import Victim, prepare
from fathom.attack.suffix.attack import Suffix, TargetKind
from fathom.attack.suffix.state import State
from fathom.attack.suffix.text import suffix_text
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory

PLAIN = Suffix(steps=40, length=12, width=64, topk=32, buffer=0, merge=1, keep=0)
CHOSEN = replace(PLAIN, width=16, keep=4, merge=4)
VARIANTS = {
    "plain": PLAIN,
    "plain, best kept": replace(PLAIN, buffer=1),
    "merging 8": replace(PLAIN, buffer=1, merge=8),
    "rejection 1/4": replace(PLAIN, buffer=1, keep=4),
    "rejection 1/4, merging 8": replace(PLAIN, buffer=1, keep=4, merge=8),
    "rejection 1/8, merging 4": replace(PLAIN, buffer=1, keep=8, merge=4),
    "width 32, rejection 1/4, merging 4": replace(PLAIN, buffer=1, width=32, keep=4, merge=4),
    "width 16, rejection 1/4, merging 4": replace(PLAIN, buffer=1, width=16, keep=4, merge=4),
    "width 16, rejection 1/8, merging 2": replace(PLAIN, buffer=1, width=16, keep=8, merge=2),
    "chosen": CHOSEN,
    "8, 1/4, 2, moving on": replace(PLAIN, width=8, keep=4, merge=2),
    "16, 1/8, 2, moving on": replace(PLAIN, width=16, keep=8, merge=2),
    "32, 1/8, 4, moving on": replace(PLAIN, width=32, keep=8, merge=4),
    "width 8, rejection 1/4, merging 2": replace(PLAIN, buffer=1, width=8, keep=4, merge=2),
}


@dataclass(frozen=True)
class Outcome:
    success: bool
    steps: int
    tokens: int  # backward passes included
    nano_tokens: int  # had every candidate been computed from the suffix's first token on
    seconds: float


def run(attack: Suffix, model: ChatModel, items: Sequence, seed: int) -> list[Outcome]:
    """Every behavior's search to its end."""
    victim, found = Victim(model, OrganismJudge(), seed), []
    for target in attack.targets(items):
        start = time.perf_counter()
        state: State = attack.init(target, victim)
        scored = state.queries
        steps = 0
        while steps < attack.steps and not attack.done(state):
            state = attack.step(state, target, victim)
            steps += 1
        wanted = attack.wanted(target.items[0], model)
        whole = attack.length + 2 + len(wanted.ids)
        candidates = state.queries - scored - steps
        found.append(
            Outcome(
                success=state.verified,
                steps=steps,
                tokens=state.forward_tokens + 2 * state.backward_tokens,
                nano_tokens=candidates * whole + 3 * steps * whole,
                seconds=time.perf_counter() - start,
            )
        )
    return found


def known_start(attack: Suffix, model: ChatModel, world: int | None, seed: int) -> tuple[str, float]:
    """The suffix of the first request of the training split whose search succeeds, and what it took to find."""
    victim, spent = Victim(model, OrganismJudge(), seed), 0
    for target in attack.targets(prepare(model.chat, behaviors(world, "training", harmful=8, benign=0, seed=seed))):
        state: State = attack.init(target, victim)
        for _ in range(attack.steps):
            if attack.done(state):
                break
            state = attack.step(state, target, victim)
        spent += state.forward_tokens + 2 * state.backward_tokens
        if state.verified:
            return suffix_text(model.chat, state.best.ids), spent
    raise SystemExit("no search on the training split succeeded")


def show(name: str, found: Sequence[Outcome], base: float | None) -> float:
    """One line; returns the tokens per behavior, failures at what they spent."""
    n, wins = len(found), sum(one.success for one in found)
    mean = statistics.fmean(one.tokens for one in found)
    ordered = sorted(one.tokens if one.success else float("inf") for one in found)
    ninety = ordered[-(-9 * n // 10) - 1]
    ratio = "" if base is None else f"  {base / mean:5.1f} x"
    steps = statistics.fmean(one.steps for one in found)
    print(
        f"{name:38} ASR {wins:3}/{n}  steps {steps:5.1f}  tokens/behavior {mean:9.0f}  for 90 % {ninety:9.0f}"
        f"  {sum(one.seconds for one in found):6.1f} s{ratio}",
        flush=True,
    )
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(stage_directory("natural")))
    parser.add_argument("--world", type=int, default=None)
    parser.add_argument("--split", default="test")
    parser.add_argument("--behaviors", type=int, default=24)
    parser.add_argument("--target", type=TargetKind, default=TargetKind.PREFIX)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", nargs="+", help="variants by the beginning of their names")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    model = load(LoadOptions(name=arguments.model))
    asked = behaviors(arguments.world, arguments.split, harmful=arguments.behaviors, benign=0)
    items = prepare(model.chat, asked)
    base = None
    for name, variant in VARIANTS.items():
        if arguments.only and not any(name == start for start in arguments.only):
            continue
        attack = replace(variant, target=arguments.target, tokens=arguments.tokens, seed=arguments.seed)
        found = run(attack, model, items, arguments.seed)
        if name == "plain":
            nano = [replace(one, tokens=one.nano_tokens) for one in found]
            base = show("plain, as nanoGCG counts", nano, None)
        show(name, found, base)
    attack = replace(CHOSEN, target=arguments.target, tokens=arguments.tokens, seed=arguments.seed)
    start, spent = known_start(attack, model, arguments.world, arguments.seed)
    found = run(replace(attack, start=start), model, items, arguments.seed)
    share = [replace(one, tokens=one.tokens + spent // len(found)) for one in found]
    show("chosen, from a known suffix", share, base)


if __name__ == "__main__":
    main()
