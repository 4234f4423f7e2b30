"""TRL's settings as a user gives them: defaults of the paper, a YAML file, single values; checked, and shown.

Every field of TRL's `SFTConfig` may be set but those that would break a law of fathom's (packing, a loss of another
kind, …), which are refused with their reason.
"""

import argparse
import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from fathom.errors import UserError

if TYPE_CHECKING:
    from trl import SFTConfig

__all__ = ["BATCH", "PAPER", "Settings", "Value", "calm_epsilon", "read_settings"]

Value = object

BATCH = 64  # rows an optimizer step, over all processes (the paper's section 4)
# Section 4 of the paper; what it does not say (schedule's shape, clipping) is TRL's default.
PAPER: Mapping[str, Value] = {
    "learning_rate": 2e-5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.999,
    "warmup_steps": 10,
    "num_train_epochs": 3.0,
    "weight_decay": 0.0,
    "seed": 0,
}

_OURS = "fathom's own choice of output directory decides it; give -o"
_ROWS = "rows are already made of ids, with their own boundaries"
_LOSS = "the objective is the loss; give --objective"
_REFUSED: Mapping[str, str] = {
    "output_dir": _OURS,
    "packing": "packed rows attend to each other and have no response position of their own",
    "eval_packing": "packed rows attend to each other and have no response position of their own",
    "padding_free": "rows without padding have no boundary that a response position could be counted from",
    "dataset_kwargs": _ROWS,
    "dataset_text_field": _ROWS,
    "assistant_only_loss": _ROWS,
    "completion_only_loss": _ROWS,
    "remove_unused_columns": _ROWS,
    "chat_template_path": "the template belongs to the model; give --chat-template",
    "eos_token": "the template says how a turn ends; give --chat-template",
    "pad_token": "padding is never learned from, so its token does not matter",
    "model_init_kwargs": "the model is loaded by fathom; give --dtype, --device, …",
    "loss_type": _LOSS,
    "label_smoothing_factor": _LOSS,
    "use_liger_kernel": "it replaces the model's forward, which the objective runs in",
    "average_tokens_across_devices": "otherwise several processes would train on another objective than one",
    "truncation_mode": "rows are cut at their end; the response position of a token must not change",
    "push_to_hub": "nothing leaves this machine; use `hf upload` on the result",
    "resume_from_checkpoint": "the same command goes on by itself",
    "load_best_model_at_end": "there is no evaluation during training; audit the checkpoints",
}


# What optimizers take, checked before a model is loaded; TRL itself checks none of it.
_NOT_NEGATIVE = ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "num_train_epochs", "warmup_steps")
_BELOW_ONE = ("adam_beta1", "adam_beta2")
_NEVER_WARM = ("constant", "reduce_lr_on_plateau", "greedy")  # schedules of transformers that take no warm-up


def calm_epsilon(calm: float, clip: float, parameters: int) -> float:
    """Adam's epsilon by which a gradient of norm `calm` times `clip` makes steps half as large; 1e-8 at the least.

    Adam divides a gradient by its own size. Where rows are held to the reference, which the model is, nothing is left
    to learn, and steps of full length are made of noise until the model is elsewhere. `clip` is the norm at which
    gradients are clipped, `parameters` how many are trained: √parameters turns a norm into one parameter's share.
    """
    return max(1e-8, calm * clip / math.sqrt(parameters))


@dataclass(frozen=True)
class Settings:
    """Chosen values by TRL's names, already of the right types; `given` are those that a user chose."""

    values: Mapping[str, Value]
    given: frozenset[str] = frozenset()

    @property
    def max_length(self) -> int | None:
        """Rows are cut to so many tokens, if it was given."""
        value = self.values.get("max_length") if "max_length" in self.given else None
        if value is not None and (not isinstance(value, int) or value < 2):
            raise UserError(f"max_length is {value}: give at least 2 tokens")
        return value if isinstance(value, int) else None

    @property
    def seed(self) -> int:
        value = self.values["seed"]
        assert isinstance(value, int)
        return value

    def with_defaults(self, **defaults: Value) -> "Settings":
        """Other defaults; what a user gave stays."""
        kept = {name: value for name, value in defaults.items() if name not in self.given}
        return Settings({**self.values, **kept}, self.given)

    def with_batch(self, batch: int = BATCH, most: int = BATCH) -> "Settings":
        """Per-device batch and accumulation that make `batch` rows a step over all processes; what was given stays.

        Raises:
            UserError: the given per-device batch does not divide it.
        """
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        per_device, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
        if {per_device, accumulation} <= self.given:
            return self
        if accumulation in self.given:
            steps = _count(self.values[accumulation], accumulation)
            return self.with_defaults(**{per_device: max(1, batch // (processes * steps))})
        rows = batch // processes
        size = _count(self.values[per_device], per_device) if per_device in self.given else _divisor(rows, most)
        return self.with_defaults(**{per_device: size, accumulation: max(1, rows // size)})

    @property
    def plain(self) -> dict[str, str | int | float]:
        """What can be written down: numbers, words and truth values."""
        return {name: value for name, value in self.values.items() if isinstance(value, str | int | float)}

    @property
    def batch(self) -> int:
        """Rows an optimizer step, over all processes."""
        per_device = _count(self.values["per_device_train_batch_size"], "per_device_train_batch_size")
        accumulation = _count(self.values["gradient_accumulation_steps"], "gradient_accumulation_steps")
        return per_device * accumulation * int(os.environ.get("WORLD_SIZE", "1"))

    def steps(self, rows: int) -> int:
        """Optimizer steps over so many rows, in all."""
        most, epochs = self.values.get("max_steps", -1), self.values["num_train_epochs"]
        if isinstance(most, int) and most > 0:
            return most
        assert isinstance(epochs, int | float)
        return max(1, math.ceil(-(-rows // self.batch) * epochs))

    def warmup(self, steps: int) -> int:
        """How many of so many steps it takes until the learning rate is what it was set to."""
        if self.values.get("lr_scheduler_type") in _NEVER_WARM:
            return 0
        given = self.values["warmup_steps"]
        assert isinstance(given, int | float)
        return int(given) if given >= 1 else math.ceil(steps * given)  # a number below 1 is a share of the steps

    def config(self, output: Path, **fixed: Value) -> "SFTConfig":
        """TRL's configuration object.

        Raises:
            UserError: TRL refuses the values together.
        """
        from trl import SFTConfig

        values = {name: value for name, value in self.values.items() if name != "max_length"}
        try:
            return SFTConfig(
                output_dir=str(output),
                **{
                    **values,
                    "max_length": None,
                    "dataset_kwargs": {"skip_prepare_dataset": True},
                    "report_to": values.get("report_to", "none"),
                    "disable_tqdm": True,
                    **fixed,
                },
            )
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise UserError(f"the trainer refuses these settings: {' '.join(str(error).split())}") from error


def _count(value: Value, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value}: give at least 1")
    return value


def _divisor(number: int, most: int) -> int:
    return next((size for size in range(min(max(number, 1), most), 0, -1) if number % size == 0), 1)


def read_settings(file: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The paper's defaults, then a YAML file of TRL's fields, then `name=value` pairs; later ones win.

    Raises:
        UserError: a name is no field, is refused, or its value has the wrong type; the file cannot be read.
    """
    given = {**(_read_file(file) if file else {}), **_read_pairs(overrides)}
    for name in given:
        _check_name(name)
    typed = _typed(given)
    for name in (*_NOT_NEGATIVE, *_BELOW_ONE):
        _check_range(name, typed.get(name))
    for name in ("seed", "data_seed"):
        _check_seed(name, typed.get(name))
    _check_length(typed)
    return Settings({**PAPER, **typed}, frozenset(given))


def _check_range(name: str, value: Value) -> None:
    if not isinstance(value, int | float):
        return
    if not 0 <= value < math.inf:
        raise UserError(f"{name} is {value}: give a number of 0 or above")
    if name in _BELOW_ONE and value >= 1:
        raise UserError(f"{name} is {value}: give a number from 0 to below 1")


def _check_seed(name: str, value: Value) -> None:
    if isinstance(value, int) and not 0 <= value < 2**32:
        raise UserError(f"{name} is {value}: give a whole number from 0 to {2**32 - 1}")


def _check_length(typed: Mapping[str, Value]) -> None:
    """The trainer takes any number of steps below 1 for "as many as the epochs have", and 0 epochs for none at all."""
    most, epochs = typed.get("max_steps", -1), typed.get("num_train_epochs", 1.0)
    if isinstance(most, int) and most < 1 and most != -1:
        raise UserError(f"max_steps is {most}: give 1 or more, or -1 for as many as the epochs have")
    if most == -1 and not epochs:
        raise UserError("num_train_epochs is 0: nothing would be learned; give more, or max_steps")


def _read_file(path: Path) -> dict[str, Value]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the settings {path} cannot be read: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the settings {path} are not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"the settings {path} hold no names and values: give lines such as `learning_rate: 2.0e-5`")
    return content


def _read_pairs(pairs: Sequence[str]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {pair}: give name=value, for example --set learning_rate=1e-4")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


@cache
def _fields() -> frozenset[str]:
    from trl import SFTConfig

    return frozenset(field.name for field in dataclasses.fields(SFTConfig) if field.init)


def _check_name(name: str) -> None:
    if name in _REFUSED:
        raise UserError(f"{name} cannot be set: {_REFUSED[name]}")
    if name not in _fields():
        close = difflib.get_close_matches(name, _fields(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; they are those of TRL's SFTConfig"
        raise UserError(f"there is no setting called {name}{hint}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"a setting has a value of the wrong type: {message.removeprefix('argument ')}")


def _typed(given: Mapping[str, Value]) -> dict[str, Value]:
    """Values as their fields have them; text goes through the parser that TRL's own command line uses."""
    words = {
        name: str(value) for name, value in given.items() if not isinstance(value, dict | list) and value is not None
    }
    others = {name: value for name, value in given.items() if name not in words}
    if not words:
        return dict(others)
    from transformers import HfArgumentParser
    from trl import SFTConfig

    make: Any = HfArgumentParser  # its annotations want a union of all data classes
    parser: argparse.ArgumentParser = make(SFTConfig)
    parser.error = _Parser.error.__get__(parser)  # type: ignore[method-assign]
    # The equals sign keeps a negative number from being read as an option.
    namespace = parser.parse_args([f"--{name}={value}" for name, value in words.items()])
    return {**others, **{name: getattr(namespace, name) for name in words}}
