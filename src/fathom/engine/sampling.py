"""From logits to tokens: the most probable one, or the one that a row's own noise draws."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.engine.rows import Row

__all__ = ["choose", "draw", "largest"]

_CHUNK = 256  # columns whose maximum is taken first when the largest is looked for
_CELLS = 1 << 23  # logits that are sorted and summed at once, in double precision: bounds memory, changes no result


@torch.inference_mode()
def choose(
    logits: Float[Tensor, "places vocabulary"], rows: Sequence[Row], places: Sequence[int] | None = None
) -> list[int]:
    """The next token of every row; row i reads logits `places[i]` (default: i), its n-th noise for its n-th token.

    Equals argmax for greedy rows and inverse-transform sampling over softmax(logits / temperature), cut by top-k and
    then top-p, for the others. Rows of one place are sorted once.
    """
    at = range(len(rows)) if places is None else places
    drawn = [i for i, row in enumerate(rows) if row.noise is not None]
    best = [] if len(drawn) == len(rows) else largest(logits).tolist()
    tokens = [0 if row.noise is not None else best[place] for row, place in zip(rows, at, strict=True)]
    step = max(1, _CELLS // logits.shape[1])
    for start in range(0, len(drawn), step):
        part = drawn[start : start + step]
        for i, token in zip(part, _draw_rows(logits, [rows[i] for i in part], [at[i] for i in part]), strict=True):
            tokens[i] = token
    return tokens


def largest(logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
    """The id of the largest logit of every row, the first of equal ones.

    Equals `logits.argmax(dim=-1)`, which on a CPU takes several times as long as the maxima of chunks and a look into
    the best chunk of each row.
    """
    vocabulary = logits.shape[1]
    whole = vocabulary // _CHUNK * _CHUNK
    if whole == 0 or logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    tops = logits[:, :whole].view(len(logits), -1, _CHUNK).amax(dim=-1)
    chunk = tops.argmax(dim=-1, keepdim=True)
    place = chunk * _CHUNK + torch.arange(_CHUNK)
    found: Tensor = chunk[:, 0] * _CHUNK + logits.gather(1, place).argmax(dim=-1)
    if whole == vocabulary:
        return found
    rest = logits[:, whole:].argmax(dim=-1) + whole
    pair = torch.stack([found, rest], dim=1)
    better = logits.gather(1, pair).argmax(dim=-1, keepdim=True)
    return torch.take_along_dim(pair, better, dim=1)[:, 0]


def _draw_rows(logits: Float[Tensor, "places vocabulary"], rows: Sequence[Row], at: Sequence[int]) -> list[int]:
    def column(values: list[float]) -> Tensor:
        # MPS has no double precision; there the last bits of a draw are coarser, never dependent on the batch
        return torch.tensor(values, dtype=torch.float32 if device == "mps" else torch.float64, device=logits.device)

    device = logits.device.type
    used = {place: number for number, place in enumerate(sorted(set(at)))}
    noise = column([float(row.noise[len(row.output)]) for row in rows if row.noise is not None])
    return draw(
        logits[list(used)].float(),
        noise,
        temperature=column([row.sampling.temperature for row in rows]),
        top_k=[row.sampling.top_k for row in rows],
        top_p=column([row.sampling.top_p for row in rows]),
        places=[used[place] for place in at],
    ).tolist()


def draw(
    logits: Float[Tensor, "places vocabulary"],
    noise: Float[Tensor, " rows"],
    *,
    temperature: Float[Tensor, " rows"],
    top_k: Sequence[int],
    top_p: Float[Tensor, " rows"],
    places: Sequence[int] | None = None,
) -> Int[Tensor, " rows"]:
    """The token at quantile `noise`, in [0, 1), of each row's distribution, tokens in the order of their ids.

    Row i's distribution comes from logits `places[i]`, by default i. Ranks are those of the logits themselves, so
    that a temperature, which may round two of them together, changes no rank.
    """
    at = torch.tensor(range(len(noise)) if places is None else places, device=logits.device)
    floor = _top_k_floor(logits, at, top_k)
    scores = _scores(logits[at], temperature, floor)
    cut = (top_p < 1).nonzero()[:, 0]
    if len(cut):
        dropped = _beyond_top_p(logits, at[cut], temperature[cut], floor[cut], top_p[cut])
        scores[cut] = scores[cut].masked_fill(dropped, -torch.inf)
    cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=noise.dtype)
    total = cumulated[:, -1:]
    # below the total even after rounding, so that a token of probability 0 is never drawn
    quantile = torch.minimum(noise[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, quantile, right=True)[:, 0]


def _scores(logits: Tensor, temperature: Tensor, floor: Tensor) -> Tensor:
    return (logits / temperature[:, None].to(logits.dtype)).masked_fill(logits < floor, -torch.inf)


def _top_k_floor(logits: Tensor, at: Tensor, top_k: Sequence[int]) -> Float[Tensor, "rows 1"]:
    """The least logit that each row's top-k keeps; ties with it are kept too."""
    vocabulary = logits.shape[1]
    floor = logits.new_full((len(at), 1), -torch.inf)
    kept = [(i, k) for i, k in enumerate(top_k) if 0 < k < vocabulary]
    if kept:
        best = logits.topk(max(k for _, k in kept), dim=-1).values
        rows, ranks = torch.tensor(kept, device=logits.device).T
        floor[rows, 0] = best[at[rows], ranks - 1]
    return floor


def _beyond_top_p(logits: Tensor, at: Tensor, temperature: Tensor, floor: Tensor, top_p: Tensor) -> Tensor:
    """All but the smallest set of most probable tokens whose probabilities reach top_p, which holds one at least."""
    distinct, number = torch.unique(at, return_inverse=True)
    ordered, order = logits[distinct].sort(dim=-1, descending=True, stable=True)
    probabilities = _scores(ordered[number], temperature, floor).softmax(dim=-1).to(top_p.dtype)
    before = probabilities.cumsum(dim=-1) - probabilities
    return torch.zeros_like(before, dtype=torch.bool).scatter(1, order[number], before >= top_p[:, None])
