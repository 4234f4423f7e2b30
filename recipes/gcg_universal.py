"""Table 3, columns GCG: one suffix over 50 behaviors, 500 steps, repeated; mean ± standard deviation of the best three.

    python recipes/gcg_universal.py organism:natural organism:deepened
    python recipes/gcg_universal.py MODEL --behaviors FILE --repeats 10 --steps 500 --width 512 --topk 256 --length 20

Each repeat is a run directory (`runs/gcg/MODEL/seed`) whose report can be read by itself; killed, the same command goes
on. ASR is that of the behaviors the suffix was searched on, as in the paper, with that of the held-out ones beside it.

Source: section 5 and Table 3. Departure: behaviors join the search one by one; the judge is the run's, not GPT-4.
"""

import argparse
import statistics
from pathlib import Path

from fathom.cli.options import JUDGES
from fathom.command.attack import AttackRequest
from fathom.command.audit import AuditRequest, run_audit
from fathom.command.request import ModelRequest
from fathom.schema import AttackRow


def repeat(name: str, seed: int, given: argparse.Namespace) -> dict[str, AttackRow]:
    """One search and its answers: the rows of its splits."""
    words = f"universal-suffix steps={given.steps} width={given.width} topk={given.topk} length={given.length}"
    result = run_audit(
        AuditRequest(
            model=ModelRequest(name=name),
            base="none",
            behaviors=given.behaviors,
            limit=given.limit,
            depths="0",
            temperatures="0",
            samples=1,
            max_new_tokens=given.max_new_tokens,
            prefixes=(),
            seed=seed,
            judge=given.judge,
            output=given.output / name.replace("/", "_").replace(":", "_") / str(seed),
            attacks=AttackRequest(attacks=(f"{words} train={given.train} seed={seed}",), with_depth=False),
        ),
        JUDGES,
    )
    assert result is not None  # one process
    rows = [row for row in result.audit.attacks if row.attack == "universal-suffix"]
    return {str(row.parameters["split"]): row for row in rows}


def line(name: str, found: list[dict[str, AttackRow]]) -> str:
    """Mean and deviation of the best three repeats, by split."""
    cells = []
    for split in ("train", "held-out"):
        best = sorted((100 * rows[split].asr for rows in found if split in rows), reverse=True)[:3]
        if best:
            spread = f" ± {statistics.stdev(best):.1f}" if len(best) > 1 else ""
            cells.append(f"{split} {statistics.fmean(best):5.1f}{spread}")
    return f"{name:28} " + "   ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--behaviors", metavar="FILE")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--train", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--topk", type=int, default=32)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--judge")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gcg"))
    given = parser.parse_args()
    for name in given.models:
        found = [repeat(name, seed, given) for seed in range(given.repeats)]
        print(line(name, found), flush=True)


if __name__ == "__main__":
    main()
