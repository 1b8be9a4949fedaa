"""One module is one DVC stage: python -m stages.NAME."""

import pipeline  # notes time and parent process before anything slow is imported

pipeline.import_torch()
