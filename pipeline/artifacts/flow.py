"""What is asked of a trained flow, against what it was trained for."""

from pathlib import Path

from pipeline.artifacts.files import read_json
from pipeline.errors import UserError
from pipeline.progress import say


def check_guidance(section: str, scale: float, labelled: bool, flow: Path) -> None:
    """Raises `UserError` where classifier-free guidance is asked of a flow that knows no labels, and says so where it never saw an
    image without one."""
    if scale == 1:
        return
    if not labelled:
        raise UserError(f"{section}.guidance_scale {scale:g} needs labels, and {flow} knows none; set it to 1")
    if never_without_labels(flow):
        say(
            f"{section}: guidance_scale {scale:g} needs a model that also knows images without labels, and {flow} was "
            "trained with train.label_dropout: 0; set guidance_scale to 1, or train with 0.1"
        )


def never_without_labels(flow: Path) -> bool:
    """Whether a flow was trained with `train.label_dropout: 0`, as far as its record says."""
    record = read_json(flow / "record.json")
    try:
        return bool(record["params"]["train"]["label_dropout"] == 0)
    except (KeyError, TypeError):  # of another version
        return False
