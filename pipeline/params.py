"""`params.yaml`, validated: no key missing or unknown, each value of the right type and in range.

Values live in `params.yaml` alone: there are no defaults here, and nothing is transformed.
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

    return Annotated[str, PlainValidator(check)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DataParams(_Section):
    dataset: one_of("pipeline.sources.datasets:DATASETS")  # type: ignore[valid-type]
    seed: Seed
    root: Annotated[str, Field(min_length=1)] | None
    digest: str | None
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=2)]
    skip_broken: bool

    @model_validator(mode="after")
    def _folder_has_a_root(self) -> Self:
        if self.dataset == "folder" and self.root is None:
            raise ValueError(
                "root is None, and dataset is 'folder'; name a directory that holds one sub-folder for each class"
            )
        return self


class AutoencoderParams(_Section):
    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    init: Init
    init_digest: str | None
    seed: Seed
    unshuffle: Annotated[int, AfterValidator(_a_fold)]  # a Literal would take true for 1
    latent_channels: Annotated[int, Field(ge=1, le=64)]
    widths: Annotated[list[Annotated[int, Field(ge=8, le=2048, multiple_of=8)]], Field(min_length=1, max_length=5)]
    layers: Annotated[int, Field(ge=1, le=8)]
    kl_weight: Annotated[float, Field(ge=0, le=1)]
    shift: Annotated[int, Field(ge=0, le=16)]
    steps: Count
    batch_size: Count
    learning_rate: Rate
    precision: Precision
    compile: bool


class ClassifierParams(_Section):
    source: Literal["bundled", "train"]
    seed: Seed
    steps: Count
    batch_size: Annotated[int, Field(ge=2, le=10**6)]
    learning_rate: Rate
    precision: Precision


class EncodeParams(_Section):
    scale: Literal["measured", "config"]
    batch_size: Count
    precision: Precision


class ModelParams(_Section):
    block: one_of("lfm.nets.transformer:BLOCKS")  # type: ignore[valid-type]
    patch_size: Annotated[int, Field(ge=1, le=64)]
    width: Annotated[int, Field(ge=4, le=8192)]
    depth: Annotated[int, Field(ge=1, le=100)]
    heads: Annotated[int, Field(ge=1, le=128)]
    mlp_ratio: Annotated[float, Field(gt=0, le=16)]
    labels: bool

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
    path: one_of("lfm.flow.path:PATHS")  # type: ignore[valid-type]
    sigma_min: Annotated[float, Field(ge=0, lt=1)]
    prediction: Literal["velocity", "data"]
    coupling: one_of("lfm.flow.coupling:COUPLINGS")  # type: ignore[valid-type]
    times: one_of("lfm.flow.times:DENSITIES")  # type: ignore[valid-type]
    logit_mean: Annotated[float, Field(ge=-10, le=10)]
    logit_std: Annotated[float, Field(gt=0, le=10)]
    uniform_share: Fraction
    weighting: one_of("lfm.flow.loss:WEIGHTINGS")  # type: ignore[valid-type]


class TrainParams(_Section):
    init: Init
    init_digest: str | None
    seed: Seed
    steps: Count
    batch_size: Count
    learning_rate: Rate
    schedule: one_of("lfm.flow.schedule:SCHEDULES")  # type: ignore[valid-type]
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)]
    weight_decay: Fraction
    beta2: Annotated[float, Field(gt=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)] | None
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    label_dropout: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    compile: bool
    validate_every: Count
    snapshots: Annotated[list[Fraction], Field(min_length=1, max_length=100)] | Count

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps ({self.steps}); lower it")
        if isinstance(self.snapshots, list) and sorted(set(self.snapshots)) != self.snapshots:
            raise ValueError(f"snapshots {self.snapshots} must rise, each once; sort them")
        return self


class SampleParams(_Section):
    seed: Seed
    solver: one_of("lfm.sampling.sampler:SOLVERS")  # type: ignore[valid-type]
    steps: Steps
    time_shift: Annotated[float, Field(ge=0.01, le=100)]
    rtol: Annotated[float, Field(ge=1e-7, lt=1)]
    atol: Annotated[float, Field(ge=1e-7, lt=1)]
    noise_strength: Annotated[float, Field(ge=0, le=10)]
    guidance_scale: Annotated[float, Field(ge=0, le=100)]
    guidance_interval: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    trajectory_times: Annotated[list[Fraction], Field(min_length=2, max_length=20)]
    inversion_steps: Steps
    batch_size: Count
    precision: Precision

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if sorted(set(self.trajectory_times)) != list(self.trajectory_times):
            raise ValueError(f"trajectory_times {self.trajectory_times} must rise, each once; sort them")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} must rise; swap its ends")
        return self


class LikelihoodParams(_Section):
    seed: Seed
    images: Count
    divergence: Literal["hutchinson", "exact"]
    solver: one_of("lfm.sampling.solver:FIXED_STEP")  # type: ignore[valid-type]
    steps: Steps
    batch_size: Count


class EvaluateParams(_Section):
    seed: Seed
    batch_size: Count
    bootstrap: Annotated[int, Field(ge=2, le=10_000)]
    kid_blocks: Annotated[int, Field(ge=2, le=1000)]
    neighbours: Annotated[int, Field(ge=1, le=100)]
    pixel_components: Annotated[int, Field(ge=1, le=784)]
    nearest_quantile: Annotated[float, Field(gt=0, lt=1)]


class ReportParams(_Section):
    zoom: Annotated[int, Field(ge=1, le=16)]


class RuntimeParams(_Section):
    progress: bool
    checkpoint_every: Count
    latents_mb: Annotated[int, Field(ge=0, le=10**9)]


class Params(_Section):
    """All of `params.yaml`: a frozen section each, in the order of the file."""

    data: DataParams
    autoencoder: AutoencoderParams
    classifier: ClassifierParams
    encode: EncodeParams
    model: ModelParams
    flow: FlowParams
    train: TrainParams
    sample: SampleParams
    likelihood: LikelihoodParams
    evaluate: EvaluateParams
    report: ReportParams
    runtime: RuntimeParams

    @model_validator(mode="after")
    def _guidance_needs_labels(self) -> Self:
        if not self.model.labels and self.sample.guidance_scale != 1:
            raise ValueError(
                f"sample.guidance_scale {self.sample.guidance_scale:g} needs labels, and model.labels is false; set it to 1"
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
