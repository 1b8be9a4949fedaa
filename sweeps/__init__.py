"""Quality against cost, beside the pipeline: `dvc repro sweeps/dvc.yaml`."""

import pipeline  # notes time and parent process before anything slow is imported

pipeline.import_torch()
