"""One training in several processes, on Hugging Face's Accelerate: data parallelism.

Every process makes the whole batch with its draws, which are functions of (seed, step), and takes its rows. The gradients are
averaged. So weights and losses are those of a single process within rounding. With a single process nothing here does anything.
"""

import os
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.machine.ranks import PROCESSES, Ranks

F = TypeVar("F", bound=Callable[..., object])


class _Loss(nn.Module):
    """A loss, as a module that holds the weights which it depends on."""

    def __init__(self, model: nn.Module, loss: Callable[..., object]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> object:
        return self.loss(*batch)


class _Sum(torch.autograd.Function):
    """Over all processes. Each one's loss depends on it, so the gradient is a sum over them too."""

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _BatchNorm(nn.BatchNorm2d):
    """Normalises by mean and variance of the whole batch, of which this process has some rows."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values, axes = x.float(), (0, 2, 3)
        n = _summed(torch.tensor(float(values[:, 0].numel()), device=x.device))
        mean = _Sum.apply(values.sum(axes)) / n
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum(axes)) / n
        with torch.no_grad():  # the statistics that it normalises by later
            for kept, now in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
                if kept is not None:
                    kept.lerp_(now, self.momentum or 0.1)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def shared(loss: F, model: nn.Module, ranks: Ranks, section: str, batch_size: int) -> F:
    """A loss of the whole batch, computed on this process's rows of it.

    Args:
        loss: tensors of B rows ↦ a mean over rows, or several.
        model: whose weights it depends on. They must be on their device, and be the same everywhere.
        section: of params.yaml, for messages.
        batch_size: B.

    Returns:
        A function of the same tensors, to be kept while gradients are computed. The mean of its values over all processes is the
        loss, and `backward` leaves the gradient of that mean in every process.

    Raises `UserError` where there are more processes than rows, or where Accelerate is set up for something else than data
    parallelism.
    """
    if ranks.size == 1:
        return loss
    if batch_size < ranks.size:
        raise UserError(
            f"{PROCESSES} is {ranks.size} and {section}.batch_size {batch_size}, so some process has nothing to do; start "
            f"{batch_size} processes at most, or raise {section}.batch_size"
        )
    first, end = (batch_size * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    weight = (end - first) * ranks.size / batch_size  # 1 where all have as many rows
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = _BatchNorm
    of_rows = _parallel(_Loss(model, loss), next(model.parameters()).device)

    def of_batch(*batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = of_rows(*(rows[first:end] for rows in batch))
        return tuple(weight * value for value in values) if isinstance(values, tuple) else weight * values

    return cast(F, of_batch)


def _parallel(loss: _Loss, device: torch.device) -> nn.Module:
    """The loss through Accelerate, which averages gradients over processes."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    if device.type not in ("cpu", "cuda"):
        raise UserError(f"LFM_DEVICE: a training in several processes needs cpu or cuda, not {device.type}; choose one")
    os.environ |= {"ACCELERATE_TORCH_DEVICE": str(device), "ACCELERATE_BYPASS_DEVICE_MAP": "true"}  # where the model is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a CPU, without OMP_NUM_THREADS, each process gets its share of threads
        engine = Accelerator(cpu=device.type == "cpu", mixed_precision="no", dynamo_backend="no")
    if engine.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(
            f"Accelerate is set up for {engine.distributed_type.value}; trainings here know data parallelism alone: start them "
            "with `accelerate launch --multi_gpu`, or with a configuration file that says MULTI_GPU"
        )
    return cast(nn.Module, engine.prepare(loss))


def mean(value: Tensor, ranks: Ranks) -> float:
    """Of all processes' values of one of `shared`'s losses: that of the whole batch. All of them must ask for it."""
    if ranks.size > 1:
        from accelerate.utils import reduce

        value = cast(Tensor, reduce(value.detach(), "mean"))
    return value.item()
