"""`params.yaml`, validated: every key there, none too many, each of the right type and in range.

Values live in `params.yaml` alone: there are no defaults here, and nothing is transformed.
"""

import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import UserError

PARAMS = Path("params.yaml")

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["bf16", "float32"]


def _a_fold(value: int) -> int:
    if value not in (1, 2, 4):
        raise PydanticCustomError("fold", "Input should be 1, 2 or 4")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DataParams(_Section):
    dataset: Literal["mnist", "fashion_mnist", "kmnist", "digits", "folder"]
    seed: Seed
    root: Annotated[str, Field(min_length=1)] | None
    digest: str | None
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=2)]
    skip_broken: bool

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.dataset == "folder" and self.root is None:
            raise ValueError("root is None, and dataset is 'folder'; name a directory that holds a sub-folder a class")
        return self


class AutoencoderParams(_Section):
    source: Annotated[str, Field(min_length=1)]
    revision: str | None
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
    block: Literal["dit", "modern"]
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
    path: Literal["cond_ot", "gvp", "vp"]
    sigma_min: Annotated[float, Field(ge=0, lt=1)]
    prediction: Literal["velocity", "data"]
    coupling: Literal["independent", "ot"]
    times: Literal["uniform", "stratified", "systematic", "logit_normal"]
    logit_mean: Annotated[float, Field(ge=-10, le=10)]
    logit_std: Annotated[float, Field(gt=0, le=10)]
    uniform_share: Fraction
    weighting: Literal["uniform", "noise"]


class TrainParams(_Section):
    seed: Seed
    steps: Count
    batch_size: Count
    learning_rate: Rate
    schedule: Literal["cosine", "constant"]
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
    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5", "euler_maruyama"]
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
    solver: Literal["euler", "midpoint", "heun", "rk4"]
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


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats, so that `1e-5` is a number, and without keys given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' stands twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)

# What pydantic says, and how we say it.
WORDS = {"greater than or equal to": "at least", "less than or equal to": "at most", " after validation": ""}


def load_params(path: Path = PARAMS) -> Params:
    """Read and validate a `params.yaml`. Raises `UserError` that names the file, the key and its value."""
    return validate_params(load_tree(path), str(path))


def load_tree(path: Path) -> Any:
    """What a YAML file holds, not validated. Raises `UserError` where it can't be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `git checkout {path}` brings it back") from error
    except Exception as error:  # PyYAML raises half a dozen kinds for bad tags, and RecursionError
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason}); mend that line") from error


def validate_params(tree: Any, origin: str) -> Params:
    """Validate parameters that are already loaded; `origin` is named in errors."""
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: must hold sections ({', '.join(Params.model_fields)}), but is {format_value(tree)}")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: {_describe(error.errors()[0])}") from error


def format_value(value: object) -> str:
    """A value as an error shows it: on one line, and not longer than a line may be."""
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
    if error["type"] == "invalid_key":
        return f"key {format_value(error['input'])} is no text; mend it"
    if error["type"] in ("model_type", "dict_type"):
        return f"{key} is {format_value(error['input'])}; it must be a section of keys"
    if error["type"] == "missing":
        return f"{key} is missing; add it (`git diff params.yaml` shows what was removed)"
    if error["type"] == "extra_forbidden":
        section = Params.model_fields.get(str(error["loc"][0]))
        model = section.annotation if section and len(error["loc"]) > 1 else Params
        return f"{key} is not a known key; known here: {', '.join(model.model_fields)}"  # type: ignore[union-attr]
    if error["type"] == "value_error":
        return f"{key}.{error['ctx']['error']}".removeprefix(".")
    accepted = re.sub(r"^(Input|List|String|Value) should (be|have) ", r"it must \2 ", error["msg"])
    for words, ours in WORDS.items():
        accepted = accepted.replace(words, ours)
    return f"{key} is {format_value(error['input'])}; {accepted}"
