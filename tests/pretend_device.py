"""A device that is none: tensors on it are computed on the CPU, but mix with the CPU's as an accelerator's would.

Within `pretend()` the device "mps:0" can be used on every machine: what is moved or made there is a `Foreign` tensor,
and an operation on foreign and ordinary tensors together raises, as it would on real hardware, but for what is allowed
there too: scalars, and ordinary index tensors into foreign ones. As on Apple's devices there is no float64. So code
that forgets to move a tensor is found without such a device. It has no kernels of its own: precision and speed are the
CPU's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils import _device
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["DEVICE", "Foreign", "pretend"]

DEVICE = torch.device("mps", 0)
_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}


class Foreign(torch.Tensor):
    """A tensor of the pretended device. `inner` is where its values are."""

    inner: torch.Tensor  # type: ignore[assignment]  # a name of a product, which no test takes

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Foreign":
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("meta"),  # so that nothing below Python takes it for the CPU's
            requires_grad=False,
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_as_tensors(index), value)

    def tolist(self) -> Any:
        return self.inner.detach().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.inner.detach().numpy()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Foreign({self.inner!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _as_tensors(index: Any) -> Any:
    """Lists of indices as tensors of the CPU: below Python they would be made on the device meta, without values."""
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.int64)
    return tuple(_as_tensors(part) for part in index) if isinstance(index, tuple) else index


class _Mode(TorchDispatchMode):
    """Sees what makes a tensor from nothing, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretend() -> Iterator[torch.device]:
    """The device "mps" is there, and is the pretended one."""
    usual, swapping = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes on the CPU first, and moves where this can see it
    torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay tied when a model is moved
    try:
        with mock.patch.object(torch, "Event", _Event), _Mode():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(usual)
        torch.__future__.set_swap_module_params_on_conversion(swapping)


class _Event:
    """What is waited for has happened: the pretended device is never behind."""

    def __init__(self, **_: object) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    foreign = [x for x in tensors if isinstance(x, Foreign)]
    target = next((x for x in leaves if isinstance(x, torch.device)), None)
    there = bool(foreign) if target is None else target.type == DEVICE.type or _is_ours(target, foreign)
    generator = kwargs.get("generator")
    if there and generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"Expected a 'mps' device type for generator but found 'cpu', in {func}")
    crossing = target is not None or func is _aten.copy_.default
    if foreign and not crossing:
        _check(func, args, tensors)
    found = func(*_plain(args, there), **_plain(kwargs, there))
    if func is _aten.copy_.default:
        return args[0]
    if not there:
        return found
    found = tree_map(lambda x: Foreign(x) if isinstance(x, torch.Tensor) else x, found)
    return found if crossing else return_and_correct_aliasing(func, args, kwargs, found)


def _is_ours(target: torch.device, foreign: Sequence[torch.Tensor]) -> bool:
    """Below Python a foreign tensor is one of the device meta, and so is what is made like it there.

    But what transformers makes there while it loads a model is a real tensor of meta.
    """
    current = _device.CURRENT_DEVICE
    return target.type == "meta" and (bool(foreign) or current is None or current.type != "meta")


def _plain(values: Any, there: bool) -> Any:
    def plain(x: Any) -> Any:
        if isinstance(x, Foreign):
            return x.inner
        return torch.device("cpu") if there and isinstance(x, torch.device) else x

    return tree_map(plain, values)


def _check(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """That nothing is mixed that a real device would not mix."""
    if func in _INDEXING:  # indices may lie on the CPU where what is indexed does not; not the other way about
        tensors = [x for x in (args[0], *args[2:3]) if isinstance(x, torch.Tensor)]
        if not isinstance(args[0], Foreign):
            raise RuntimeError(f"indices should be either on cpu or on the device of the indexed tensor, in {func}")
    mixed = [x for x in tensors if not isinstance(x, Foreign) and x.dim()]
    if mixed:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu, in {func} "
            f"(on the CPU: {tuple(mixed[0].shape)} {mixed[0].dtype})"
        )
