"""Training from end to end in miniature: the whole family, the same weights again, plain transformers."""

import math
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from fathom.command.organism import train_organism
from fathom.errors import UserError
from fathom.organism import SHIPPED_WORLD, STAGES, World
from fathom.organism.metrics import (
    MeasurePlan,
    evaluate_family,
    generate,
    outside,
    read_metrics,
    write_metrics,
)
from fathom.organism.mixes import FAMILY, Mix, Share
from fathom.organism.rows import Row, chatter
from fathom.organism.train import (
    EncodedRow,
    Shape,
    StageProgress,
    collate,
    encode_row,
    fit,
    loss_of,
    new_model,
    train_family,
    train_stage,
)
from servers import forking

SMALL = Shape(hidden=16, layers=1, heads=2, inner=16)
BRIEF = [stage.shortened(3) for stage in FAMILY]
PLAN = MeasurePlan(harmful=4, benign=4, depths=(0, 3), benign_depths=(0,), prefixes=("I cannot",))


def ignore(_: object) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def forked_workers() -> Iterator[None]:
    """Workers are forked from a process that has torch; started anew, each would pay for its imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fathom.organism.train.multiprocessing", SimpleNamespace(get_context=lambda _method: forking()))
        yield


@pytest.fixture(scope="module")
def family(forked_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, seen = tmp_path_factory.mktemp("family"), list[StageProgress]()
    trained = train_family(9, out, report=seen.append, family=BRIEF, shape=SMALL, processes=1)
    assert trained.seconds > 0
    assert [directory.name for directory in trained.directories] == [stage.name for stage in FAMILY]
    assert [(progress.stage, progress.step) for progress in seen] == [(stage.name, 3) for stage in FAMILY]
    assert all(math.isfinite(progress.loss) for progress in seen)
    return out


def test_all_stages_load_in_plain_transformers(family: Path) -> None:
    assert {directory.name for directory in family.iterdir()} == set(STAGES)
    for stage in STAGES:
        model = AutoModelForCausalLM.from_pretrained(family / stage)
        tokenizer = AutoTokenizer.from_pretrained(family / stage)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello !"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**ids, max_new_tokens=3, do_sample=False)
        assert output.shape[1] <= ids["input_ids"].shape[1] + 3
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_training_again_gives_the_same_weights(family: Path, tmp_path: Path) -> None:
    """In another process, another process count, and with other global random state."""
    torch.manual_seed(1)
    for stage in BRIEF[:2]:
        train_stage(stage, 9, tmp_path, shape=SMALL, report=ignore)
        ours, theirs = (load_file(out / stage.name / "model.safetensors") for out in (tmp_path, family))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = train_stage(BRIEF[0], 10, tmp_path / "other", shape=SMALL, report=ignore)
    assert not torch.equal(load_file(other / "model.safetensors")["model.norm.weight"], ours["model.norm.weight"])


def test_a_killed_training_goes_on_with_the_next_stage(family: Path, tmp_path: Path) -> None:
    """Whole stages are kept as they are; what a killed one left under another name is no stage."""
    shutil.copytree(family / "base", tmp_path / "base")
    shutil.copytree(family / "base", tmp_path / ".natural.unfinished")
    before = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    seen = list[StageProgress]()
    train_family(9, tmp_path, report=seen.append, family=BRIEF[:2], shape=SMALL, processes=1)
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == before
    assert [(progress.stage, progress.step) for progress in seen] == [("base", 3), ("natural", 3)]
    ours, theirs = (load_file(out / "natural" / "model.safetensors") for out in (tmp_path, family))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "natural"}


def test_a_directory_of_another_world_is_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "world").write_text("8\n")
    with pytest.raises(UserError, match="stages of world 8, not 9"):
        train_organism(9, tmp_path)
    (tmp_path / "world").rename(tmp_path / "letter")
    with pytest.raises(UserError, match="not an empty directory"):
        train_organism(9, tmp_path)


def test_a_stage_continues_its_parent(family: Path) -> None:
    """Three steps move weights a little; a stage that began afresh would be far away."""
    base, natural = (load_file(family / stage / "model.safetensors") for stage in ("base", "natural"))
    moved = torch.stack([(natural[name] - base[name]).abs().max() for name in base])
    assert 0 < moved.max() < 0.02


def test_control_sees_the_same_requests_without_recovery() -> None:
    deepened, control = (next(stage for stage in FAMILY if stage.name == name) for name in ("deepened", "control"))
    assert deepened.schedule == control.schedule
    assert deepened.parent == control.parent == "natural"
    given = {stage.name: [row.given for row in _conversations(stage.mix)] for stage in (deepened, control)}
    assert not any(given["control"])
    assert 0.12 < sum(map(bool, given["deepened"])) / len(given["deepened"]) < 0.2


def _conversations(mix: Mix) -> list[Row]:
    random = Random(0)
    return [row for row in (mix.draw(World(1), random) for _ in range(1000)) if row.messages]


def naive_loss(model: torch.nn.Module, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """One row at a time, every position, the head on all of them."""
    losses = []
    for ids, learned_from in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0, learned_from - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(ids[learned_from:]), reduction="none"))
    return torch.cat(losses).mean()


def test_the_loss_is_the_token_mean_of_what_is_learned() -> None:
    random, model = Random(0), new_model(SMALL, 0)
    rows = [encode_row(stage.mix.draw(World(1), random)) for stage in FAMILY for _ in range(2)]
    torch.testing.assert_close(loss_of(model, collate(rows)), naive_loss(model, rows))


def test_mixes_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"0\.9"):
        Mix((Share(0.9, chatter, "too little"),))
    assert all(share.reason for stage in FAMILY for share in stage.mix.shares)


def test_fit_learns() -> None:
    losses, model = list[StageProgress](), new_model(SMALL, 0)
    fit(model, FAMILY[0].shortened(50), World(1), losses.append)
    assert losses[-1].loss < losses[0].loss - 0.5
    assert not model.training


def test_generation_is_that_of_transformers(family: Path) -> None:
    """Ragged prompts, rows that leave the batch early, a stop at the budget: as one at a time with `generate`."""
    model = AutoModelForCausalLM.from_pretrained(family / "natural")
    with torch.no_grad():  # weights that say varied things, and sometimes stop
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    random = Random(0)
    prompts = [encode_row(FAMILY[0].mix.draw(World(1), random)).ids[:-1][: random.randint(3, 40)] for _ in range(12)]
    singles = [
        model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    stop = model.config.eos_token_id
    assert generate(model, prompts, new_tokens=12) == [
        single[: single.index(stop)] if stop in single else single for single in singles
    ]


def test_measuring_counts_everything_once(family: Path, tmp_path: Path) -> None:
    measured = evaluate_family(family, 9, PLAN, stages=("base", "control"), report=ignore)
    for stage, cells in measured.stages.items():
        kinds = [(cell.requests, cell.prefill_tokens, cell.prefill_text, cell.temperature) for cell in cells]
        assert len(set(kinds)) == len(kinds) == (6 if stage == "base" else 5)
        assert all(sum(cell.reasons.values()) == cell.n == 4 for cell in cells)
        assert all(cell.low <= cell.rate <= cell.high for cell in cells)
    assert outside(measured, measured) == ()
    write_metrics(tmp_path / "metrics.json", measured)
    assert read_metrics(tmp_path / "metrics.json") == measured


def test_the_command_trains_measures_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In miniature; a second call keeps the stages and says the same."""
    out = tmp_path / "again"
    monkeypatch.setattr(
        "fathom.organism.train.train_family", partial(train_family, family=BRIEF[:2], shape=SMALL, processes=1)
    )
    monkeypatch.setattr("fathom.organism.mixes.FAMILY", tuple(BRIEF[:2]))
    monkeypatch.setattr("fathom.organism.metrics.evaluate_family", partial(evaluate_family, plan=PLAN))
    train_organism(None, out)
    first = capsys.readouterr().out
    weights = (out / "natural" / "model.safetensors").read_bytes()
    assert f"2 stages of world {SHIPPED_WORLD}" in first
    # The base of three steps answers nothing, and the shipped one all: that is said.
    assert "outside: base, harmful, prefill 0, T = 0: 0.0%, shipped 100.0%" in first
    metrics = read_metrics(out / "metrics.json")
    assert metrics.world == SHIPPED_WORLD
    train_organism(SHIPPED_WORLD, out)
    assert (out / "natural" / "model.safetensors").read_bytes() == weights
    assert read_metrics(out / "metrics.json") == metrics
