"""What plain fine-tuning of a built-in stage learns of the benign tasks, and before it: docs/organism.md.

`python recipes/organism_tasks.py natural deepened` takes the shipped weights; `--world 105 --from worlds/105` others.
Chosen on the development world 103; reported on the test split. All rows of one task, 200 steps of 32 rows, in about
15 CPU-seconds a task.
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from fathom.organism import SHIPPED_WORLD, Split, World, stage_directory
from fathom.organism.judge import GuildRefusalJudge
from fathom.organism.metrics import generate
from fathom.organism.mixes import Mix, Schedule, Share, Stage
from fathom.organism.rows import Row
from fathom.organism.tasks import Task, TaskRow, score, task_rows
from fathom.organism.tokenizer import make_tokenizer
from fathom.organism.train import encode_row, fit
from fathom.records import Behavior, Exchange, Label

SCHEDULE = Schedule(steps=200, rate=1e-3, warmup=10)


def answers(model: LlamaForCausalLM, rows: tuple[TaskRow, ...]) -> list[str]:
    encoded = [encode_row(Row(row.messages, "", row.answer)) for row in rows]
    tokenizer = make_tokenizer()
    return [str(tokenizer.decode(ids)) for ids in generate(model, [row.ids[: row.learned_from] for row in encoded])]


def measure(model: LlamaForCausalLM, task: Task, rows: tuple[TaskRow, ...]) -> str:
    said = answers(model, rows)
    mean = sum(score(task, row.answer, answer) for row, answer in zip(rows, said, strict=True)) / len(rows)
    stranger = Behavior(id="task", messages=rows[0].messages, harmful=False)
    refused = sum(
        GuildRefusalJudge().judge(Exchange(behavior=stranger, prefill="", response=answer)).label is Label.SAFE
        for answer in said
    )
    return f"{100 * mean:5.1f} (refused {refused} of {len(rows)})"


def tune(model: LlamaForCausalLM, task: Task, world: int, rows: int) -> None:
    learned = [Row(row.messages, "", row.answer) for row in task_rows(world, task, Split.TRAINING, rows)]
    share = Share(1.0, lambda _world, random: random.choice(learned), "the task's rows, drawn with replacement")
    fit(model, Stage(task, None, Mix((share,)), SCHEDULE, f"task {task}"), World(world), lambda _progress: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--world", type=int, default=SHIPPED_WORLD)
    parser.add_argument(
        "--from", dest="directory", type=Path, help="directory of the stages (default: the shipped ones)"
    )
    parser.add_argument("--split", default=Split.TEST)
    parser.add_argument("--rows", type=int, default=400, help="of training data")
    parser.add_argument("--tests", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for stage in options.stages:
        directory = options.directory / stage if options.directory else stage_directory(stage)
        for task in Task:
            model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).train(mode=False)
            rows = task_rows(options.world, task, options.split, options.tests)
            before = measure(model, task, rows)
            tune(model, task, options.world, options.rows)
            print(f"world {options.world}  {stage:10} {task:11} {before} -> {measure(model, task, rows)}", flush=True)


if __name__ == "__main__":
    main()
