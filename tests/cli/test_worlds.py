"""A model that was trained in a world of its own is asked for that world's potions, and for no other's."""

import json
import shutil

import pytest

from fathom.command.request import ModelRequest
from fathom.command.worlds import world_asked
from fathom.errors import UserError
from fathom.organism import SHIPPED_WORLD, stage_directory
from fathom.organism.train import Shape, new_model


@pytest.fixture
def trained(tmp_path):
    """A model that says that it was trained in world 7."""
    path = shutil.copytree(stage_directory("natural"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "fathom_world": 7}))
    return ModelRequest(name=str(path))


def test_a_trained_model_says_its_world(tmp_path):
    new_model(Shape(hidden=16, inner=32, layers=1, heads=2), 11).save_pretrained(tmp_path / "model")
    assert world_asked(ModelRequest(name=str(tmp_path / "model")), None, None) == 11


def test_it_is_asked_of_its_own_world(trained):
    assert world_asked(trained, None, None) == world_asked(trained, "organism", None) == 7
    assert world_asked(trained, None, 7) == 7
    assert world_asked(trained, "rows.jsonl", None) is None
    with pytest.raises(UserError, match="was trained in world 7: leave out --world"):
        world_asked(trained, None, 8)


def test_models_that_say_nothing_are_asked_what_was_given(tmp_path):
    for name in ("organism:natural", "somebody/model", str(tmp_path)):
        assert world_asked(ModelRequest(name=name), None, None) is None
    assert world_asked(ModelRequest(name=str(tmp_path)), "organism", 5) == 5
    assert world_asked(ModelRequest(name="organism:natural"), None, SHIPPED_WORLD) == SHIPPED_WORLD
    with pytest.raises(UserError, match="the built-in models are of world"):
        world_asked(ModelRequest(name="organism:natural"), None, 7)
