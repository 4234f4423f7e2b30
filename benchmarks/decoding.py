"""The decoding grid (48 settings of temperature, top-p and top-k) against `generate` for each setting.

`python benchmarks/decoding.py organism` — the built-in aligned model: 16 harmful requests, up to 130 new tokens, its
own chat template. It is seldom in doubt, so many rows of a grid write the same for long: the trie pays.
`python benchmarks/decoding.py small` — a random Llama of 59 M parameters, vocabulary 49 152: 8 prompts, 32 new tokens.
Its draws are all different, so only the prompt and the width of the batch are left to win.
`python benchmarks/decoding.py quick` — a few prompts of the organism: does it all run?

`generate` gets left-padded batches of 16 prompts for each setting, as the published exploit does it. Rows of top-k 1,
which no random number changes, must be equal; that sampled ones have the right distribution is a test
(`tests/engine/test_lanes.py`), and shown here in one number: how often each side refuses.
"""

import argparse
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import common
from common import Effort, Figure, Goal
from fathom.attack.decoding import Decoding
from fathom.engine import TransformersEngine
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import behaviors, stage_directory
from fathom.records import Attempt, Sampling
from prefill_sweep import as_chat_model, generate_padded

Key = tuple[int, Sampling]
Outputs = dict[Key, tuple[int, ...]]
BATCH = 16  # of `generate`


@dataclass(frozen=True, eq=False)
class Case:
    """A model, prompts, and a grid of settings."""

    name: str
    model: ChatModel
    prompts: list[tuple[int, ...]]
    settings: tuple[Sampling, ...]
    stops: tuple[int, ...]


def organism(prompts: int) -> Case:
    model = load(LoadOptions(name=str(stage_directory("aligned"))))
    asked = [model.chat.prompt_ids(one.messages) for one in behaviors(harmful=prompts, benign=0)]
    return Case("organism", model, asked, Decoding().settings(130), tuple(sorted(model.chat.stop_ids)))


def small(prompts: int, new_tokens: int) -> Case:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        initializer_range=0.06,
        eos_token_id=None,
    )
    draw = random.Random(0)
    asked = [tuple(draw.randrange(49152) for _ in range(draw.randint(20, 60))) for _ in range(prompts)]
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    return Case("59 M parameters", as_chat_model(model), asked, Decoding().settings(new_tokens), ())


CASES: dict[str, Callable[[], Case]] = {
    "organism": functools.partial(organism, 16),
    "small": functools.partial(small, 8, 32),
    "quick": functools.partial(organism, 3),
}


def run_generate(case: Case) -> Outputs:
    outputs: Outputs = {}
    for sampling in case.settings:
        torch.manual_seed(0)
        for start in range(0, len(case.prompts), BATCH):
            rows = case.prompts[start : start + BATCH]
            written = generate_padded(
                case.model.model,
                rows,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=list(case.stops) or None,
            )
            for i, row in enumerate(written):
                end = next((at for at, token in enumerate(row) if token in case.stops), len(row))
                outputs[start + i, sampling] = tuple(row[:end])
    return outputs


def run_engine(case: Case) -> Outputs:
    attempts = {
        attempt.id: (attempt, (number, sampling))
        for number, prompt in enumerate(case.prompts)
        for sampling in case.settings
        for attempt in [
            Attempt.make(
                behavior=str(number),
                attack="decoding",
                prompt_ids=prompt,
                prefill_ids=(),
                sampling=sampling,
                run_seed=0,
            )
        ]
    }
    done = TransformersEngine(case.model).complete([attempt for attempt, _ in attempts.values()])
    return {attempts[one.attempt][1]: one.output_ids for one in done}


RUNS: dict[str, Callable[[Case], Outputs]] = {"generate for each setting": run_generate, "fathom": run_engine}


def figures(effort: Effort, threads: int) -> list[Figure]:
    torch.set_num_threads(threads)
    if effort is Effort.QUICK:
        return measure(CASES["quick"](), 1, quoted=False)
    return [*measure(CASES["organism"](), 3, quoted=True), *measure(CASES["small"](), 1, quoted=False)]


def measure(case: Case, rounds: int, *, quoted: bool) -> list[Figure]:
    """Time against `generate`, equality of the rows that no noise changes, and how often a refusal is written."""
    print(
        f"{case.name}: {len(case.prompts)} prompts x {len(case.settings)} settings, "
        f"{case.settings[0].max_new_tokens} new tokens"
    )
    results: dict[str, Outputs] = {}
    baseline, ours = RUNS

    def keep(name: str) -> None:
        results[name] = RUNS[name](case)

    seconds = common.timings({name: functools.partial(keep, name) for name in RUNS}, rounds)
    common.show(seconds, baseline)
    settled = [key for key in results[ours] if key[1].top_k == 1]
    same = sum(results[ours][key] == results[baseline][key] for key in settled)
    found = [
        Figure(
            f"decoding grid, {case.name}: {label}",
            read(baseline) / read(ours),
            baseline=f"{read(baseline):.1f} s",
            ours=f"{read(ours):.1f} s",
            goal=Goal.AT_LEAST if quoted and label == "time" else None,
            target=3,
        )
        for label, read in (("time", seconds.clock), ("processor time", seconds.processor))
    ]
    found.append(
        Figure("… rows of top-k 1 with the same output", 100 * same / len(settled), "%", goal=Goal.AT_LEAST, target=100)
    )
    if case.stops:
        refused = {name: _refused(case, outputs) for name, outputs in results.items()}
        found.append(
            Figure(
                "… answers that name no step",
                refused[ours] - refused[baseline],
                "points more",
                f"{refused[baseline]:.1f} %",
                f"{refused[ours]:.1f} %",
            )
        )
    return found


def _refused(case: Case, outputs: Outputs) -> float:
    first = case.model.chat.tokenise("1.")[0]
    return 100 * sum(first not in output for output in outputs.values()) / len(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="?", choices=CASES, default="organism")
    parser.add_argument("--quick", action="store_true", help="the case of that name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="fewer than the machine has idle cores")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(common.environment())
    name = "quick" if options.quick else options.case
    print(common.table(measure(CASES[name](), options.rounds, quoted=name == "organism")))


if __name__ == "__main__":
    main()
