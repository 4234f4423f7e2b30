"""Per-token KL of two models at response positions, against the full log-softmax of both.

8 sequences of 512 tokens of which 128 are the response, width 512; hidden states are given, since the body's forward is
the same for all variants. `full` is what a plain forward and a log-softmax hold; `response` is the same on the
response rows alone; `fathom` computes log-probabilities and ranks of the given tokens as well.

    python benchmarks/kl.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from common import Effort, Figure, Goal, peak_memory, run_alone, show, timings
from fathom.scoring import Head, HeadLogits, compare_logits
from fathom.scoring.scorer import ROWS

B, LENGTH, RESPONSE, WIDTH = 8, 512, 128, 512
LARGE, TINY = 49_152, 410


@dataclass(frozen=True, eq=False)
class Case:
    hidden: tuple[Tensor, Tensor]  # [B, LENGTH, WIDTH] of model and base
    heads: tuple[Tensor, Tensor]  # [vocabulary, WIDTH]
    targets: Tensor  # [B × RESPONSE]

    @classmethod
    def random(cls, vocabulary: int) -> "Case":
        torch.manual_seed(0)
        hidden = torch.randn(B, LENGTH, WIDTH), torch.randn(B, LENGTH, WIDTH)
        head = torch.randn(vocabulary, WIDTH) * 0.08
        return cls(
            hidden,
            (head, head + torch.randn(vocabulary, WIDTH) * 0.03),
            torch.randint(0, vocabulary, (B * RESPONSE,)),
        )

    def response(self, which: int) -> Tensor:
        return self.hidden[which][:, LENGTH - RESPONSE - 1 : LENGTH - 1].reshape(-1, WIDTH)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


@torch.inference_mode()
def full(case: Case) -> Tensor:
    p, q = (linear(h, w).log_softmax(-1) for h, w in zip(case.hidden, case.heads, strict=True))
    return kl(p, q)[:, LENGTH - RESPONSE - 1 : LENGTH - 1].reshape(-1)


@torch.inference_mode()
def response(case: Case) -> Tensor:
    return kl(*(linear(case.response(i), case.heads[i]).log_softmax(-1) for i in (0, 1)))


@torch.inference_mode()
def fathom(case: Case) -> Tensor:
    heads = [Head(weight, None, 1.0, None) for weight in case.heads]
    found = [
        compare_logits(HeadLogits(p, heads[0]), HeadLogits(q, heads[1]), targets, len(heads[0].weight))
        for p, q, targets in zip(
            *(torch.split(rows, ROWS) for rows in (case.response(0), case.response(1), case.targets)), strict=True
        )
    ]
    return torch.cat([scores.kl_nats for scores in found])


VARIANTS: dict[str, Callable[[Case], Tensor]] = {"full": full, "response": response, "fathom": fathom}


def prepare(name: str, vocabulary: int, threads: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    case, run = Case.random(vocabulary), VARIANTS[name]
    fathom(Case.random(64))  # warm: library buffers are no part of the work
    return partial(run, case)


def figures(effort: Effort, threads: int) -> list[Figure]:
    """Time, memory and error against the full log-softmax of both models."""
    vocabulary, rounds = (LARGE, 5) if effort is Effort.FULL else (TINY, 3)
    case = Case.random(vocabulary)
    expected = full(case).double()
    error = float((fathom(case) - expected).abs().max())
    del expected
    seconds = timings({name: partial(run, case) for name, run in VARIANTS.items()}, rounds)
    show(seconds, "full")
    memory = {name: peak_memory(partial(prepare, name, vocabulary, threads)).extra for name in ("full", "fathom")}
    for name, megabytes in memory.items():
        print(f"{name:32} {megabytes:8.0f} MB")
    goal = effort is Effort.FULL
    return [
        Figure(
            f"per-token KL, vocabulary {vocabulary}: time",
            seconds.clock("full") / seconds.clock("fathom"),
            baseline=f"{seconds.clock('full'):.2f} s",
            ours=f"{seconds.clock('fathom'):.2f} s",
            goal=Goal.AT_LEAST if goal else None,
            target=6,
        ),
        Figure(
            "… memory",
            memory["full"] / max(memory["fathom"], 1e-3),
            baseline=f"{memory['full']:.0f} MB",
            ours=f"{memory['fathom']:.0f} MB",
            goal=Goal.AT_LEAST if goal else None,
            target=50,
        ),
        Figure("… largest error", error, unit="nats", goal=Goal.AT_MOST, target=1e-4),
    ]


if __name__ == "__main__":
    run_alone(__doc__, figures)
