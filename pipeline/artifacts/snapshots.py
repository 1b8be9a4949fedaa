"""progress.h5 in a flow's folder: the same noises, integrated again and again across the training."""

from pipeline.artifacts.hdf5 import Format

FORMAT = Format("lfm-progress/1", {"steps": "int64 times", "latents": "float32 times noises c h w"}, {})
