"""The page, in a browser: nothing missing, nothing complained about, nothing wider than the screen, in light and dark."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from pipeline.artifacts.files import read_csv
from pipeline.errors import UserError
from pipeline.page.charts import chart
from pipeline.page.html import cards, figure, page, table
from pipeline.page.pictures import Picture, strip
from pipeline.params import load_params
from stages import evaluate, report
from sweeps.point import changed
from tests.conftest import ROOT, command
from tests.test_pipeline import modules

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not there: the page's test needs Debian's chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def test_a_model_without_labels_is_not_measured_by_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns(".dvc"))
    with h5py.File(copy / "data/samples.h5", "r+") as samples:
        samples.attrs["labelled"] = 0
    monkeypatch.chdir(copy)
    for stage in (evaluate, report):
        stage.main(load_params(Path("params.yaml")))
    assert "accuracy_generated" not in json.loads(Path("reports/metrics.json").read_text())
    assert "accuracy" not in read_csv(Path("reports/conditions.csv"))["name"]
    assert "no labels" in Path("reports/report.html").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_the_page_shows_everything_without_a_network(tiny: Path, browser: Any, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tiny / "reports/report.html").as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    found = page.evaluate("""() => ({
        pictures: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth).length,
        wide: document.documentElement.scrollWidth, charts: document.querySelectorAll("svg").length,
        scrolling: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth).length,
        dead: [...document.querySelectorAll("a")].filter(a => !document.querySelector(a.hash)).length,
        paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    })""")
    page.close()
    assert found["pictures"] > 30 and found["broken"] == 0 and found["charts"] == 3
    assert found["wide"] == width and found["dead"] == 0
    assert found["scrolling"] == (width == 390)  # of all tables the one of four rows alone, on a phone
    brightness = [sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink")]
    assert (brightness[0] > brightness[1]) == (scheme == "light") and abs(brightness[0] - brightness[1]) > 400


def test_the_page_holds_every_part(tiny: Path) -> None:
    text = (tiny / "reports/report.html").read_text(encoding="utf-8")
    for part in ("One generated image of each class", "conditions of indistinguishable", "Four rows",
                 "From noise to image", "Nearest to a training image", "Real images, and through the autoencoder",
                 "most and least certain", "asked for, and recognised as",
                 "guidance_scale 1.5", "revision null", "sha256", "scikit-learn"):  # fmt: skip
        assert part in text
    ruler = hashlib.sha256((tiny / "models/classifier/model.safetensors").read_bytes()).hexdigest()
    assert ruler in text and f"(sha256 {ruler[:12]}…" in text  # beside the figures too
    assert "<script" not in text and "://" not in text


def test_parts_of_the_page() -> None:
    assert "&lt;b&gt;" in table(("<b>",), [("✓ 1\nsmall",)]) and "<small>small</small>" in table((), [("a\nsmall",)])
    picture = Picture("x", "A title", np.zeros((2, 3, 1, 4, 4), np.uint8), rows=["a", "b"])
    assert figure(picture, 1).count("<img ") == 2 and strip(picture.images[0], 2) == strip(picture.images[1], 2)
    svg = chart({"a": ([1, 10, 100], [0.01, 0.1, 1]), "b": ([1], [1])}, "x", "y", log_x=True, log_y=True, marks=True)
    assert svg.count("<circle") == 4 and "legend" in svg and "nan" not in svg
    assert "nan" not in chart({"flat": ([0, 1], [2, 2])}, "x", "y")


SOLVERS = ("dopri5", "euler", "euler_maruyama", "heun", "midpoint", "rk4")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_a_chart_is_labelled_and_nothing_of_it_is_cut_off_or_alike(browser: Any, width: int, scheme: str) -> None:
    lines = {name: ([5.0, 50_000.0], [0.0001, 0.5 + i]) for i, name in enumerate(SOLVERS)}
    svg = chart(lines, "passes through the transformer an image", "Fréchet distance", True, True, True, (50.0, 0.2),
                ("real images", 0.0001))  # fmt: skip
    assert all(f">{text}</text>" in svg for text in (*SOLVERS, "Fréchet distance", "real images"))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.set_content(page("x", [cards(svg)]))
    found = opened.evaluate("""() => ({
        outside: [...document.querySelectorAll("svg text")].filter(t => {
            const box = t.getBBox(), all = t.ownerSVGElement.viewBox.baseVal;
            return box.x < 0 || box.x + box.width > all.width || box.y < 0 || box.y + box.height > all.height;
        }).map(t => t.textContent),
        small: [...document.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().height < 12).length,
        styles: [...document.querySelectorAll(".legend path")].map(getComputedStyle).map(s => [s.stroke, s.strokeDasharray]),
    })""")
    opened.close()
    assert found["outside"] == [] and found["small"] == 0
    for of_all in zip(*found["styles"], strict=True):  # told apart by colour, and without it
        assert len(set(of_all)) == len(SOLVERS)


# --- sweeps ------------------------------------------------------------------------------------------------------------

SWEEPS = yaml.safe_load((ROOT / "sweeps/dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize(
    ("stage", "module"), [("cost", "sweep"), ("adaptive", "sweep"), ("guidance", "sweep"), ("report", "sweep_report")]
)
def test_deps_of_a_sweep_name_exactly_what_it_imports(stage: str, module: str) -> None:
    listed = {dep.removesuffix(".py").replace("/", ".") for dep in SWEEPS[stage]["deps"] if dep.endswith(".py")}
    assert listed == modules(module)


def test_a_sweep_runs_apart_from_the_pipeline(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    (copy / "sweeps").mkdir()
    shutil.copytree(ROOT / ".dvc/plots", copy / ".dvc/plots")
    small = (ROOT / "sweeps/dvc.yaml").read_text().replace("[euler, euler_maruyama, midpoint, heun, rk4]", "[euler]")
    small = (
        small.replace("[0.1, 0.03, 0.01, 0.003]", "[0.1]")
        .replace("[4, 8, 16, 32]", "[4]")
        .replace("[0, 0.5, 1, 1.5, 2, default, 4, 6]", "[default]")
    )
    (copy / "sweeps/dvc.yaml").write_text(small)
    assert "Running stage" not in command("dvc", "repro", cwd=copy).stdout
    result = command("dvc", "repro", "sweeps/dvc.yaml", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Running stage") == 4
    rows = (copy / "sweeps/cost.csv").read_text().splitlines()
    # Four evaluations, at t = 0, 1/4, 1/2 and 3/4; guidance acts at the last two, each a pass more. The default has 14.
    assert [row.split(",")[::2][:2] for row in rows[2:]] == [["euler", "6"], ["midpoint", "14"]]
    assert rows[1].startswith("dopri5,") and [row[-2:] for row in rows[1:]] == [",0", ",0", ",1"]
    assert (copy / "sweeps/report.html").read_text(encoding="utf-8").count("<svg") == 3
    assert "Running stage" not in command("dvc", "repro", "sweeps/dvc.yaml", cwd=copy).stdout
    shown = json.loads(command("dvc", "plots", "show", "--json", cwd=copy).stdout)
    assert set(shown) == {"data"}  # no errors
    assert {kind for parts in shown["data"].values() for kind in [parts[0]["type"]]} == {"vega", "image"}
    for name in ("Fréchet distance by function evaluations", "Fréchet distance by guidance", "accuracy by guidance"):
        drawn = str(shown["data"][name][0])
        assert "'field': 'solver'" in drawn and "datum.default == 1" in drawn and "<DVC" not in drawn


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rk4", "6", "default"), "sweeps/dvc.yaml: solver 'rk4' with 6 evaluations; it must be"),
        (("dopri5", "6", "default"), "sweeps/dvc.yaml: sample.rtol is 6.0; it must be"),
        (("default", "default", "-1"), "sweeps/dvc.yaml: sample.guidance_scale is -1.0; it must be at least 0"),
    ],
)
def test_a_bad_point_is_told(words: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(load_params(ROOT / "params.yaml"), *words)
    assert str(error.value).startswith(message)
