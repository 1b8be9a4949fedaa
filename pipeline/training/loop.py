"""What every training loop shares: resuming, checkpoints, the learning rate's schedule, progress, and stopping what diverges.

The mathematics stays in the stage: it iterates over steps and does the rest itself.
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from pipeline.errors import UserError
from pipeline.run import Context
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.together import mean

F = TypeVar("F", bound=Callable[..., object])
COMPLAINT = re.compile(r"error: |cannot find ")  # of a compiler or linker


class Loop:
    """An iterator over the steps that are left, each 0, 1, 2 … counted from the beginning of the training.

    Args:
        context: whose scratch folder keeps checkpoints.
        name: of the section in params.yaml, for messages.
        state: what the training changes; its first record is the curve of losses that were `checked`, rows of step, loss, …
        steps: of the whole training.
        rate: step ↦ learning rate.
        part: of the stage, for messages and files, where it trains more than one model.
    """

    def __init__(
        self, context: Context, name: str, state: State, steps: int, rate: Callable[[int], float], part: str = ""
    ) -> None:
        self.context, self.state, self.steps, self.rate = context, state, steps, rate
        kept = f"{part}-step" if part else "step"
        self.checkpoints = Checkpoints(context.scratch, context.params.runtime.checkpoint_every, name, kept)
        self.ranks = context.ranks
        self.start = self.ranks.in_turn(f"checkpoint of {part or name}", lambda: self.checkpoints.resume(state))
        self.name, self.loss = part or name, float("nan")
        self.live = context.live(self.name, ("step", "loss"), [row[:2] for row in next(iter(state.records.values()))])

    def __iter__(self) -> Iterator[int]:
        with self.context.progress(self.steps, self.name, "step", self.start) as progress:
            for step in range(self.start, self.steps):
                for group in self.state.optimizer.param_groups:
                    group["lr"] = self.rate(step)
                yield step
                if self.context.leads:
                    self.checkpoints.keep(self.state, step + 1, self.steps)
                progress.advance(loss=self.loss)

    def every(self, count: int, done: int) -> bool:
        """Whether something that comes every `count` steps, and at the end, is due after `done` of them."""
        return done % count == 0 or done == self.steps

    def checked(self, loss: torch.Tensor, done: int, earlier: list[Any]) -> float:
        """The loss of the whole batch as a number, which all processes ask for. Rank 0 raises `UserError` where it is not finite,
        or far above the first one, which stands second in the first row of `earlier`."""
        self.loss = mean(loss, self.ranks)
        if self.context.leads:
            self.checkpoints.sound(done, self.loss, earlier)
        self.live.add((done, self.loss))
        return self.loss


def compiled(function: F, section: str, device: torch.device) -> F:
    """The function through `torch.compile`, which needs a working C++ compiler, and does so when it is first called. That raises
    `UserError` where it fails; `section` of params.yaml asked for it.

    On a CUDA GPU its kernels, and those of its backward pass, are launched together as CUDA graphs. What it returns is overwritten
    when it is called again.
    """
    deterministic, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(deterministic, warn_only=warns)  # once more, so that the compiler knows it
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # what it thinks of libraries that we call
    faster = torch.compile(function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)

    def call(*arguments: object) -> object:
        try:
            return faster(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            lines = str(error).splitlines()  # the compiler's many, or one of torch's
            reason = next((line for line in lines if COMPLAINT.search(line)), lines[0])
            raise UserError(
                f"{section}.compile is true, but compiling in {tempfile.gettempdir()} failed ({reason.strip()}); mend that, or "
                f"set {section}.compile: false"
            ) from error

    return cast(F, call)
