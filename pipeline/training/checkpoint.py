"""A training's state, kept now and then, so that one that was ended goes on with the same bits.

Batch order and noise are functions of (seed, step), so the state is weights, what the optimiser holds of them, the step,
and the figures so far.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.machine.scratch import Scratch
from pipeline.progress import say

KEPT = 2
DIVERGED = 10.0  # times the first loss that was read


class State(NamedTuple):
    """What a training changes; `restore` fills the same objects."""

    models: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    records: Mapping[str, list[Any]]  # of each name: rows of numbers and tensors


class Checkpoints:
    """Those of one training, every so many steps.

    Args:
        scratch: where they are written; one without a folder keeps none.
        every: after how many steps; the last one is always kept.
        section: of params.yaml, for messages.
        name: of the files, where a stage trains more than one model.
    """

    def __init__(self, scratch: Scratch, every: int, section: str, name: str = "step") -> None:
        self.scratch, self.every, self.section, self.name, self.newest = scratch, every, section, name, 0

    def resume(self, state: State) -> int:
        """Bring `state` to the newest good checkpoint. Returns the steps that are done, 0 where there is none."""
        for path in reversed(self.scratch.find(f"{self.name}-*")):
            if (tensors := self.scratch.read(path)) is not None:
                _restore(state, tensors)
                self.newest = int(path.name.split(".")[0].removeprefix(f"{self.name}-"))
                say(f"{self.scratch.stage}: continues at {self.name} {self.newest}")
                return self.newest
        return 0

    def keep(self, state: State, done: int, steps: int) -> None:
        """Write a checkpoint where one is due; the two newest stay. Raises `UserError` where a weight is not finite."""
        if done % self.every and done != steps:
            return
        tensors = _tensors(state)
        if not all(bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point()):
            raise self._stopped(f"weights are not finite after step {done}")
        self.scratch.write(f"{self.name}-{done:010d}", tensors)
        self.newest = done
        for path in self.scratch.find(f"{self.name}-*")[:-KEPT]:
            path.unlink()

    def sound(self, done: int, loss: float, before: Sequence[Sequence[Any]]) -> float:
        """The loss, when it is finite and not far above the first one, which stands second in the first row `before`."""
        first = before[0][1] if before else loss
        if not math.isfinite(loss) or loss > DIVERGED * first:
            raise self._stopped(f"the loss is {loss:.4g} at step {done}, and began with {first:.4g}")
        return loss

    def _stopped(self, what: str) -> UserError:
        state = f"the checkpoint of step {self.newest} stays" if self.newest else "there was no checkpoint yet"
        return UserError(f"{self.scratch.stage}: {what} ({state}); lower {self.section}.learning_rate")


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {f"{name}/{k}": v for name, model in state.models.items() for k, v in model.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in values.items()}
    rows: dict[str, list[list[float | str]]] = {name: [] for name in state.records}  # a tensor's name stands for it
    for name, record in state.records.items():
        for i, row in enumerate(record):
            tensors_of_row = {f"records/{name}/{i}/{j}": v for j, v in enumerate(row) if isinstance(v, Tensor)}
            tensors |= tensors_of_row
            rows[name].append([f"records/{name}/{i}/{j}" if isinstance(v, Tensor) else v for j, v in enumerate(row)])
    tensors["records"] = torch.frombuffer(bytearray(json.dumps(rows).encode()), dtype=torch.uint8)
    return tensors


def _restore(state: State, tensors: dict[str, Tensor]) -> None:
    for name, model in state.models.items():
        model.load_state_dict({k: tensors[f"{name}/{k}"] for k in model.state_dict()})
    parameters = [w for group in state.optimizer.param_groups for w in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, i, key = name.split("/")
            like = parameters[int(i)]  # moments lie in memory as their weights do, or rounding differs
            moments.setdefault(int(i), {})[key] = (
                torch.empty_like(like).copy_(value) if value.shape == like.shape and value.dim() else value
            )
    state.optimizer.load_state_dict({"state": moments, "param_groups": state.optimizer.state_dict()["param_groups"]})
    for name, rows in json.loads(bytes(tensors["records"].numpy())).items():
        device = parameters[0].device
        state.records[name][:] = [
            tuple(tensors[v].to(device) if isinstance(v, str) else v for v in row) for row in rows
        ]
