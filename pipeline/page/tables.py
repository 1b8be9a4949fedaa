"""Tables of numbers, read from CSV."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.files import read_csv
from pipeline.errors import UserError

Table = dict[str, np.ndarray]  # name of a column → (rows,)
IMAGE_COLUMNS = ("label", "recognised", "log_odds", "nearest_training", "distance")  # of generated.csv and test.csv


def read_table(path: Path, *numbers: str, texts: Sequence[str] = ()) -> Table:
    """A table with at least these columns: all are float64 but `texts`. Raises `UserError` where one is missing or not a
    number."""
    columns = read_csv(path, *numbers, *texts)
    try:
        return {name: np.array(values, None if name in texts else float) for name, values in columns.items()}
    except ValueError as error:
        raise UserError(f"{path}: not all numbers ({error}); delete it and run `dvc repro`") from error
