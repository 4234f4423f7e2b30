"""How many answers of two runs are the same, id for id: a model's own, and those of a server that runs it.

    fathom audit ./model --base none --output here
    fathom audit ./model --endpoint http://localhost:8000/v1 --endpoint-model NAME --output there
    python recipes/endpoint_agreement.py here there

Greedy answers should be all the same; sampled ones are of other draws. The figures of docs/endpoint.md.
"""

import argparse
from collections import Counter
from pathlib import Path

from fathom.run import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    first, second = (Run(path) for path in parser.parse_args().runs)
    ours, theirs = (run.completions for run in (first, second))
    counts: Counter[tuple[str, str]] = Counter()
    for name, attempt in first.attempts.items():
        if name not in ours or name not in theirs:
            continue
        kind = "greedy" if attempt.sampling.temperature == 0 else "sampled"
        one, other = ours[name], theirs[name]
        counts[kind, "answers"] += 1
        counts[kind, "same ids"] += one.output_ids == other.output_ids
        counts[kind, "same finish"] += one.finish == other.finish
        counts[kind, "same text"] += one.text == other.text
    for kind in ("greedy", "sampled"):
        of = counts[kind, "answers"]
        if of:
            shares = ", ".join(f"{what} {counts[kind, what]}" for what in ("same ids", "same finish", "same text"))
            print(f"{kind}: of {of} answers to the same attempts {shares}")


if __name__ == "__main__":
    main()
