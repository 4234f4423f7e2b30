"""Feed-forward blocks in pieces, and for some rows: the rows that are read are those of a plain pass."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fathom.attack.suffix.feedforward as module
from fathom.attack.suffix.feedforward import lean_feed_forward


class Layer(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: Tensor) -> Tensor:
        found = self.mlp(hidden)
        return hidden + (found[0] if isinstance(found, tuple) else found)


class Routed(nn.Linear):
    """Hands back its routing, too, as mixtures of experts may."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(hidden), hidden


class Counting(nn.Linear):
    rows = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows += hidden.shape[1]
        return super().forward(hidden)


@pytest.mark.parametrize("kind", [nn.Linear, Routed])
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 20), piece=st.integers(1, 21), seed=st.integers(0, 99))
def test_read_rows_are_those_of_a_plain_pass(kind: type[nn.Linear], rows: int, piece: int, seed: int) -> None:
    torch.manual_seed(seed)
    body = nn.Sequential(*(Layer(kind(6, 6)) for _ in range(3)))
    hidden = torch.randn(1, rows, 6)
    read = torch.rand(rows).argsort()[: 1 + seed % rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CPU", piece)
        with lean_feed_forward(body, read):
            found = body(hidden)
    assert torch.allclose(found[:, read], body(hidden)[:, read], atol=1e-5)


def test_the_last_layer_computes_the_read_rows_alone() -> None:
    blocks = [Counting(4, 4), Counting(4, 4)]
    body = nn.Sequential(*(Layer(block) for block in blocks))
    with lean_feed_forward(body, torch.tensor([2, 5, 6])):
        body(torch.randn(1, 9, 4))
    assert [block.rows for block in blocks] == [9, 3]


def test_blocks_are_as_before_even_after_an_error() -> None:
    body = nn.Sequential(Layer(nn.Linear(4, 4)), Layer(nn.Linear(4, 4)))
    first: Any = body[0]
    other = first.mlp.forward = lambda hidden: hidden  # as a library that offloads weights puts there
    with pytest.raises(RuntimeError), lean_feed_forward(body, torch.tensor([0])):
        body(torch.randn(1, 3, 5))
    assert first.mlp.forward is other
    assert "forward" not in body[1].mlp.__dict__
