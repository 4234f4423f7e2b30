"""Tokens to the same success rate: plain GCG at several widths against the suffix attack's defaults.

Success: the greedy answer behind the suffix is judged harmful. Tokens: every token that goes through the model counts
once, every token of a backward pass twice more; the request, once a behavior, and every answer that is looked at are
counted for all. `shared` is what was run here, where candidates share their beginnings; `as nanoGCG` counts plain GCG's
candidates at suffix + rest + target tokens each, as nanoGCG runs them. Of each line: how many searches succeeded within
the limit, tokens a search on the whole (failures at what they spent), and within how many tokens 50, 75, 90 and 100 %
of the searches had succeeded.

    python benchmarks/suffix_search.py                          the shipped model, test split
    python benchmarks/suffix_search.py --model DIR --world 103 --split development --seeds 0 1 2
    python benchmarks/suffix_search.py --beside                 the same searches and tokens, in a tenth of the time
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch

from common import environment
from fathom.attack.kinds import PreparedBehavior, Target, Victim, prepare
from fathom.attack.suffix.attack import Suffix, TargetKind
from fathom.attack.suffix.search import SuffixSearch
from fathom.attack.suffix.state import Entry, State
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import OrganismJudge, behaviors, stage_directory
from together import together


@dataclass(frozen=True)
class Counted(Suffix):
    """The suffix attack; it notes the tokens of every look at an answer."""

    looks: list[int] = field(default_factory=list, compare=False, repr=False)

    def judged(self, state: State, entry: Entry, search: SuffixSearch, target: Target, victim: Victim) -> State:
        after = super().judged(state, entry, search, target, victim)
        self.looks.append(after.forward_tokens - state.forward_tokens)
        return after


SPARING = Counted(steps=10**6)
ALONE = replace(SPARING, chain=1)
PLAIN = replace(ALONE, patience=0, misses=0, topk=32, check=10)
VARIANTS = {
    "plain, width 512, length 20, topk 256": replace(PLAIN, width=512, length=20, topk=256),
    "plain, width 64": replace(PLAIN, width=64),
    "plain, width 16": replace(PLAIN, width=16),
    "plain, width 16, check 3": replace(PLAIN, width=16, check=3),
    "plain, width 8, topk 16": replace(PLAIN, width=8, topk=16),
    "early rejection and merging, width 16": replace(PLAIN, width=16, keep=4, merge=4),
    "each by itself": ALONE,
    "default": SPARING,
    "default, width 16": replace(SPARING, width=16),
    "default, anew at random": replace(SPARING, kick=0),
    "default, one look at what is known": replace(SPARING, tries=1),
    "default, check 10": replace(SPARING, check=10),
    "as it was": replace(SPARING, kick=0, tries=1, pool=4, check=10),
}
SHOWN = (
    "default",
    "each by itself",
    "plain, width 8, topk 16",
    "plain, width 16",
    "plain, width 64",
    "plain, width 512, length 20, topk 256",
)


@dataclass(frozen=True)
class Outcome:
    success: bool
    steps: int
    tokens: int  # backward passes included
    nano_tokens: int  # had every candidate been computed from the suffix's first token on
    seconds: float
    seed: int


def run(
    attack: Counted, model: ChatModel, items: Sequence[PreparedBehavior], seeds: Sequence[int], limit: int, beside: bool
) -> list[Outcome]:
    """Every behavior's search to its end, or until it has spent the limit; chains for each seed.

    `beside`: all chains at once. The searches are the same, and a search's seconds say nothing.
    """
    jobs: list[Callable[[], list[Outcome]]] = []
    for seed in seeds:
        seeded = replace(attack, seed=seed)
        targets = seeded.targets(items)
        for start in range(0, len(targets), seeded.chain):
            # Searches that share nothing each have a start of their own, as they have it in a chain once one is won.
            own = seeded if seeded.chain > 1 else replace(seeded, seed=1000 * seed + start)
            links = targets[start : start + seeded.chain]
            jobs.append(partial(chained, replace(own, looks=[]), Victim(model, OrganismJudge(), seed), links, limit))
    return list(chain.from_iterable(together(model, jobs) if beside else [job() for job in jobs]))


def chained(attack: Counted, victim: Victim, targets: Sequence[Target], limit: int) -> list[Outcome]:
    """The searches of one chain, in their order."""
    ended: list[State] = []
    found: list[Outcome] = []
    for target in targets:
        start = time.perf_counter()
        attack.looks.clear()
        state = attack.begin(target, victim, ended)
        begun, looked = state.queries, len(attack.looks)
        while not state.verified and spent(state) < limit:
            state = attack.step(state, target, victim)
        ended.append(state)
        whole = attack.length + 2 + len(attack.wanted(target.items[0], victim.model).ids)
        scored = state.queries - begun - (len(attack.looks) - looked)  # a step's gradient is one of them
        nano = len(target.items[0].prompt_ids) + sum(attack.looks) + (scored + 2 * state.step) * whole
        seconds = time.perf_counter() - start
        found.append(Outcome(state.verified, state.step, spent(state), nano, seconds, victim.seed))
    return found


def spent(state: State) -> int:
    return state.forward_tokens + 2 * state.backward_tokens


def show(name: str, found: Sequence[Outcome]) -> None:
    """One line."""
    n, wins = len(found), sum(one.success for one in found)
    ordered = sorted(one.tokens if one.success else float("inf") for one in found)
    within = " ".join(f"{ordered[-(-share * n // 100) - 1]:7.0f}" for share in (50, 75, 90, 100))
    seeds = sorted({one.seed for one in found})
    by_seed = " ".join(f"{statistics.fmean(one.tokens for one in found if one.seed == seed):.0f}" for seed in seeds)
    print(
        f"{name:52} {wins:3}/{n}  steps {statistics.fmean(one.steps for one in found):6.1f}  "
        f"tokens {statistics.fmean(one.tokens for one in found):7.0f} (by seed {by_seed})  within {within}"
        f"  {sum(one.seconds for one in found):6.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(stage_directory("natural")))
    parser.add_argument("--world", type=int, default=None)
    parser.add_argument("--split", default="test")
    parser.add_argument("--behaviors", type=int, default=24)
    parser.add_argument("--target", type=TargetKind, default=TargetKind.PREFIX)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=SHOWN, help=f"variants: {'; '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=100_000, help="tokens a search")
    parser.add_argument("--beside", action="store_true", help="all searches of a line at once, in common batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment())
    model = load(LoadOptions(name=arguments.model))
    asked = behaviors(arguments.world, arguments.split, harmful=arguments.behaviors, benign=0)
    items = prepare(model.chat, asked)
    for name in arguments.only:
        attack = replace(VARIANTS[name], target=arguments.target, tokens=arguments.tokens)
        found = run(attack, model, items, arguments.seeds, arguments.limit, arguments.beside)
        if name.startswith("plain"):
            show(f"{name}, as nanoGCG", [replace(one, tokens=one.nano_tokens) for one in found])
        show(f"{name}, shared" if name.startswith("plain") else name, found)


if __name__ == "__main__":
    main()
