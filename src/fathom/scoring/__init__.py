"""How probable given tokens are: per-token log-probabilities, ranks and KL at response positions only.

The naive equivalent of everything here is two lines per model, and holds a log-softmax of the whole vocabulary:

    logits = model(prompt + response).logits[prompt_length - 1 : -1].float()   # row t predicts response token t
    logprobs = logits.log_softmax(-1)                                          # [response, vocabulary]

Here the model's body gives hidden states of the response rows, and the head is applied to blocks of rows × vocabulary;
what is kept of a block are its log-sum-exp and its part of the KL, which combine exactly. One row of work is one
response, in one forward of its own: no number depends on which other responses were scored, or in which order.
"""

from fathom.scoring.answers import ReferenceAnswer, compare, score
from fathom.scoring.blocks import PairScores, TokenScores, compare_logits, log_normaliser, score_logits
from fathom.scoring.logits import Head, HeadLogits, Logits, LogitTable
from fathom.scoring.scorer import Scorer

__all__ = [
    "Head",
    "HeadLogits",
    "LogitTable",
    "Logits",
    "PairScores",
    "ReferenceAnswer",
    "Scorer",
    "TokenScores",
    "compare",
    "compare_logits",
    "log_normaliser",
    "score",
    "score_logits",
]
