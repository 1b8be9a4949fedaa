"""Templates and values → one self-contained HTML page: pictures inline, no scripts, light and dark, phone and desk."""

import base64
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.page.pictures import strip


def data_uri(images: np.ndarray, zoom: int) -> str:
    """Images (K, C, H, W) side by side in one PNG, as the `src` of an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(strip(images, zoom)).decode()}"


ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["data_uri"] = data_uri


def page(name: str, **values: object) -> str:
    """The template `name`, filled in; text is escaped. Raises `jinja2.UndefinedError` where a value is missing."""
    return ENVIRONMENT.get_template(f"{name}.html.j2").render(values)
