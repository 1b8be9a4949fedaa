"""Noise integrated to latents and decoded, real images through the autoencoder, and through their noise → data/samples.h5;
and the model that drew them, complete → models/latent_flow/."""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch

from lfm.model import LatentFlow
from lfm.precision import resolve
from lfm.sampling.sampler import Sampler
from pipeline.artifacts import hdf5, latents, samples, snapshots
from pipeline.artifacts.flow import check_guidance
from pipeline.errors import UserError
from pipeline.params import SampleParams
from pipeline.progress import Progress
from pipeline.run import Context, Make, run

REAL = ("validation", "test")
CLASSES_SHOWN = 16  # classes, at most, of which pictures are made: class transfer takes their square
FARTHEST = 1.0  # a normalised latent may end from where its way to the noise and back began
BETWEEN = 8  # pictures from one image to another, both included


def sampler(p: SampleParams) -> Sampler:
    """The section `sample`, as the model takes it."""
    values = {name: value for name, value in p.model_dump().items() if name in Sampler._fields}
    return Sampler(**values).check()


def draw(
    model: LatentFlow, p: SampleParams, labels: np.ndarray, rows: np.ndarray, chosen: Sampler | None = None
) -> dict[str, np.ndarray]:
    """One batch of images, and how often each went through the transformer; by default with the model's own sampler."""
    drawn = model.sample(
        labels[rows] if model.classes else None, 1 if model.classes else len(rows), seed=p.seed, rows=rows,
        sampler=chosen, output_type="np", batch_size=p.batch_size, precision=p.precision,
    )  # fmt: skip
    return {"images": np.asarray(drawn.images), "passes": np.array(drawn.nfe)}


def batches(n: int, size: int) -> list[np.ndarray]:
    """The rows 0 … n − 1 in parts of `size`, the last one shorter."""
    return np.split(np.arange(n), range(size, n, size))


class Stage:
    """What every part of samples.h5 needs."""

    def __init__(self, context: Context, model: LatentFlow, file: hdf5.ArrayFile) -> None:
        self.context, self.model, self.file = context, model, file
        self.p, self.labels = context.params.sample, file.read("test/labels")
        self.pictured = np.unique(self.labels)[:CLASSES_SHOWN]  # the classes of which pictures are made

    def decode(self, x: torch.Tensor, batch_size: int | None = None) -> np.ndarray:
        size = batch_size or len(x)
        return np.asarray(self.model.decode(x, "np", batch_size=size, precision=self.p.precision))

    @cached_property
    def few(self) -> list[Sampler]:
        """The flow map, in each number of evaluations that it is made for."""
        assert self.model.flow_map is not None
        return [Sampler("flow_map", steps=n) for n in self.model.flow_map.steps]

    @cached_property
    def rows(self) -> dict[str, list[np.ndarray]]:
        """Of everything that is made batch by batch: its rows, a batch each."""
        drawn = ["generated", *(f"few-{sampler.steps}" for sampler in self.few)]
        lengths = dict.fromkeys(drawn, len(self.labels)) | {s: self.file.shape(f"{s}/labels")[0] for s in REAL}
        return {name: batches(n, self.p.batch_size) for name, n in lengths.items()}

    @cached_property
    def parts(self) -> dict[str, Make]:
        """What makes each of these batches."""
        makes: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
            "generated": partial(draw, self.model, self.p, self.labels),
            **{f"few-{s.steps}": partial(draw, self.model, self.p, self.labels, chosen=s) for s in self.few},
            **{split: partial(self.decoded, split) for split in REAL},
        }
        return {f"{name}-{r[0]}": partial(makes[name], r) for name, rows in self.rows.items() for r in rows}

    def part(self, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.context.part(f"{name}-{rows[0]}", self.parts[f"{name}-{rows[0]}"])

    def generate(self, out: hdf5.ArrayWriter, progress: Progress) -> float:
        """An image for each label. Returns how often each went through the transformer."""
        out.add("generated/labels", self.labels)
        out.create("generated/images", (len(self.labels), *self.model.image_shape), np.uint8)
        passes = []
        for rows in self.rows["generated"]:
            part = self.part("generated", rows)
            out.put("generated/images", rows[0], part["images"])
            passes.append(float(part["passes"]))
            progress.advance(len(rows))
        return float(np.mean(passes))

    def generate_few(self, out: hdf5.ArrayWriter, progress: Progress) -> None:
        """The same noises and labels with the flow map, in each number of evaluations that it is made for."""
        out.add("few/evaluations", np.array([sampler.steps for sampler in self.few]))
        out.create("few/images", (len(self.labels), len(self.few), *self.model.image_shape), np.uint8)
        for rows in self.rows["generated"]:
            drawn = [self.part(f"few-{sampler.steps}", rows) for sampler in self.few]
            out.put("few/images", rows[0], np.stack([part["images"] for part in drawn], 1))
            progress.advance(len(rows))

    def reconstruct(self, out: hdf5.ArrayWriter, progress: Progress) -> None:
        """Real images through the autoencoder: the mean of each posterior, decoded."""
        for split in REAL:
            n = self.file.shape(f"{split}/labels")[0]
            out.create(f"reconstructed/{split}", (n, *self.model.image_shape), np.uint8)
            for rows in self.rows[split]:
                out.put(f"reconstructed/{split}", rows[0], self.part(split, rows)["images"])
                progress.advance(len(rows))

    def decoded(self, split: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        mean = torch.from_numpy(self.file.read(f"{split}/mean", rows[0], rows[-1] + 1))
        return {"images": self.decode(self.model.scale.normalise(mean), self.p.batch_size)}

    def trajectories(self, out: hdf5.ArrayWriter) -> None:
        """The first noise of each class, decoded at the grid's times nearest to those asked for."""
        p, first = self.p, np.array([np.flatnonzero(self.labels == label)[0] for label in self.pictured])
        drawn = self.model.sample(
            self.labels[first] if self.model.classes else None, 1 if self.model.classes else len(first), seed=p.seed,
            rows=first, return_path=p.trajectory_times, output_type="np", batch_size=len(first), precision=p.precision,
        )  # fmt: skip
        out.add("trajectories/times", np.array(drawn.times))
        out.add("trajectories/images", np.stack([np.asarray(images) for images in drawn.path or []]))

    def through_noise(self, out: hdf5.ArrayWriter) -> float:
        """Inversion, interpolation and class transfer of a test image of each class. Returns the largest error of a latent
        after the way to its noise and back."""
        model, steps, mean = self.model, self.p.inversion_steps, self.file.read("test/mean")
        first, second = (np.array([np.flatnonzero(self.labels == c)[n] for c in self.pictured]) for n in (0, 1))
        x1, others = (
            model.scale.normalise(torch.from_numpy(mean[rows])).to(self.context.device)
            for rows in (first, np.roll(second, -1))
        )
        labels = self.labels[first].astype(np.int64) if model.classes else None
        x0 = model.invert(x1, labels, steps)
        back = model.generate(x0, labels, steps=steps, output_type="latent")
        between = model.interpolate(x1, others, BETWEEN, steps=steps, output_type="latent")
        targets = self.pictured if model.classes else self.labels[:1]
        moved = (
            model.transfer(x1, targets, labels, steps=steps, output_type="latent")
            if model.classes
            else [model.generate(x0, steps=steps, output_type="latent")]
        )
        out.add("inversion/rows", first)
        out.add("inversion/decoded", self.decode(x1))
        out.add("inversion/returned", self.decode(back))
        out.add("interpolations/images", self.columns(between))
        out.add("transfer/targets", targets)
        out.add("transfer/images", self.columns(moved))
        return float((back - x1).abs().max())

    def columns(self, latents: list[torch.Tensor]) -> np.ndarray:
        """Pictures of each column's latents (B, c, h, w), row by row: (B, columns, C, H, W)."""
        images = self.decode(torch.cat(latents))
        return images.reshape(len(latents), -1, *images.shape[1:]).swapaxes(0, 1)


def main(context: Context) -> None:
    p, flow = context.params.sample, context.input("flow")
    model = LatentFlow.from_pretrained(
        flow, autoencoder=context.input("autoencoder"), flow_map=context.input("flow_map")
    ).to(context.device)
    model.sampler = sampler(p)
    check_guidance("sample", p.guidance_scale, bool(model.classes), flow)
    with (
        hdf5.reading(context.input("latents"), latents.FORMAT) as file,
        hdf5.reading(flow / "progress.h5", snapshots.FORMAT) as states,
    ):
        latents.check_autoencoder(file, context.input("latents"), model.config["autoencoder_sha256"])
        stage = Stage(context, model, file)
        context.share(stage.parts, "sample")
        with (
            context.publish("samples") as part,
            context.publish("latent_flow") as folder,
            hdf5.writing(part) as out,
        ):
            total = 2 * len(stage.labels) + sum(file.shape(f"{split}/labels")[0] for split in REAL)
            with context.progress(total, "sample", "image") as progress:
                nfe = stage.generate(out, progress)
                stage.generate_few(out, progress)
                stage.reconstruct(out, progress)
            stage.trajectories(out)
            error = stage.through_noise(out)
            if error > FARTHEST:
                raise UserError(
                    f"sample.inversion_steps is {p.inversion_steps}: on the way to its noise and back a latent moved by "
                    f"{error:.3g} standard deviations, so neither is of use; raise it, or train the flow for longer"
                )
            out.add("progress/steps", states.read("steps"))
            pictures = [stage.decode(torch.from_numpy(x)) for x in states.read("latents")]
            out.add("progress/images", np.stack(pictures))
            out.attributes(
                format=samples.FORMAT.name,
                nfe=nfe,
                inversion_error=error,
                labelled=int(bool(model.classes)),
                seed=p.seed,
                dataset=file.attribute("dataset"),
                precision=resolve(p.precision, model.device),
            )
            model.save_pretrained(folder)


if __name__ == "__main__":
    run(main)
