"""Quality against cost, beside the pipeline: `dvc repro sweeps/dvc.yaml`."""

import pipeline  # noqa: F401  notes time and parent process before anything slow is imported
