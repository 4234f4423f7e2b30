"""Norms of the gradient at every response position: one backward pass for each, against forward passes over the batch.

    python benchmarks/dynamics.py [--rows 8] [--directions 16]

Processor seconds of this process, which does not count what else the machine does. The built-in model.
"""

import argparse
import time

import torch

from fathom.depth.dynamics import ExactNorms, Norms, ProjectedNorms, TrainedRow, positions
from fathom.model import LoadOptions, load
from fathom.organism import behaviors, stage_directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--directions", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chat_model = load(LoadOptions(name=str(stage_directory("natural")), device="cpu"))
    model, chat = chat_model.model, chat_model.chat
    found = behaviors(split="training", harmful=arguments.rows, benign=0)
    rows = [TrainedRow(chat.prompt_ids(b.messages), chat.response_ids(b.messages, b.answer or "")) for b in found]

    def timed(norms: Norms) -> tuple[float, torch.Tensor]:
        begun = time.process_time()
        measured = list(positions(model, model, rows, norms))
        return time.process_time() - begun, torch.cat([row.gradient_norm for row in measured])

    timed(ProjectedNorms(1))  # what is compiled or cached at first use counts for neither
    exact, truth = timed(ExactNorms())
    projected, estimate = timed(ProjectedNorms(arguments.directions))
    passes = sum(len(row.response_ids) for row in rows)
    ratio = estimate / truth
    print(f"{passes} positions of {len(rows)} rows")
    print(f"exact: {passes} backward passes, {exact:.1f} s")
    print(f"projected: 0 backward passes, {arguments.directions} forward-mode passes over the batch, {projected:.1f} s")
    print(f"ratio of processor seconds {exact / projected:.1f}")
    print(f"estimate / exact: mean {ratio.mean():.3f}, standard deviation of one position {ratio.std():.3f}")


if __name__ == "__main__":
    main()
