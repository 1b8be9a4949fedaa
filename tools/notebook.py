"""examples/tour.ipynb, made from the cells in examples/tour.py and executed: texts and pictures stand in it.

python -m tools.notebook
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

SOURCE, NOTEBOOK = Path("examples/tour.py"), Path("examples/tour.ipynb")
CELL = "# %%"


def cells(text: str) -> list[tuple[str, str]]:
    """Kind (`markdown` or `code`) and content of each cell of a script in the percent format."""
    found = []
    for part in text.split(f"\n{CELL}")[1:]:
        heading, _, body = part.partition("\n")
        if "[markdown]" in heading:
            found.append(
                ("markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n")))
            )
        else:
            found.append(("code", body.strip()))
    return found


def execute(code: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell; its outputs, as the notebook format (4.5) has them: what it printed, and the value of its last line."""
    lines = ast.parse(code).body
    last = lines.pop() if isinstance(lines[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(lines, []), "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(True)})
    if value is not None:
        outputs.append({"data": show(value), "metadata": {}, "output_type": "display_data"})
    return outputs


def show(value: Any) -> dict[str, Any]:
    """A value as a notebook displays it."""
    if not isinstance(value, Image.Image):
        return {"text/plain": [repr(value)]}
    png = io.BytesIO()
    value.save(png, "PNG", optimize=True)
    return {
        "image/png": base64.b64encode(png.getvalue()).decode(),
        "text/plain": [f"<image of {value.width}×{value.height}>"],
    }


def notebook(text: str) -> dict[str, Any]:
    """The notebook of a script, executed from top to bottom."""
    made, names = list[dict[str, Any]](), dict[str, Any]()
    for number, (kind, content) in enumerate(cells(text)):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": content.splitlines(True),
        }
        if kind == "code":
            count = 1 + sum(c["cell_type"] == "code" for c in made)
            cell |= {"execution_count": count, "outputs": execute(content, names)}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    content = json.dumps(notebook(SOURCE.read_text(encoding="utf-8")), indent=1, ensure_ascii=False) + "\n"
    NOTEBOOK.write_text(content, encoding="utf-8")
    print(f"{NOTEBOOK}: {len(content) / 1e3:.0f} kB")
