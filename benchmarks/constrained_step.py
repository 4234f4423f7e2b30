"""One training step, forward and backward: the constrained objective on response positions against TRL's plain SFT.

Both are steps of a trainer as it runs (`training_step`), on the same batch of 4 rows of 128 prompt and 128 response
tokens, in one process, float32, without checkpointing; a random Llama of 63 M parameters with a vocabulary of 49,152.
The constrained step reads a reference column that is made before. Targets: at most 0.7 of the time, 0.6 of the memory.

    python benchmarks/constrained_step.py [--quick] [--threads N]
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from common import Effort, Figure, Goal, peak_memory, run_alone, show, timings

VOCABULARY, PROMPT, RESPONSE, ROWS = 49_152, 128, 128, 4
TRL, PLAIN, CONSTRAINED = "TRL, plain", "fathom, plain", "fathom, constrained"
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
QUICK = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4}
QUICK_VOCABULARY = 4_096


def prepare(variant: str, shape: str, threads: int = 1) -> Callable[[], object]:
    """A function that does one step of a trainer; loading and building are done before."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
    from trl import SFTTrainer

    from fathom.organism.tokenizer import make_tokenizer
    from fathom.protect.objectives import Constrained
    from fathom.ranks import ALONE
    from fathom.tuning.head import response_head
    from fathom.tuning.objective import Needs, PlainNll
    from fathom.tuning.reference import make_columns, no_columns
    from fathom.tuning.rows import TrainingRow
    from fathom.tuning.settings import read_settings
    from fathom.tuning.trainer import Divisor, RowTrainer, make_dataset

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes, vocabulary = (SHAPE, VOCABULARY) if shape == "63M" else (QUICK, QUICK_VOCABULARY)
    config = AutoConfig.for_model("llama", vocab_size=vocabulary, tie_word_embeddings=True, pad_token_id=0, **sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    random = Random(0)
    rows = [
        TrainingRow(
            prompt_ids=tuple(random.randrange(1, vocabulary) for _ in range(PROMPT)),
            response_ids=tuple(random.randrange(1, vocabulary) for _ in range(RESPONSE)),
        )
        for _ in range(ROWS)
    ]
    settings = read_settings().with_defaults(
        per_device_train_batch_size=ROWS,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
    )
    directory = tempfile.mkdtemp()
    arguments = {"args": settings.config(Path(directory)), "processing_class": make_tokenizer(), "model": model}
    if variant == TRL:
        data = make_dataset(rows, no_columns(ROWS)).select_columns(["input_ids", "labels"])
        trainer = SFTTrainer(train_dataset=data, **arguments)
    else:
        head = response_head(model)
        head.__enter__()  # for as long as the process lives
        constrained = variant == CONSTRAINED
        columns = (
            make_columns(model, rows, Needs(logprobs=1), ranks=ALONE, autocast=None)
            if constrained
            else no_columns(ROWS)
        )
        objective = Constrained() if constrained else PlainNll()
        data = make_dataset(rows, columns)
        trainer = RowTrainer(train_dataset=data, objective=objective, divisor=Divisor.TOKENS, **arguments)
    trainer.create_optimizer()
    (batch,) = list(trainer.get_train_dataloader())
    count = torch.tensor(float(ROWS * RESPONSE))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        inputs = {name: dict(value) if isinstance(value, dict) else value for name, value in batch.items()}
        trainer.training_step(model, inputs, count)

    step()
    return step


def figures(effort: Effort, threads: int) -> list[Figure]:
    """Time and memory of the constrained step against TRL's plain one."""
    shape, rounds = ("63M", 5) if effort is Effort.FULL else ("small", 2)
    names = (TRL, PLAIN, CONSTRAINED)
    seconds = timings({name: prepare(name, shape, threads) for name in names}, rounds)
    show(seconds, TRL)
    goal = Goal.AT_MOST if effort is Effort.FULL else None
    found = [
        Figure(
            f"constrained step, {shape}: time",
            seconds.clock(CONSTRAINED) / seconds.clock(TRL),
            baseline=f"TRL's plain SFT, {seconds.clock(TRL):.2f} s",
            ours=f"{seconds.clock(CONSTRAINED):.2f} s",
            goal=goal,
            target=0.7,
        ),
        Figure(
            "… processor time",
            seconds.processor(CONSTRAINED) / seconds.processor(TRL),
            baseline=f"{seconds.processor(TRL):.2f} s",
            ours=f"{seconds.processor(CONSTRAINED):.2f} s",
            goal=goal,
            target=0.7,
        ),
    ]
    if effort is Effort.QUICK:  # two more processes, whose imports would be most of the time
        return found
    memory = {name: peak_memory(partial(prepare, name, shape, threads)).extra for name in (TRL, CONSTRAINED)}
    used = Figure(
        "… memory",
        memory[CONSTRAINED] / memory[TRL],
        baseline=f"{memory[TRL]:.0f} MB",
        ours=f"{memory[CONSTRAINED]:.0f} MB",
        goal=goal,
        target=0.6,
    )
    return [*found, used]


if __name__ == "__main__":
    run_alone(__doc__, figures, threads=1)
