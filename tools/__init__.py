"""Commands beside the pipeline: the demo, bundling, mending DVC's records."""
