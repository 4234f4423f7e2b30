"""From logits to tokens: the most probable one, or the one that a row's own noise draws."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fathom.engine.rows import Row
from fathom.errors import UserError
from fathom.precision import finest

__all__ = ["check_numbers", "choose", "draw", "largest"]

_CHUNK = 256  # columns whose maximum or sum is taken first, where one column is looked for
_CELLS = 1 << 23  # logits that are drawn from at once: bounds memory, changes no result
_CELLS_CPU = 1 << 18  # as many as a core's cache holds
_LONG = 8192  # from so many tokens on, buckets are faster than sorting
_BUCKET_BITS = 17  # of a probability that its bucket does not tell: 64 buckets for each halving
_BUCKETS = 2048  # for 32 halvings; what is less probable shares the last


@torch.inference_mode()
def choose(
    logits: Float[Tensor, "places vocabulary"], rows: Sequence[Row], places: Sequence[int] | None = None
) -> list[int]:
    """The next token of every row; row i reads logits `places[i]` (default: i), its n-th noise for its n-th token.

    Equals argmax for greedy rows and inverse-transform sampling over softmax(logits / temperature), cut by top-k and
    then top-p, for the others.

    Raises:
        UserError: logits are NaN, or none is above -inf.
    """
    at = range(len(rows)) if places is None else places
    drawn = [i for i, row in enumerate(rows) if row.noise is not None]
    best = [] if len(drawn) == len(rows) else _numbers(logits, largest(logits)).tolist()
    tokens = [0 if row.noise is not None else best[place] for row, place in zip(rows, at, strict=True)]
    step = max(1, (_CELLS_CPU if logits.device.type == "cpu" else _CELLS) // logits.shape[1])
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
        # Without double precision the last bits of a draw are coarser, never dependent on the batch.
        return torch.tensor(values, dtype=finest(logits.device), device=logits.device)

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
    probabilities = _scores(logits[at], temperature, floor).softmax(dim=-1)
    cut = (top_p < 1).nonzero()[:, 0]
    if len(cut):
        near = logits.device.type == "cpu" and logits.shape[1] >= _LONG
        drop = _drop_by_buckets if near else _drop_by_sorting
        probabilities[cut] = drop(logits, at[cut], probabilities[cut], top_p[cut])
    return _at_quantile(probabilities, noise)


def _at_quantile(weights: Float[Tensor, "rows vocabulary"], noise: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The first token up to which, that included, lies more than `noise` of a row's weight.

    Weights are summed by chunks, and one by one in the chunk that holds the token alone.
    """
    chunks = F.pad(weights, (0, -weights.shape[1] % _CHUNK)).view(len(weights), -1, _CHUNK)
    sums = chunks.sum(dim=-1, dtype=noise.dtype).cumsum(dim=-1)
    check_numbers(sums[:, -1])
    quantile = _below(noise[:, None] * sums[:, -1:], sums[:, -1:])
    chunk = torch.searchsorted(sums, quantile, right=True)
    before = F.pad(sums, (1, 0)).gather(1, chunk)
    inside = chunks.gather(1, chunk[:, :, None].expand(-1, -1, _CHUNK))[:, 0].cumsum(dim=-1, dtype=noise.dtype)
    place = torch.searchsorted(inside, _below(quantile - before, inside[:, -1:]), right=True)
    return (chunk * _CHUNK + place)[:, 0]


def _numbers(logits: Tensor, best: Tensor) -> Tensor:
    """`best`, where the logits that it names are numbers: a NaN is the largest of its row."""
    check_numbers(logits.gather(1, best[:, None]))
    return best


def check_numbers(values: Tensor) -> None:
    """Refuse NaN.

    Raises:
        UserError: a value is NaN.
    """
    if bool(values.isnan().any()):
        raise UserError(
            "the model's logits are not numbers (NaN), so it says nothing: its weights are broken, or its numbers "
            "overflow in half precision; try --dtype float32"
        )


def _below(quantile: Tensor, total: Tensor) -> Tensor:
    """Below the total even after rounding, so that a token of probability 0 is never drawn."""
    return torch.minimum(quantile, torch.nextafter(total, torch.zeros_like(total)))


def _scores(logits: Tensor, temperature: Tensor, floor: Tensor | None) -> Tensor:
    scores = logits / temperature[:, None].to(logits.dtype)
    return scores if floor is None else scores.masked_fill_(logits < floor, -torch.inf)


def _top_k_floor(logits: Tensor, at: Tensor, top_k: Sequence[int]) -> Float[Tensor, "rows 1"] | None:
    """The least logit that each row's top-k keeps, None where all keep all; ties with it are kept too."""
    vocabulary = logits.shape[1]
    kept = [(i, k) for i, k in enumerate(top_k) if 0 < k < vocabulary]
    if not kept:
        return None
    floor = logits.new_full((len(at), 1), -torch.inf)
    rows, ranks = torch.tensor(kept, device=logits.device).T
    places, number = torch.unique(at[rows], return_inverse=True)
    best = logits[places].topk(max(k for _, k in kept), dim=-1).values
    floor[rows, 0] = best[number, ranks - 1]
    return floor


def _drop_by_sorting(logits: Tensor, at: Tensor, probabilities: Tensor, top_p: Tensor) -> Tensor:
    """0 for all but the smallest set of most probable tokens whose probabilities reach top_p, which holds one at least.

    Equal logits are kept in the order of their ids. Rows of one place are sorted once.
    """
    distinct, number = torch.unique(at, return_inverse=True)
    order = logits[distinct].argsort(dim=-1, descending=True, stable=True)[number]
    ordered = probabilities.gather(1, order).to(top_p.dtype)
    before = ordered.cumsum(dim=-1) - ordered
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p[:, None])
    return probabilities.masked_fill(dropped, 0.0)


def _drop_by_buckets(logits: Tensor, at: Tensor, probabilities: Tensor, top_p: Tensor) -> Tensor:
    """`_drop_by_sorting`, many times faster for a large vocabulary on a CPU: only where top_p is reached is sorted.

    Tokens are counted into buckets by their probability's leading bits, from the most probable one on.
    """
    # A probability's bits, read as a number, grow with it; what lies a bucket's width apart shares one.
    bits = probabilities.view(torch.int32) >> _BUCKET_BITS
    bucket = (bits.amax(dim=-1, keepdim=True) - bits).clamp_(max=_BUCKETS - 1).long()
    weight = top_p.new_zeros(len(bucket), _BUCKETS).scatter_add_(1, bucket, probabilities.to(top_p.dtype))
    reached = weight.cumsum(dim=-1)
    last = torch.searchsorted(reached, top_p[:, None])
    kept = probabilities.masked_fill(bucket > last, 0.0)
    rows, ids = (bucket == last).nonzero(as_tuple=True)
    before = F.pad(reached, (1, 0)).gather(1, last)[:, 0].tolist()
    some = torch.bincount(rows, minlength=len(bucket)).tolist()
    for row, mine in enumerate(torch.split(ids, some)):
        order = mine[logits[at[row], mine].argsort(descending=True, stable=True)]
        ordered = probabilities[row, order].to(top_p.dtype)
        kept[row, order[before[row] + ordered.cumsum(dim=-1) - ordered >= top_p[row]]] = 0.0
    return kept
