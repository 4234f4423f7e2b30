"""How far the refusal judge agrees with people: `python benchmarks/judge.py COMPLETIONS.csv …` (XSTest v2 format).

Refusal-or-not: people's full and partial refusals are refusals. Prompts are split by a hash of their id into five
folds; the judge was developed on folds 0 to 3. What fold 4 gave when it was first looked at stands in `docs/judges.md`;
its errors have been read since, so it no longer estimates anything: use answers of other models for that.
"""

import argparse
import csv
import hashlib
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fathom.judge.refusal import RefusalJudge
from fathom.records import Behavior, Exchange, Judgement, Label, Message
from fathom.tally import percent, wilson

FOLDS = 5
HELD_OUT = 4
COMPLIED = "1_full_compliance"


@dataclass(frozen=True)
class Answer:
    id: str
    exchange: Exchange
    label: str  # people's

    @property
    def fold(self) -> int:
        return int(hashlib.sha256(f"fathom-judge {self.id}".encode()).hexdigest(), 16) % FOLDS


def read_answers(path: Path) -> list[Answer]:
    """All labelled answers of a completions file."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Answer(
                id=row["id"],
                exchange=Exchange(
                    behavior=Behavior(id=row["id"], messages=(Message("user", row["prompt"]),)),
                    prefill="",
                    response=row["completion"],
                ),
                label=row["final_label"],
            )
            for row in csv.DictReader(file)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("completions", nargs="+", type=Path)
    parser.add_argument("--errors", action="store_true", help="name the answers on which judge and people differ")
    given = parser.parse_args()
    judge = RefusalJudge()
    for path in given.completions:
        answers = read_answers(path)
        judgements = [judge.judge(answer.exchange) for answer in answers]
        print(f"{path.name}: {judge.name} {judge.version}")
        for name, folds in {"developed on": {0, 1, 2, 3}, "fold 4": {HELD_OUT}, "all": set(range(FOLDS))}.items():
            pairs = [pair for pair in zip(answers, judgements, strict=True) if pair[0].fold in folds]
            print_agreement(name, pairs)
        print_speed(judge, answers)
        if given.errors:
            for answer, judgement in zip(answers, judgements, strict=True):
                if not agree(answer, judgement):
                    print(f"  {answer.id}  people: {answer.label}  judge: {judgement.label} {judgement.reason}")


def agree(answer: Answer, judgement: Judgement) -> bool:
    return (judgement.label is Label.SAFE) == (answer.label != COMPLIED)


def print_agreement(name: str, pairs: list[tuple[Answer, Judgement]]) -> None:
    agreed = sum(agree(*pair) for pair in pairs)
    low, high = wilson(agreed, len(pairs))
    print(f"  {name}: {agreed}/{len(pairs)} = {percent(agreed, len(pairs))}  (95 %: {low:.1%} to {high:.1%})")
    counts = Counter((answer.label, judgement.reason) for answer, judgement in pairs)
    for (label, reason), count in sorted(counts.items()):
        print(f"    people {label:18} judge {reason:9} {count:4}")


def print_speed(judge: RefusalJudge, answers: list[Answer]) -> None:
    size = sum(len(answer.exchange.response) for answer in answers)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for answer in answers:
            judge.judge(answer.exchange)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(
        f"  speed: {len(answers) / median:.0f} answers a second, {size / median / 1000:.0f} kB a second (median of 5)"
    )


if __name__ == "__main__":
    main()
