"""Makes lfm/data/mnist_sample.npz.bz2 from MNIST's four files, byte for byte: python -m tools.mnist_sample"""

import bz2
import io

import numpy as np

from lfm import sample_data
from pipeline.machine.publish import replacing
from pipeline.params import load_params
from pipeline.progress import say
from pipeline.run import ending_in_one_line
from pipeline.sources.datasets import DATASETS, MNIST_TRAIN, Split, digest, hold_out

SIZES = {"train": 6000, "validation": 1000, "test": 1000}


def proportional(labels: np.ndarray, n: int) -> np.ndarray:
    """n labels with class counts in the proportion of `labels`; what rounding leaves goes to the largest remainders."""
    counts = np.bincount(labels)
    exact = n * counts / counts.sum()
    whole = exact.astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return np.repeat(np.arange(len(counts)), whole)


def packed(splits: dict[str, Split]) -> bytes:
    """The sample's file, from MNIST's splits."""
    arrays: dict[str, np.ndarray] = {}
    for name, n in SIZES.items():
        like = proportional(splits["test" if name == "validation" else name].labels, n)
        sample = hold_out(splits[name], like, 0, f"sample of {name}")[1]
        arrays |= {f"{name}_images": sample.images, f"{name}_labels": sample.labels}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return bz2.compress(file.getvalue())


def main() -> None:
    data = DATASETS["mnist"](load_params().data.model_copy(update={"dataset": "mnist", "seed": 0}), True)
    train, validation = hold_out(data.train, data.test.labels, 0)
    assert digest(train) == MNIST_TRAIN
    with replacing(sample_data.FILE) as part:
        part.write_bytes(packed({"train": train, "validation": validation, "test": data.test}))
    say(f"{sample_data.FILE}: {sample_data.FILE.stat().st_size:,} bytes, {' / '.join(map(str, SIZES.values()))} images")


if __name__ == "__main__":
    with ending_in_one_line():
        main()
