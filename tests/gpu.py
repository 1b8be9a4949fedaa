"""A GPU that is not here: tensors on it have shapes, types and a device, and no values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
READ = torch.ops.aten._local_scalar_dense
M = TypeVar("M", bound=nn.Module)


class Waits(RuntimeError):
    """The host would wait for the GPU."""


class Watched(TorchDispatchMode):
    """Runs what concerns the CPU alone, and pretends to run what concerns the GPU.

    Raises `Waits` for a copy that the host would wait for: all from the GPU, and those to it but from pinned memory without
    blocking; and for an operation on tensors of both, a scalar of the CPU aside, which is an argument of the kernel. torch itself
    raises where a value is read (`.item()`, `float()`, a mask as an index). `TypeError`: float64 on the GPU; Apple's has none.

    Args:
        may_wait: the host may copy, and reads ones.
    """

    def __init__(self, may_wait: bool) -> None:
        super().__init__()
        self.may_wait = may_wait

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        there = [x for x in leaves if isinstance(x, FakeTensor)]
        here = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, FakeTensor) and x.dim()]
        target = next((x.type for x in leaves if isinstance(x, torch.device)), None)
        if not there and target in (None, "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        reads = func.overloadpacket is READ
        if self.may_wait and (reads or target == "cpu"):
            with unset_fake_temporarily():
                return 1 if reads else torch.ones(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        if func.overloadpacket in COPIES:
            quick = kwargs.get("non_blocking") and all(getattr(x, "pinned", False) for x in here)
            if (here and not quick and not self.may_wait) or target == "cpu":
                raise Waits(f"{func} {'from' if target == 'cpu' else 'to'} the GPU")
        elif here:
            raise Waits(f"{func}: {list(here[0].shape)} of the CPU beside a tensor of the GPU")
        result = func(*args, **kwargs)
        if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError(f"{func}: float64 on the GPU")
        return result


def pin(x: Tensor) -> Tensor:
    """In place of `Tensor.pin_memory`."""
    copy = x.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


class Pretended:
    """A GPU, and what is on it."""

    def __init__(self) -> None:
        self.device, self.mode = torch.device("cuda", 0), FakeTensorMode(allow_non_fake_inputs=True)

    def tensor(self, x: Tensor) -> Tensor:
        """One like x, there."""
        return FakeTensor(self.mode, torch.empty_like(x, device="meta"), self.device)

    def module(self, model: M) -> M:
        """The model, moved there."""
        for part in model.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(self.tensor(weight.data), weight.requires_grad)
            for name, value in part._buffers.items():
                part._buffers[name] = None if value is None else self.tensor(value)
        return model

    @contextmanager
    def watched(self, may_wait: bool = False) -> Iterator[None]:
        """Where `Watched` looks at every operation."""
        with self.mode, Watched(may_wait):
            yield
