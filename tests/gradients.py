"""In each of several processes that a launcher started: how far gradients and statistics of a shared loss are from those of a
single process. Prints the largest relative difference."""

from functools import partial

import torch

from lfm.nets.classifier import Classifier
from pipeline.machine import ranks
from pipeline.training.together import mean, shared
from stages.classifier import loss

BATCH = 16


def main() -> None:
    torch.manual_seed(0)
    model = Classifier(1, 10, "pooled", (28, 28))  # it normalises over the batch
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pixels, labels = torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    of_one = loss(model, pixels, labels)
    of_one.backward()
    expected = [of_one.detach(), *(w.grad for w in model.parameters()), *(b.clone() for b in model.buffers())]
    model.load_state_dict(state)
    model.zero_grad()
    with ranks.joined(ranks.place(), torch.device("cpu")) as joined:
        loss_of = shared(partial(loss, model), model, joined, "classifier", BATCH)
        value = loss_of(pixels, labels)
        value.backward()
        found = [torch.tensor(mean(value, joined)), *(w.grad for w in model.parameters()), *model.buffers()]
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True) if a is not None and b is not None]
    print(max(float((a - b).norm() / b.norm()) for a, b in pairs))


if __name__ == "__main__":
    main()
