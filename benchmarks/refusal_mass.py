"""Refusal mass at 41 depths from one teacher-forced pass, against a forward for each depth (and tree node).

`forward per depth` is what sampling one token at every depth costs, and sees first tokens only. `node by node` is the
same quantity as `fathom`'s, exactly, from plain forwards. First a random Llama of 59 M parameters with a vocabulary of
49 k and 6 openings of 3 tokens (each more would add 82 plain forwards a round), then the built-in stages with their own
refusals.

    python benchmarks/refusal_mass.py
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common import Effort, Figure, Goal, info_of, run_alone, show, timings
from fathom.depth.nodes import Context, TreeReader
from fathom.depth.recovery import refusal_set
from fathom.depth.tree import OpeningTree
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import behaviors, stage_directory
from prefill_sweep import NoText

DEPTHS = tuple(range(41))


def random_model() -> ChatModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    return ChatModel(model=model, chat=NoText(), info=info_of(model, None))


def random_context() -> Context:
    ids = torch.randint(3, 49_152, (100,)).tolist()
    return Context(tuple(ids[:60]), tuple(ids[60:]), DEPTHS)


def random_openings(count: int) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in torch.randint(3, 49_152, (count, 3)).tolist()]


def single_tokens(openings: Sequence[tuple[int, ...]]) -> OpeningTree:
    return OpeningTree([opening[:1] for opening in openings])


@torch.inference_mode()
def forward_per_depth(model: ChatModel, context: Context) -> None:
    for place in range(len(context.depths)):
        model.model(torch.tensor([context.before(place)]), logits_to_keep=1).logits.softmax(-1)


def measure(
    label: str, model: ChatModel, context: Context, openings: Sequence[tuple[int, ...]], rounds: int
) -> list[Figure]:
    reader, tree, first = TreeReader.of(model), OpeningTree(openings), single_tokens(openings)
    reader.masses(context, first)  # what the first call makes
    found: dict[str, Sequence[float]] = {}

    def keep(name: str, masses: Callable[[Context, OpeningTree], Sequence[float]]) -> None:
        found[name] = masses(context, tree)

    seconds = timings(
        {
            "forward per depth": partial(forward_per_depth, model, context),
            "node by node": partial(keep, "plain", reader.plain_masses),
            "fathom, first tokens": partial(reader.masses, context, first),
            "fathom, whole openings": partial(keep, "fast", reader.masses),
        },
        rounds,
    )
    fast, plain = found["fast"], found["plain"]
    error = max(abs(a - b) for a, b in zip(fast, plain, strict=True))
    print(f"{label}: {len(tree.openings)} openings, mass {fast[0]:.3g} … {fast[-1]:.3g}")
    show(seconds, "forward per depth")

    def ratio(name: str, baseline: str, ours: str) -> Figure:
        slow, fast = seconds.clock(baseline), seconds.clock(ours)
        return Figure(name, slow / fast, baseline=f"{slow:.3f} s", ours=f"{fast:.3f} s")

    return [
        ratio(f"refusal mass at {len(context.depths)} depths, {label}", "forward per depth", "fathom, first tokens"),
        ratio("… whole openings, against node by node", "node by node", "fathom, whole openings"),
        Figure("… largest difference of a probability", error, "", goal=Goal.AT_MOST, target=1e-5),
    ]


def figures(effort: Effort, threads: int) -> list[Figure]:  # noqa: ARG001
    """A random model of 59 M parameters (full only), and the built-in stages with their own refusals."""
    rounds, found = (3, []) if effort is Effort.FULL else (1, [])
    if effort is Effort.FULL:
        found += measure("random, 59 M", random_model(), random_context(), random_openings(6), rounds)
    harmful = [behavior for behavior in behaviors() if behavior.harmful and behavior.answer and behavior.refusal]
    for stage in ("natural", "deepened"):
        model = load(LoadOptions(name=str(stage_directory(stage))))
        chat, behavior = model.chat, harmful[0]
        refusals = [chat.response_ids(one.messages, one.refusal or "") for one in harmful]
        answer = chat.response_ids(behavior.messages, behavior.answer or "")
        context = Context(chat.prompt_ids(behavior.messages), answer, DEPTHS)
        found += measure(f"organism:{stage}", model, context, refusal_set(chat, refusals, answers=[answer]), rounds)
    return found


if __name__ == "__main__":
    run_alone(__doc__, figures)
