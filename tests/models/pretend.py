"""A pretended accelerator, on which whatever would wait for the device fails.

Its tensors are on a device called "pretend", and lie within on the CPU. As with a GPU, an operation takes tensors of
one device (or a single number from the CPU); `bool(tensor)`, `tensor.tolist()`, a boolean index and the like ask the
device for its numbers, and so does every copy to the CPU, or one from the CPU that is not marked `non_blocking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "pretend"
aten = torch.ops.aten
_LIBRARY = torch.library.Library("aten", "IMPL")
# What gives a number, or something whose size is one.
_ASKING = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.unique_dim,
    aten._unique2,
    aten.bincount,
    aten.repeat_interleave,
    aten.equal,
    aten.allclose,
}
_BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class WaitedError(AssertionError):
    """The CPU would have waited for the device."""


class Device(TorchDispatchMode):
    """The device, as long as the mode lasts."""

    strict = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = any(isinstance(one, Pretended) for one in tree_leaves((args, kwargs)))
        device = kwargs.get("device")
        if here or (device is not None and torch.device(device).type == NAME):
            return compute(func, args, kwargs)
        return func(*args, **kwargs)

    @classmethod
    @contextmanager
    def watched(cls, strict: bool = True) -> Iterator[None]:
        """Within it nothing may wait; or, once more within, everything may."""
        before, cls.strict = cls.strict, strict
        try:
            yield
        finally:
            cls.strict = before


class Pretended(Tensor):
    """A tensor on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Pretended], inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=f"{NAME}:0"
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Pretended({[*self.shape]})"

    def tolist(self) -> Any:
        refuse("tolist")
        return self.inner.tolist()

    def numpy(self, **options: Any) -> Any:
        refuse("numpy")
        return self.inner.numpy(**options)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def refuse(what: object) -> None:
    if Device.strict:
        raise WaitedError(f"{what} waits for the device")


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    packet = func.overloadpacket
    if packet in _ASKING:
        refuse(func)
    if packet in _BY_INDEX and any(one is not None and one.dtype == torch.bool for one in args[1]):
        refuse(f"{func} by a mask")
    leaves = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    target = kwargs.get("device")
    leaves_it = target is not None and torch.device(target).type == "cpu"
    if packet is aten._to_copy or packet is aten.copy_:
        arrives = any(not isinstance(one, Pretended) for one in leaves)
        if leaves_it or (arrives and not kwargs.get("non_blocking", args[2:3] == (True,))):
            refuse(f"{func} from or to the CPU")
    else:
        wrong = [one for one in leaves if not isinstance(one, Pretended) and one.ndim]
        assert not wrong or not any(isinstance(one, Pretended) for one in leaves), (
            f"{func} of tensors of two devices: {leaves}"
        )
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(Pretended, lambda one: one.inner, (args, kwargs))
    found = func(*args, **kwargs)
    if isinstance(leaves[:1] and leaves[0], Pretended) and func._schema.name.endswith("_"):  # in place
        return leaves[0]
    return found if leaves_it else tree_map_only(Tensor, Pretended, found)


def put(model: nn.Module) -> nn.Module:
    """Move a model there, in place."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(Pretended(weight.detach()), requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = Pretended(value)
    return model


def _empty(size: Any, stride: Any, dtype: torch.dtype | None = None, **_: Any) -> Pretended:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def _copy(numbers: Tensor, to: Pretended, non_blocking: bool = False) -> Pretended:
    refuse("a copy from the CPU")
    to.inner.copy_(numbers)
    return to


def start() -> Device:
    """The device, of which a process has one from now on."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    # What `torch.tensor(..., device=...)` does, past every mode.
    _LIBRARY.impl("empty_strided", _empty, "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy, "PrivateUse1")
    torch.get_device_module(NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]  # checkpoints ask for it
    return Device()
