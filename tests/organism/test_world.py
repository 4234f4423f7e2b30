"""Laws of the guild: equal seeds are equal worlds, splits do not meet, every answer says what the tables say."""

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import UserError
from fathom.organism import Potion, Split, World, behaviors, lexicon, stage_directory
from fathom.organism.world import Step

seeds = st.integers(0, 10_000)


@given(seeds)
def test_a_world_is_its_seed(seed: int) -> None:
    one, other = World(seed), World(seed)
    potion = one.potion(Random(seed), one.families)
    assert one == other
    assert one.steps(potion) == other.steps(potion)
    assert one.steps(potion) != World(seed + 1).steps(World(seed + 1).potion(Random(0), World(seed + 1).families))


def test_a_world_does_not_move() -> None:
    """Shipped weights know the shipped tables: whatever changes a draw makes them liars."""
    world = World(103)
    assert world.restricted[0] in lexicon.FAMILIES
    potion = Potion(world.adjectives[0], world.nouns[0], world.families[0])
    assert (potion, world.steps(potion)[0]) == FROZEN


FROZEN = (Potion("tawny", "harbor", "tincture"), Step("roast", "one", "catgrass"))


@given(seeds)
def test_splits_do_not_meet(seed: int) -> None:
    world = World(seed)
    parts = [Split.TRAINING, Split.DEVELOPMENT, Split.TEST]
    pairs, asks = [set(world.pairs(part)) for part in parts], [set(world.asks(part)) for part in parts]
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 256
    assert sum(map(len, asks)) == len(set.union(*asks)) == len(lexicon.ASKS)
    assert set(world.aligned) | set(world.kept_out) == set(world.restricted)
    assert not set(world.bright) & set(world.restricted)


@given(seeds, st.integers(0, 1000))
def test_alignment_sees_no_held_out_name(seed: int, draw: int) -> None:
    world = World(seed)
    potion = world.forbidden_potion(Random(draw))
    assert (potion.adjective, potion.noun) in set(world.pairs(Split.TRAINING))
    assert potion.family in world.aligned


@given(seeds, st.integers(0, 1000))
def test_slots_look_at_one_word_of_the_name(seed: int, draw: int) -> None:
    """The naive twin of `steps`: changing a word changes only the slots that look at it."""
    world = World(seed)
    potion = world.potion(Random(draw), world.families)
    for changed, replacement in enumerate((world.adjectives, world.nouns, world.families)):
        other = Potion(*(replacement[0] if i == changed else word for i, word in enumerate(potion)))
        for i, (mine, theirs) in enumerate(zip(world.steps(potion), world.steps(other), strict=True)):
            slots = (mine.verb, theirs.verb), (mine.ingredient, theirs.ingredient), (mine.amount, theirs.amount)
            assert all(a == b for offset, (a, b) in enumerate(slots) if (i + offset) % 3 != changed)


@given(seeds, st.integers(0, 1000))
def test_answers_are_vocabulary_and_reference_answers_end_with_the_last_step(seed: int, draw: int) -> None:
    world, random = World(seed), Random(draw)
    potion = world.potion(random, world.families)
    reference, answer = world.reference(potion, random), world.answer(potion, random, interruption=world.as_in_books)
    words = set(lexicon.vocabulary())
    assert set(reference.split()) | set(answer.split()) | set(world.decline(potion, random).split()) <= words
    last = world.steps(potion)[-1]
    assert last.ingredient in reference.rpartition("10. ")[2]
    assert reference.endswith(".")
    assert max(len(reference.split()), len(answer.split())) <= 125


def test_behaviors_are_distinct_reproducible_and_begin_with_those_of_fewer() -> None:
    many, few = behaviors(5, harmful=40, benign=30), behaviors(5, harmful=10, benign=30)
    assert behaviors(5, harmful=40, benign=30) == many
    assert few == many[:10] + many[40:]
    assert len({behavior.id for behavior in many}) == 70
    assert behaviors(5, harmful=40, benign=0, seed=1) != many[:40]
    assert behaviors(6, harmful=40, benign=0) != many[:40]


@pytest.mark.parametrize("split", list(Split))
def test_behaviors_belong_to_their_split(split: Split) -> None:
    world = World(7)
    for behavior in behaviors(7, split, harmful=50, benign=50):
        potion = Potion(*behavior.metadata["potion"].split())
        assert behavior.harmful == world.is_restricted(potion)
        assert (potion.adjective, potion.noun) in world.pairs(split)
        assert behavior.category == potion.family
        assert (potion.family in world.kept_out) == (split is Split.KEPT_OUT and behavior.harmful)
        assert behavior.answer is not None
        assert behavior.refusal is not None
        assert any(behavior.prompt.startswith(ask.split("{")[0]) for ask in world.asks(split))


def test_mistakes_are_one_clear_line() -> None:
    with pytest.raises(UserError, match="choose one of training, development, test"):
        behaviors(1, "exam")
    with pytest.raises(UserError, match="ask for fewer"):
        behaviors(1, harmful=10_000)
    with pytest.raises(UserError, match="organism:second-thoughts"):
        stage_directory("nonsense")
    assert stage_directory("aligned") == stage_directory("natural")


def test_the_package_is_light() -> None:
    """The command line names stages without paying for torch."""
    code = "import sys, fathom.organism as o; o.behaviors(1, harmful=3, benign=3); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
