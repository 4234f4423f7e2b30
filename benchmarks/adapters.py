"""Memory of training a model further while the model itself is kept: a copy of it, or an adapter that it wears.

That is what each training of `fathom stress` and the sentinel of `--objective answers` do. A random Llama of 63 M
parameters with a vocabulary of 49,152, float32; two steps of AdamW on one row of 64 prompt and 64 response tokens, so
that activations, of which both need the same, hide little. No target: a copy's weights, gradients and optimiser are
four times the model.

    python benchmarks/adapters.py [--quick] [--threads N]
"""

from collections.abc import Callable
from functools import partial
from random import Random

from common import Effort, Figure, info_of, peak_memory, run_alone
from constrained_step import QUICK, QUICK_VOCABULARY, SHAPE, VOCABULARY

ROWS, PROMPT, RESPONSE = 1, 64, 64


def prepare(rank: int | None, shape: str, threads: int = 1) -> Callable[[], object]:
    """A function that trains apart from a model that is loaded before, an adapter of a rank or all weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    from fathom.chat import ChatFormat
    from fathom.model import ChatModel
    from fathom.organism.tokenizer import make_tokenizer
    from fathom.stress.apart import Apart
    from fathom.stress.light import LightFit, Optimiser
    from fathom.tuning.adapter import Adapter
    from fathom.tuning.objective import PlainNll
    from fathom.tuning.rows import TrainingRow

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes, vocabulary = (SHAPE, VOCABULARY) if shape == "63M" else (QUICK, QUICK_VOCABULARY)
    config = AutoConfig.for_model("llama", vocab_size=vocabulary, tie_word_embeddings=True, pad_token_id=0, **sizes)
    inner: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    chat = ChatFormat(make_tokenizer(), None, "plain", frozenset())
    model = ChatModel(model=inner, chat=chat, info=info_of(inner, None))
    random = Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.randrange(1, vocabulary) for _ in range(count))

    rows = [TrainingRow(prompt_ids=ids(PROMPT), response_ids=ids(RESPONSE)) for _ in range(ROWS)]
    begun = Apart(model, None if rank is None else Adapter(rank=rank, alpha=2 * rank))

    def train() -> None:
        with begun.further() as trained:
            fit = LightFit.of(trained.model, rows, PlainNll(), Optimiser(rate=1e-4, warmup=0, batch=ROWS))
            for _ in fit.run([tuple(range(ROWS))] * 2):
                pass
            begun.kept(trained)

    return train


def figures(effort: Effort, threads: int) -> list[Figure]:
    """Memory beyond the loaded model."""
    shape = "63M" if effort is Effort.FULL else "small"
    copied, worn = (peak_memory(partial(prepare, rank, shape, threads)).extra for rank in (None, 16))
    name = f"training apart from a model, {shape}: memory"
    return [Figure(name, copied / worn, baseline=f"a copy, {copied:.0f} MB", ours=f"an adapter, {worn:.0f} MB")]


if __name__ == "__main__":
    run_alone(__doc__, figures, threads=1)
