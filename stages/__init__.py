"""One module is one DVC stage: python -m stages.NAME."""

import pipeline  # noqa: F401  notes time and parent process before anything slow is imported
