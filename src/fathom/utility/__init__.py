"""What a model is still good for: scores of task answers, over-refusal, and the hand-off to lm-eval.

`scores` says how good an answer is, `task` asks a model the rows of a user's file, and `benchmarks` names lm-eval's
command for all that is standard.
"""

from fathom.utility.benchmarks import CHAT, has_lm_eval, lm_eval_command, shown_command
from fathom.utility.scores import Metric, exact_match, final_number, mean_interval, over_refusal, rouge_1

__all__ = [
    "CHAT",
    "Metric",
    "exact_match",
    "final_number",
    "has_lm_eval",
    "lm_eval_command",
    "mean_interval",
    "over_refusal",
    "rouge_1",
    "shown_command",
]
