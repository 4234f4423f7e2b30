"""One training step, forward and backward: the constrained objective on response positions against TRL's plain SFT.

Both are steps of a trainer as it runs (`training_step`), on the same batch of 4 rows of 128 prompt and 128 response
tokens, in one process, float32, without checkpointing; a random Llama of 63 M parameters with a vocabulary of 49,152.
The constrained step reads a reference column that is made before. Targets: at most 0.7 of the time, 0.6 of the memory.

    python benchmarks/constrained_step.py [--quick] [--rounds N]
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from random import Random

from common import environment, peak_memory, show, timings

VOCABULARY, PROMPT, RESPONSE, ROWS = 49_152, 128, 128, 4
TIME_TARGET, MEMORY_TARGET = 0.7, 0.6
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
QUICK = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}


def prepare(variant: str, shape: str) -> Callable[[], object]:
    """A function that does one step of a trainer; loading and building are done before."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
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
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = SHAPE if shape == "63M" else QUICK
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, tie_word_embeddings=True, pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = Random(0)
    rows = [
        TrainingRow(
            prompt_ids=tuple(random.randrange(1, VOCABULARY) for _ in range(PROMPT)),
            response_ids=tuple(random.randrange(1, VOCABULARY) for _ in range(RESPONSE)),
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
    from pathlib import Path

    arguments = {"args": settings.config(Path(directory)), "processing_class": make_tokenizer(), "model": model}
    if variant == "TRL, plain":
        data = make_dataset(rows, no_columns(ROWS)).select_columns(["input_ids", "labels"])
        trainer = SFTTrainer(train_dataset=data, **arguments)
    else:
        head = response_head(model)
        head.__enter__()  # for as long as the process lives
        constrained = variant == "fathom, constrained"
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a smaller model, three rounds")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    shape, rounds = ("small", 3) if chosen.quick else ("63M", chosen.rounds)
    print(environment())
    names = ("TRL, plain", "fathom, plain", "fathom, constrained")
    seconds = timings({name: prepare(name, shape) for name in names}, rounds)
    show(seconds, "TRL, plain")
    plain, ours = (statistics.median(seconds[name]) for name in (names[0], names[2]))
    memory = {name: peak_memory(partial(prepare, name, shape)) for name in (names[0], names[2])}
    for name, used in memory.items():
        print(f"{name:32} {used.extra:8.0f} MB over {used.before:.0f} MB before the step")
    time_ratio, memory_ratio = ours / plain, memory[names[2]].extra / memory[names[0]].extra
    print(f"time {time_ratio:.2f} of TRL's (target {TIME_TARGET}), memory {memory_ratio:.2f} (target {MEMORY_TARGET})")


if __name__ == "__main__":
    main()
