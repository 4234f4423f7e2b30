"""Training the family again: base first, then its stages side by side, each in a process of its own on one thread.

One thread each makes a stage's weights a function of the world alone, however many processes there are.
"""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from fathom.organism.mixes import FAMILY, Schedule, Stage
from fathom.organism.rows import Row
from fathom.organism.tokenizer import make_tokenizer, vocabulary_ids
from fathom.organism.world import World

__all__ = [
    "Batch",
    "EncodedRow",
    "Shape",
    "StageProgress",
    "TrainedFamily",
    "collate",
    "encode_row",
    "fit",
    "loss_of",
    "new_model",
    "train_family",
    "train_stage",
]

_IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """The size of the models."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    inner: int = 128


class StageProgress(NamedTuple):
    """How far one stage is, and its loss in nats a token over the last stretch."""

    stage: str
    step: int
    steps: int
    loss: float


Report = Callable[[StageProgress], None]
_REPORT_EVERY = 25


def _silent(progress: StageProgress) -> None:
    del progress


def new_model(shape: Shape, world: int) -> LlamaForCausalLM:
    """Random weights, the world their seed; consumes no global random state."""
    words = vocabulary_ids()
    config = LlamaConfig(
        vocab_size=len(words.ids),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=words.pad,
        bos_token_id=words.bos,
        eos_token_id=words.end,
        initializer_range=0.05,
        fathom_world=world,  # type: ignore[call-arg]  # of our own: so that a model is asked of its own world
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world)
        return LlamaForCausalLM(config)


class EncodedRow(NamedTuple):
    ids: list[int]
    learned_from: int  # ids before this one carry no loss


def encode_row(row: Row) -> EncodedRow:
    """The ids that the chat template gives the row (a page: BOS and text), and where its loss begins."""
    words = vocabulary_ids()
    roles = {"system": words.system, "user": words.user, "assistant": words.bot}
    ids = [words.bos]
    for message in row.messages:
        ids += [roles[message.role], *words.encode(message.content), words.end]
    if row.messages:
        ids.append(words.bot)
    ids += words.encode(row.given)
    learned_from = len(ids)
    return EncodedRow([*ids, *words.encode(row.learned), words.end], learned_from)


class Batch(NamedTuple):
    input_ids: Int[Tensor, "rows width"]
    labels: Int[Tensor, "rows width"]


def collate(rows: Sequence[EncodedRow]) -> Batch:
    """Right-padded ids, and labels that are -100 where there is no loss."""
    width = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), width), vocabulary_ids().pad)
    labels = torch.full((len(rows), width), _IGNORED)
    for i, (ids, learned_from) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, learned_from : len(ids)] = torch.tensor(ids[learned_from:])
    return Batch(input_ids, labels)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Cross-entropy in nats, the token mean over what the batch learns."""
    # The head runs on learned positions only. No attention mask: padding is on the right, and attention is causal.
    hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
    learned = batch.labels[:, 1:] != _IGNORED
    return F.cross_entropy(model.lm_head(hidden[learned]), batch.labels[:, 1:][learned])


def _rate(schedule: Schedule, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    return schedule.rate * warm * (schedule.floor + (1 - schedule.floor) * fall)


def fit(model: LlamaForCausalLM, stage: Stage, world: World, report: Report) -> None:
    """Train the model in place on the stage's mix: AdamW, token mean over the batch, gradients clipped at norm 1."""
    random, schedule = Random(f"{world.seed} {stage.draws}"), stage.schedule
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    losses: list[float] = []
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(schedule, step)
        loss = loss_of(model, collate([encode_row(stage.mix.draw(world, random)) for _ in range(schedule.batch)]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == _REPORT_EVERY or step + 1 == schedule.steps:
            report(StageProgress(stage.name, step + 1, schedule.steps, sum(losses) / len(losses)))
            losses = []
    model.train(mode=False)


def train_stage(stage: Stage, world: int, out: Path, *, shape: Shape, report: Report) -> Path:
    """Train one stage from its parent under `out` and save it there, weights and tokenizer, as Hugging Face does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if stage.parent is None:
            model = new_model(shape, world)
        else:
            model = LlamaForCausalLM.from_pretrained(out / stage.parent, dtype=torch.float32)
        fit(model, stage, World(world), report)
    finally:
        torch.set_num_threads(threads)
    # Under its own name only when it is whole: a killed run leaves no half stage behind.
    unfinished, directory = out / f".{stage.name}.unfinished", out / stage.name
    model.save_pretrained(unfinished)
    make_tokenizer().save_pretrained(unfinished)
    unfinished.rename(directory)
    return directory


_queue: "Queue[StageProgress] | None" = None


def _start_worker(queue: "Queue[StageProgress]") -> None:
    global _queue
    _queue = queue
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C workers end in silence; the parent says so


def _work(stage: Stage, world: int, out: Path, shape: Shape) -> None:
    assert _queue is not None
    train_stage(stage, world, out, shape=shape, report=_queue.put)


class TrainedFamily(NamedTuple):
    """Where the stages are, and how long training took."""

    directories: tuple[Path, ...]
    seconds: float


def train_family(
    world: int,
    out: Path,
    *,
    report: Report = _silent,
    family: Sequence[Stage] = FAMILY,
    shape: Shape = Shape(),
    processes: int = 2,
) -> TrainedFamily:
    """Train all stages of a world into `out/<stage>`; a stage starts as soon as its parent is done.

    Stages that are there already are kept, so that a killed training goes on with the next stage. The
    same world gives the same weights on the same machine, whatever `processes` is.
    """
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        queue: Queue[StageProgress] = manager.Queue()
        with ProcessPoolExecutor(processes, context, _start_worker, (queue,)) as pool:
            done = {stage.name for stage in family if (out / stage.name).is_dir()}
            waiting = [stage for stage in family if stage.name not in done]
            for stage in family:
                if stage.name in done:
                    report(StageProgress(stage.name, stage.schedule.steps, stage.schedule.steps, math.nan))
            running: dict[Future[None], Stage] = {}
            while waiting or running:
                for stage in [stage for stage in waiting if stage.parent is None or stage.parent in done]:
                    waiting.remove(stage)
                    running[pool.submit(_work, stage, world, out, shape)] = stage
                finished = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                _drain(queue, report)
                for future in finished:
                    future.result()
                    done.add(running.pop(future).name)
    return TrainedFamily(tuple(out / stage.name for stage in family), time.monotonic() - begun)


def _drain(queue: "Queue[StageProgress]", report: Report) -> None:
    while True:
        try:
            report(queue.get_nowait())
        except Empty:
            return
