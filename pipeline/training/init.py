"""The weights that a training begins with: random ones, or those of a folder, whose content a digest pins."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from lfm.nets.weights import digest
from pipeline.errors import UserError
from pipeline.params import format_value
from pipeline.paths import user_path
from pipeline.progress import say

BUNDLED = Path(__file__).resolve().parents[2] / "lfm/pretrained/mnist"


def check_digest(key: str, pinned: str | None, place: str, folder: Path, names: Sequence[str]) -> None:
    """Raises `UserError` where the files of a folder, which the user named as `place`, are not those that `key` pins."""
    content = digest(folder, names)
    if pinned != content:
        raise UserError(f"{key} is {pinned!r}, but the content of {place} has {content}; set {key}: {content}")


def init_folder(section: str, init: str, pinned: str | None, bundled: str, names: Sequence[str]) -> Path:
    """The folder that `init` of a section means, its content compared with `init_digest`; `bundled` is relative to the
    bundled model. Raises `UserError` where there is none, or it holds something else."""
    try:
        folder = BUNDLED / bundled if init == "bundled" else user_path(init)
        is_directory = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # a user's home that does not exist, a NUL in the name
        is_directory = False
    if not is_directory:
        raise UserError(f"{section}.init: {format_value(init)} is neither null, bundled nor a directory; correct it")
    check_digest(f"{section}.init_digest", pinned, init, folder, names)
    return folder


def begin_with(
    section: str, init: str, model: nn.Module, weights: dict[str, Tensor], by_class: Sequence[str] = ()
) -> None:
    """Copy `weights` into a model. Those of `by_class` stay random where the number of classes differs, which the log says;
    any other difference raises `UserError`."""
    own = model.state_dict()
    fresh = [k for k in by_class if k in own.keys() & weights.keys() and own[k].shape != weights[k].shape]
    for name in sorted(own.keys() | weights.keys()):
        ours, theirs = (list(w[name].shape) if name in w else "absent" for w in (own, weights))
        if ours != theirs and name not in fresh:
            raise UserError(
                f"{section}.init: {init} is of another architecture ({name} is {theirs} there and {ours} here); give "
                "params.yaml the sizes in its config.json, or set another init"
            )
    model.load_state_dict(own | {name: value for name, value in weights.items() if name not in fresh})
    say(f"{section}: begins with the weights of {init}" + "".join(f", but for {name}: other classes" for name in fresh))
