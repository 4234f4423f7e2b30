"""What a model is still good for: scores of task answers, over-refusal, and the hand-off to lm-eval.

Nothing here generates: answers come from an engine, and standard benchmarks from EleutherAI's lm-evaluation-harness,
which knows hundreds of them and is named here by its command.
"""

import importlib.util
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from fathom.errors import UserError
from fathom.records import Label
from fathom.tally import Tally

__all__ = [
    "CHAT",
    "exact_match",
    "final_number",
    "has_lm_eval",
    "lm_eval_command",
    "over_refusal",
    "rouge_1",
    "shown_command",
]

CHAT = ("--apply_chat_template",)
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def rouge_1(reference: str, response: str) -> float:
    """F1 of the words that the two share, in [0, 1]; case and punctuation do not count.

    Source: Lin (2004), ROUGE-1, without stemming. The paper scores SAMSum and SQL so.
    """
    wanted, given = Counter(_WORD.findall(reference.lower())), Counter(_WORD.findall(response.lower()))
    shared, total = (wanted & given).total(), wanted.total() + given.total()
    return 2 * shared / total if total else 0.0


def exact_match(reference: str, response: str) -> float:
    """1 where the two are the same words and marks, whatever the spacing; else 0."""
    return float(reference.split() == response.split())


def final_number(reference: str, response: str) -> float:
    """1 where the last numbers of the two are equal, as GSM8K is scored; a reference without a number is never met.

    Thousands separators, a dollar sign and a trailing point do not count: "… is $1,200." equals "#### 1200".
    """
    wanted, given = _last_number(reference), _last_number(response)
    return float(wanted is not None and wanted == given)


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None


def over_refusal(labels: Iterable[Label]) -> float:
    """Share of benign requests that were refused, in [0, 1].

    Raises:
        UserError: there are no labels, which is not the same as no refusals.
    """
    tally = Tally.of(labels)
    if not tally.n:
        raise UserError("over-refusal of no answers: give benign requests")
    return tally.safe / tally.n


def lm_eval_command(
    model: str,
    tasks: Sequence[str],
    *,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    limit: int | None = None,
    output: str | None = None,
    python: str = sys.executable,
    chat: Sequence[str] = CHAT,
) -> tuple[str, ...]:
    """The command that runs lm-eval on a Hugging Face model with its chat template, as arguments.

    `chat` is empty for a model that has no template: lm-eval would end where it looks for one.

    Raises:
        UserError: no task is named, or a value holds a comma or an equals sign, which lm-eval's arguments cannot.
    """
    if not tasks or not all(task.strip() for task in tasks):
        raise UserError("no benchmark was named; give --tasks mmlu,gsm8k (`lm-eval ls tasks` lists them)")
    values = {"pretrained": model, "dtype": dtype} | ({"peft": adapter} if adapter else {})
    for name, value in values.items():
        if "," in value or "=" in value:
            raise UserError(f"{name} is {value!r}: lm-eval's arguments cannot hold a comma or =; rename the directory")
    found = [python, "-m", "lm_eval", "--model", "hf", *chat]
    found += ["--model_args", ",".join(f"{name}={value}" for name, value in values.items())]
    found += ["--tasks", ",".join(task.strip() for task in tasks)]
    for option, given in (("--device", device), ("--limit", limit), ("--output_path", output)):
        found += [option, str(given)] if given is not None else []
    return tuple(found)


def shown_command(command: Sequence[str]) -> str:
    """The command as it can be pasted into a shell."""
    return shlex.join(command)


def has_lm_eval() -> bool:
    """Whether lm-eval is installed."""
    return importlib.util.find_spec("lm_eval") is not None
