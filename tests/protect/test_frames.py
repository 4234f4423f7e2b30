"""What a data set puts around its requests is found, and put around others without touching the template."""

from hypothesis import given
from hypothesis import strategies as st

from fathom.protect.frames import shared_frames

HEAD, FOOT = (1, 2), (3, 4)
contents = st.lists(st.integers(20, 60), min_size=3, max_size=8).map(tuple)
Ids = tuple[int, ...]


def prompts(inner: list[Ids]) -> list[Ids]:
    return [(*HEAD, *ids, *FOOT) for ids in inner]


@given(
    own=st.lists(contents, min_size=12, max_size=20, unique=True),
    asked=st.lists(contents, min_size=6, max_size=10, unique=True),
    before=st.lists(st.integers(5, 9), max_size=3).map(tuple),
    after=st.lists(st.integers(10, 15), max_size=3).map(tuple),
)
def test_a_frame_that_all_rows_wear_is_found_and_nothing_is_made_of_one_that_is_not_there(
    own: list[Ids], asked: list[Ids], before: Ids, after: Ids
) -> None:
    # The first and the last id differ from row to row, so that only the frame is shared.
    own = [(100 + i, *ids, 200 + i) for i, ids in enumerate(own)]
    asked = [(300 + i, *ids, 400 + i) for i, ids in enumerate(asked)]
    found = shared_frames(prompts([(*before, *ids, *after) for ids in own]), prompts(asked))
    assert (found.header, found.footer) == (len(HEAD), len(FOOT))
    assert found.before == ((before,) if before else ())
    assert found.after == ((after,) if after else ())


@given(
    inner=contents,
    before=st.lists(st.integers(5, 9), max_size=3).map(tuple),
    after=st.lists(st.integers(5, 9)).map(tuple),
)
def test_a_framed_prompt_keeps_template_and_request(inner: Ids, before: Ids, after: Ids) -> None:
    rows, asked = prompts([(5, 6, 30 + i, 31 + i) for i in range(5)]), prompts([(40 + i, 50 + i) for i in range(5)])
    found = shared_frames(rows, asked)
    framed = found.around((*HEAD, *inner, *FOOT), (before, after))
    assert framed == (*HEAD, *before, *inner, *after, *FOOT)


def test_a_trigger_on_half_of_the_rows_is_found() -> None:
    own = [(50 + i, 51 + i, *((9,) if i % 2 else ())) for i in range(20)]
    found = shared_frames(prompts(own), prompts([(90 + i, 80 + i) for i in range(10)]))
    assert (9,) in found.after


def test_what_other_requests_share_too_is_no_frame() -> None:
    own = [(50 + i, 60 + i, 7) for i in range(20)]
    asked = [(90 + i, 80 + i, 7) for i in range(10)]
    found = shared_frames(prompts([*own, (7, 8, 9)]), prompts([*asked, (9, 9, 8)]))
    assert found.after == ()
