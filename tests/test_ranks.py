"""Work is split without loss, and what shares computation stays together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.ranks import ALONE, Ranks

items = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 99)), max_size=40)


@given(items, st.integers(1, 5))
def test_every_item_has_exactly_one_process(found: list[tuple[int, int]], size: int) -> None:
    shares = [Ranks(rank, size).share(found, key=lambda item: item[0]) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == sorted(found)
    keys = [{item[0] for item in share} for share in shares]
    assert sum(map(len, keys)) == len(set().union(*keys)), "what shares a key was torn apart"
    assert max(map(len, keys)) - min(map(len, keys)) <= 1
    for share in shares:
        assert share == [item for item in found if item in share], "the order changed"


def test_one_process_does_it_all() -> None:
    assert ALONE.first
    assert ALONE.share([3, 1, 2], key=lambda item: item) == [3, 1, 2]
    ALONE.barrier()
    with ALONE.met():
        pass


def test_the_environment_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.of_environment() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun --nproc_per_node 2"):
        Ranks.of_environment()
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert Ranks.of_environment() == Ranks(1, 2, 1)
    assert not Ranks.of_environment().first
