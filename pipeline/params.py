"""`params.yaml`, validated: no key missing or unknown, each value of the right type and in range.

Values live in `params.yaml` alone: there are no defaults here, and nothing is transformed. Descriptions live here alone;
`python -m tools.params` writes docs/params.md from them.
"""

import reprlib
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.errors import UserError

PARAMS = Path("params.yaml")

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Init = Annotated[str, Field(min_length=1)] | None
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=0, le=100)]  # of guidance
Interval = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
Precision = Literal["auto", "bf16", "float32"]


def _a_fold(value: int) -> int:
    if value not in (1, 2, 4):
        raise PydanticCustomError("fold", "Input should be 1, 2 or 4")
    return value


def one_of(registry: str) -> Any:
    """The type of a name in a registry, "module:NAME". It is imported when a value is validated, so it may import this module."""

    def check(name: Any) -> str:
        names = list(resolve_name(registry))
        if not isinstance(name, str) or name not in names:
            quoted = [repr(n) for n in names]
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(quoted[:-1])} or {quoted[-1]}"})
        return name

    check.registry = registry  # type: ignore[attr-defined]  # for docs/params.md
    return Annotated[str, PlainValidator(check)]


def _check_rising(section: "DistillParams | SampleParams") -> None:
    """Raises `ValueError` where an interval of guidance ends before it begins."""
    for name in ("guidance_interval", "autoguidance_interval"):
        interval = getattr(section, name)
        if interval[0] > interval[1]:
            raise ValueError(f"{name} {interval} must rise; swap its ends")


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DataParams(_Section):
    dataset: one_of("pipeline.sources.datasets:DATASETS") = Field(description="where the images come from")  # type: ignore[valid-type]
    seed: Seed = Field(
        description="draws the validation split, which mnist_sample has already; for a folder the order of the images too, "
        "and the test split if it has none"
    )
    root: Annotated[str, Field(min_length=1)] | None = Field(
        description="the directory; a relative one begins in the project"
    )
    digest: str | None = Field(
        description="sha256 of its content: leave null and the error prints the value; null again after it has changed"
    )
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=2)] = Field(
        description="pixels, even: the middle square of each image is resized to it"
    )
    skip_broken: bool = Field(
        description="true: images that can't be decoded are named, counted and left out; false: they stop the stage"
    )

    @model_validator(mode="after")
    def _folder_has_a_root(self) -> Self:
        if self.dataset == "folder" and self.root is None:
            raise ValueError(
                "root is None, and dataset is 'folder'; name a directory that holds one sub-folder for each class"
            )
        return self


class AutoencoderParams(_Section):
    source: Annotated[str, Field(min_length=1)] = Field(description="where the autoencoder comes from")
    revision: str | None = Field(
        description="for a directory its sha256, for a hub id a commit: leave null and the error prints the value"
    )
    init: Init = Field(description="weights that the training begins with: null (random), bundled, or a folder")
    init_digest: str | None = Field(description="sha256 of these weights: leave null and the error prints the value")
    seed: Seed = Field(description="of weights, batch order and noise")
    unshuffle: Annotated[int, AfterValidator(_a_fold)] = Field(  # a Literal would take true for 1
        description="pixels folded into channels before the first convolution: 1, 2 or 4"
    )
    latent_channels: Annotated[int, Field(ge=1, le=64)] = Field(description="channels of the latents")
    widths: Annotated[list[Annotated[int, Field(ge=8, le=2048, multiple_of=8)]], Field(min_length=1, max_length=5)] = (
        Field(description="one level each; every level after the first halves the resolution")
    )
    layers: Annotated[int, Field(ge=1, le=8)] = Field(description="residual blocks a level")
    kl_weight: Annotated[float, Field(ge=0, le=1)] = Field(
        description="nats of KL per image dimension against squared error on [-1, 1]"
    )
    shift: Annotated[int, Field(ge=0, le=16)] = Field(
        description="training images are moved at random by at most so many pixels each way"
    )
    steps: Count = Field(description="optimiser steps of the training")
    batch_size: Count = Field(description="images in a training batch")
    learning_rate: Rate = Field(description="its peak")
    precision: Precision = Field(description="number format of the training's products")
    compile: bool = Field(
        description="needs a C++ compiler on the CPU; false gives the same figures within rounding, slower"
    )


class ClassifierParams(_Section):
    source: Literal["bundled", "train"] = Field(description="where the classifier comes from")
    seed: Seed = Field(description="of weights, batch order and augmentation")
    body: one_of("lfm.nets.classifier:BODIES") = Field(description="two networks that have nothing in common")  # type: ignore[valid-type]
    steps: Count = Field(description="optimiser steps of the training")
    batch_size: Annotated[int, Field(ge=2, le=10**6)] = Field(description="images in a training batch")
    learning_rate: Rate = Field(description="its peak")
    precision: Precision = Field(description="number format of the training's products")


class EncodeParams(_Section):
    scale: Literal["measured", "config"] = Field(description="what latents are normalised with")
    batch_size: Count = Field(description="images in a batch")
    precision: Precision = Field(description="number format of the encoder's products")


class ModelParams(_Section):
    block: one_of("lfm.nets.transformer:BLOCKS") = Field(description="the transformer's block")  # type: ignore[valid-type]
    patch_size: Annotated[int, Field(ge=1, le=64)] = Field(description="latents a token on each side")
    width: Annotated[int, Field(ge=4, le=8192)] = Field(description="channels of a token; a multiple of 4 and of heads")
    depth: Annotated[int, Field(ge=1, le=100)] = Field(description="blocks")
    heads: Annotated[int, Field(ge=1, le=128)] = Field(description="attention heads a block")
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] = Field(
        description="width of the MLP's hidden layer, in widths of a token"
    )
    labels: bool = Field(description="false: a model that knows no labels; then sample.guidance_scale must be 1")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} must be a multiple of 4 and of heads ({self.heads}); change one of them"
            )
        if self.block == "modern" and self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} must with block modern be a multiple of 4 · heads ({4 * self.heads}); change one of them"
            )
        return self


class FlowParams(_Section):
    path: one_of("lfm.flow.path:PATHS") = Field(description="how noise and data are mixed at time t")  # type: ignore[valid-type]
    sigma_min: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="noise left at t = 1, for cond_ot; the others leave none"
    )
    prediction: Literal["velocity", "data"] = Field(description="what the model's output means")
    coupling: one_of("lfm.flow.coupling:COUPLINGS") = Field(description="which noise goes with which latent of a batch")  # type: ignore[valid-type]
    times: one_of("lfm.flow.times:DENSITIES") = Field(description="how the training draws t")  # type: ignore[valid-type]
    logit_mean: Annotated[float, Field(ge=-10, le=10)] = Field(description="mean of logit(t), for logit_normal")
    logit_std: Annotated[float, Field(gt=0, le=10)] = Field(
        description="standard deviation of logit(t), for logit_normal"
    )
    uniform_share: Fraction = Field(description="share of the times that is uniform, for logit_normal")
    weighting: one_of("lfm.flow.loss:WEIGHTINGS") = Field(description="of the loss by t")  # type: ignore[valid-type]


class TrainParams(_Section):
    init: Init = Field(description="weights that the training begins with: null (random), bundled, or a folder")
    init_digest: str | None = Field(description="sha256 of these weights: leave null and the error prints the value")
    seed: Seed = Field(description="of weights, batch order, noise, times and dropped labels")
    steps: Count = Field(description="optimiser steps")
    batch_size: Count = Field(description="latents in a batch")
    learning_rate: Rate = Field(description="its peak")
    schedule: one_of("lfm.flow.schedule:SCHEDULES") = Field(description="of the learning rate after the warm-up")  # type: ignore[valid-type]
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        description="steps in which the learning rate rises from 0"
    )
    weight_decay: Fraction = Field(description="of AdamW")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(description="of AdamW")
    gradient_clip: Annotated[float, Field(gt=0)] | None = Field(
        description="the largest norm of the gradient; null: no limit"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(description="of the averaged weights, which are the result")
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of labels replaced by the null label, for classifier-free guidance"
    )
    weak_steps: Count | None = Field(
        description="of the weak model, another training, which autoguidance moves away from; null: none, and no autoguidance"
    )
    precision: Precision = Field(description="number format of the training's products")
    compile: bool = Field(description="needs a C++ compiler on the CPU; false gives the same figures, slower")
    validate_every: Count = Field(description="steps between two values of the validation loss")
    snapshots: Annotated[list[Fraction], Field(min_length=1, max_length=100)] | Count = Field(
        description="when 16 noises are integrated: fractions of the training, or a number of steps"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("steps", "weak_steps"):
            if (steps := getattr(self, name)) is not None and self.warmup_steps >= steps:
                raise ValueError(f"warmup_steps {self.warmup_steps} must be below {name} ({steps}); lower it")
        if isinstance(self.snapshots, list) and sorted(set(self.snapshots)) != self.snapshots:
            raise ValueError(f"snapshots {self.snapshots} must rise, each once; sort them")
        return self


class DistillParams(_Section):
    seed: Seed = Field(description="of the noises, batch order and jumps")
    evaluations: Annotated[int, Field(ge=1, le=16)] = Field(
        description="the most that the flow map is made for, a power of two: it samples in 1, 2, 4 … up to so many"
    )
    pairs: Count = Field(description="trajectories of the flow, from noise to latent, that the flow map is fitted to")
    teacher_steps: Steps = Field(
        description="of the midpoint rule, by which the flow makes them; a multiple of evaluations"
    )
    guidance_scale: Scale = Field(description="of the trajectories; sampling with the flow map takes no guidance")
    guidance_interval: Interval = Field(description="guide them from the first to the second t")
    autoguidance_scale: Scale = Field(description="of the trajectories, as sample.autoguidance_scale")
    autoguidance_interval: Interval = Field(description="the same from the first to the second t")
    steps: Count = Field(description="optimiser steps of the training")
    batch_size: Count = Field(description="jumps in a training batch")
    learning_rate: Rate = Field(description="its peak; cosine down to 0")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(description="of the averaged weights, which are kept")
    precision: Precision = Field(description="number format of the training's products")
    compile: bool = Field(description="torch.compile: faster; on the CPU it takes a C++ compiler")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.evaluations & (self.evaluations - 1):
            raise ValueError(f"evaluations {self.evaluations} must be a power of two; choose 1, 2, 4, 8 or 16")
        if self.teacher_steps % self.evaluations:
            raise ValueError(
                f"teacher_steps {self.teacher_steps} must be a multiple of evaluations ({self.evaluations}); raise it"
            )
        _check_rising(self)
        return self


class SampleParams(_Section):
    seed: Seed = Field(description="of the noise")
    solver: one_of("lfm.sampling.sampler:SOLVERS") = Field(description="integrates from noise to data")  # type: ignore[valid-type]
    steps: Steps = Field(description="of the solver; dopri5 chooses its own")
    time_shift: Annotated[float, Field(ge=0.01, le=100)] = Field(
        description="above 1: more steps near the noise; below: near the data"
    )
    rtol: Annotated[float, Field(ge=1e-7, lt=1)] = Field(description="relative tolerance, for dopri5")
    atol: Annotated[float, Field(ge=1e-7, lt=1)] = Field(description="absolute tolerance, for dopri5")
    noise_strength: Annotated[float, Field(ge=0, le=10)] = Field(
        description="of the stochastic equation, for euler_maruyama"
    )
    guidance_scale: Scale = Field(
        description="within the interval: 1 is the conditional model, 0 the unconditional one, "
        "more is truer to the label and less varied"
    )
    guidance_interval: Interval = Field(
        description="guide from the first to the second t, both included; the conditional model elsewhere"
    )
    autoguidance_scale: Scale = Field(
        description="away from the weak model: 1 is none, more is truer to the data; it takes train.weak_steps"
    )
    autoguidance_interval: Interval = Field(description="the same from the first to the second t, both included")
    trajectory_times: Annotated[list[Fraction], Field(min_length=2, max_length=20)] = Field(
        description="when noise becoming a digit is drawn: the grid's nearest times"
    )
    inversion_steps: Steps = Field(description="of rk4, from an image back to its noise")
    batch_size: Count = Field(description="images in a batch")
    precision: Precision = Field(description="number format of the transformer's and the decoder's products")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if sorted(set(self.trajectory_times)) != list(self.trajectory_times):
            raise ValueError(f"trajectory_times {self.trajectory_times} must rise, each once; sort them")
        _check_rising(self)
        return self


class LikelihoodParams(_Section):
    seed: Seed = Field(description="of Hutchinson's probes")
    images: Count = Field(description="how many test images, the first ones")
    divergence: Literal["hutchinson", "exact"] = Field(description="how the divergence of the velocity is computed")
    solver: one_of("lfm.sampling.solver:FIXED_STEP") = Field(description="integrates from data to noise")  # type: ignore[valid-type]
    steps: Steps = Field(description="of the solver")
    batch_size: Count = Field(description="images in a batch")


class EvaluateParams(_Section):
    seed: Seed = Field(description="draws the order in which sets are halved and cut")
    batch_size: Count = Field(description="images in a batch")
    kid_blocks: Annotated[int, Field(ge=2, le=1000)] = Field(
        description="disjoint blocks that a set is cut into for the kernel distance and its error"
    )
    neighbours: Annotated[int, Field(ge=1, le=100)] = Field(
        description="the ball of an image reaches to this neighbour: precision, recall, density, coverage"
    )
    pixel_components: Annotated[int, Field(ge=1, le=784)] = Field(
        description="principal components of the pixels: the second space to measure in"
    )
    nearest_quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="close to a training image: closer than all but this part of the test images"
    )


class ReportParams(_Section):
    zoom: Annotated[int, Field(ge=1, le=16)] = Field(description="pixels of a picture a pixel of an image")


class RuntimeParams(_Section):
    progress: bool = Field(description="progress bars")
    checkpoint_every: Count = Field(description="steps that a killed training loses at most")
    latents_mb: Annotated[int, Field(ge=0, le=10**9)] = Field(
        description="latents that need more memory than this are streamed from the file; the result is the same"
    )


class Params(_Section):
    """All of `params.yaml`: a frozen section each, in the order of the file."""

    data: DataParams
    autoencoder: AutoencoderParams
    classifier: ClassifierParams
    second_classifier: ClassifierParams
    encode: EncodeParams
    model: ModelParams
    flow: FlowParams
    train: TrainParams
    distill: DistillParams
    sample: SampleParams
    likelihood: LikelihoodParams
    evaluate: EvaluateParams
    report: ReportParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def _guidance_needs_a_second_model(self) -> Self:
        for section in ("sample", "distill"):
            scale, away = getattr(self, section).guidance_scale, getattr(self, section).autoguidance_scale
            if not self.model.labels and scale != 1:
                raise ValueError(
                    f"{section}.guidance_scale {scale:g} needs labels, and model.labels is false; set it to 1"
                )
            if self.train.weak_steps is None and away != 1:
                raise ValueError(
                    f"{section}.autoguidance_scale {away:g} needs a weak model, and train.weak_steps is null; set it to 1, or "
                    "train.weak_steps to a sixth of train.steps"
                )
        return self


def load_yaml(text: str) -> Any:
    """YAML as DVC reads it, with the same library: YAML 1.2, a key given twice is an error."""
    return YAML(typ="safe").load(text)


def load_params(path: Path = PARAMS) -> Params:
    """Read and validate a `params.yaml`. Raises `UserError` that names the file, the key and its value."""
    return validate_params(load_tree(path), str(path))


def load_tree(path: Path) -> Any:
    """What a YAML file holds, not validated. Raises `UserError` where it can't be read."""
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `git checkout {path}` brings it back") from error
    except OSError:
        raise
    except Exception as error:  # ruamel.yaml raises many kinds for bad tags, and RecursionError
        reason = " ".join(str(error).split())
        if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
            reason = f"line {error.problem_mark.line + 1}: {' '.join(error.problem.split())}"
        raise UserError(f"{path}: not readable as YAML ({reason}); fix that line") from error


def validate_params(tree: Any, origin: str) -> Params:
    """Validate parameters that are already loaded; `origin` is named in errors."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}{_describe(error.errors()[0])}") from error


def format_value(value: object) -> str:
    """A value for an error message: on one line, and shortened if it is long."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 100, 100
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return f"a {type(value).__name__} too long to show"


def _describe(error: Any) -> str:
    """One pydantic error as a line: key, value, what is accepted."""
    key = ".".join(str(p) if isinstance(p, int) or p.isprintable() else format_value(p) for p in error["loc"])
    key = key.partition(".list[")[0].partition(".constrained-")[0]  # a branch of a union
    if error["type"] == "value_error":  # of a section, in words that name the key
        return f": {key}.{error['ctx']['error']}".replace(": .", ": ", 1)
    value = "" if error["type"] == "missing" else f" is {format_value(error['input'])}"
    accepted = error["msg"]
    if error["type"] == "extra_forbidden":
        section = Params.model_fields.get(str(error["loc"][0]))
        model = section.annotation if section and len(error["loc"]) > 1 else Params
        accepted += f"; known here: {', '.join(model.model_fields)}"  # type: ignore[union-attr]
    return f"{f': {key}' if key else ''}{value}: {accepted}"
