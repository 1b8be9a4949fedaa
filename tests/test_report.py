"""The report in a browser, light and dark, on phone and desk: complete, self-contained, not wider than the screen."""

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

from lfm.sampling.sampler import Sampler
from pipeline.artifacts.files import read_csv
from pipeline.errors import UserError
from pipeline.page.charts import chart
from pipeline.page.gallery import GALLERY
from pipeline.page.html import ENVIRONMENT, page
from pipeline.page.pictures import Picture, strip
from pipeline.params import load_params
from stages import evaluate, report
from sweeps.points import of_scale, of_solver
from sweeps.report import points
from tests.conftest import ROOT, command, context

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing; the tests of the page need it (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=[f"{width} {scheme}" for width in (390, 1280) for scheme in ("light", "dark")])
def view(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty page of the browser on a phone and on a desk, light and dark."""
    width, scheme = request.param.split()
    opened = browser.new_page(viewport={"width": int(width), "height": 900}, color_scheme=scheme)
    yield opened
    opened.close()


def test_without_labels_and_with_names_that_hold_markup(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, name = tmp_path / "copy", "<script>'\"&"
    shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns(".dvc"))
    with h5py.File(copy / "data/images.h5", "r+") as images, h5py.File(copy / "data/samples.h5", "r+") as samples:
        images.attrs.update({"dataset": name, "class_names": "\n".join([name] * int(images.attrs["classes"]))})
        samples.attrs.update({"dataset": name, "labelled": 0})
    monkeypatch.chdir(copy)
    for main, stage in ((evaluate.main, "evaluate"), (report.main, "report")):
        main(context(stage, load_params()))
    text = Path("reports/report.html").read_text(encoding="utf-8")
    assert "accuracy_generated" not in json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    assert "accuracy" not in read_csv(Path("reports/tables/conditions.csv"))["name"] and "no labels" in text
    assert "<script" not in text and text.count("&lt;script&gt;&#39;&#34;&amp;") > 10


def test_the_page_is_complete_without_a_network(tiny: Path, view: Any) -> None:
    complaints: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto((tiny / "reports/report.html").as_uri())
    assert complaints == [] and all(url.startswith(("file:", "data:")) for url in requests)
    seen = view.evaluate("""() => ({
        images: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth || !i.alt).length,
        width: document.documentElement.scrollWidth, charts: document.querySelectorAll("svg").length,
        scrolling: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth).length,
        links: [...document.querySelectorAll("a")].map(a => a.hash.slice(1)),
        headings: [...document.querySelectorAll("h2")].map(h => h.id),
        dark: matchMedia("(prefers-color-scheme: dark)").matches,
        paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    })""")
    assert seen["images"] > 30 and seen["broken"] == 0 and seen["charts"] == 3
    assert seen["width"] == view.viewport_size["width"] and seen["links"] == seen["headings"]
    assert seen["scrolling"] == 2 * (seen["width"] == 390)  # the two widest tables, on a phone
    brightness = [sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("paper", "ink")]
    assert (brightness[0] - brightness[1]) * (-1 if seen["dark"] else 1) > 400


def test_the_page_has_every_part(tiny: Path) -> None:
    text = (tiny / "reports/report.html").read_text(encoding="utf-8")
    for part in ("One generated image of each class", "validation (reference)", "From noise to image",
                 "Confusion matrix", "guidance_scale 1.5", "revision null", "sha256", "scikit-learn"):  # fmt: skip
        assert part in text
    assert len(list((tiny / "reports/pictures").glob("*.png"))) == len(GALLERY)
    classifier = hashlib.sha256((tiny / "models/classifier/model.safetensors").read_bytes()).hexdigest()
    assert classifier in text and f"{classifier[:12]}…" in text  # beside the figures too
    assert "<script" not in text and "://" not in text


def test_parts_of_the_page() -> None:
    parts: Any = ENVIRONMENT.get_template("parts.html.j2").module
    row = '<td class="good">✓ 1<small>2</small></td><td class="bad">✗</td><td></td>'
    assert row in parts.table([("✓ 1\n2", "✗", "")])
    picture = Picture("x", "A title", np.zeros((2, 3, 1, 4, 4), np.uint8))
    assert parts.figure(picture, 1).count("<img ") == 2 and strip(picture.images[0], 2) == strip(picture.images[1], 2)
    svg = chart({"a": ([1, 10, 100], [0.01, 0.1, 1]), "b": ([1], [1])}, "x", "y", log_x=True, log_y=True, marks=True)
    assert svg.count("<circle") == 4 and "legend" in svg and "nan" not in svg
    assert "nan" not in chart({"flat": ([0, 1], [2, 2])}, "x", "y")


def test_a_chart_has_labels_inside_it_and_distinct_lines(view: Any) -> None:
    names = ("dopri5", "euler", "euler_maruyama", "flow_map", "heun", "midpoint", "rk4")
    lines = {name: ([5.0, 50_000.0], [0.0001, 0.5 + i]) for i, name in enumerate(names)}
    svg = chart(lines, "transformer passes per image", "Fréchet distance", True, True, True, (50.0, 0.2),
                ("real images", 0.0001))  # fmt: skip
    assert all(f">{text}</text>" in svg for text in (*names, "Fréchet distance", "real images"))
    view.set_content(page("sweep", images="2,000", fd_by_evaluations=svg, fd_by_guidance="", accuracy_by_guidance=""))
    seen = view.evaluate("""() => ({
        outside: [...document.querySelectorAll("svg text")].filter(t => {
            const box = t.getBBox(), all = t.ownerSVGElement.viewBox.baseVal;
            return box.x < 0 || box.x + box.width > all.width || box.y < 0 || box.y + box.height > all.height;
        }).map(t => t.textContent),
        small: [...document.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().height < 12).length,
        styles: [...document.querySelectorAll(".legend path")].map(getComputedStyle).map(s => [s.stroke, s.strokeDasharray]),
    })""")
    assert seen["outside"] == [] and seen["small"] == 0
    for values in zip(*seen["styles"], strict=True):  # in colour and in dashes
        assert len(set(values)) == len(names)


def test_a_sweep_runs_apart_from_the_pipeline(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    shutil.copytree(ROOT / "sweeps", copy / "sweeps", ignore=shutil.ignore_patterns("points", "*.csv", "dvc.lock"),
                    dirs_exist_ok=True)  # fmt: skip
    shutil.copytree(ROOT / ".dvc/plots", copy / ".dvc/plots")
    small = (ROOT / "sweeps/dvc.yaml").read_text()
    small = re.sub(r"      \w+: (4 8 16 32|1 2 4)\n", "", small.replace("euler: 4 8 16 32", "euler: 4", 1))
    small = small.replace("dopri5: 0.1 0.03 0.01 0.003", "dopri5: 0.1").replace("0 0.5 1 1.5 2 default 4 6", "default")
    (copy / "sweeps/dvc.yaml").write_text(small)
    assert "Running stage" not in command("dvc", "repro", cwd=copy).stdout
    result = command("dvc", "repro", "sweeps/dvc.yaml", cwd=copy)
    assert result.returncode == 0 and result.stdout.count("Running stage") == 4, result.stderr
    rows = (copy / "sweeps/cost.csv").read_text().splitlines()
    # Four evaluations, at t = 0, 1/4, 1/2 and 3/4; guidance acts at the last two, autoguidance at the
    # first three, each a pass more. The default has 20.
    assert [row.split(",")[::2][:2] for row in rows[2:]] == [["euler", "9"], ["midpoint", "20"]]
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
    ("words", "key"),
    [("rk4 6", "solver 'rk4' with 6 evaluations"), ("lsoda 6", "solver 'lsoda' with 6"), ("euler ²", "solver 'euler' with ²"),
     ("dopri5 6", "rtol is 6.0"), ("dopri5 few", "could not convert"), ("-1", "guidance_scale is -1.0"),
     ("much", "could not convert")],
)  # fmt: skip
def test_a_bad_point_is_an_error(words: str, key: str) -> None:
    of = of_solver if " " in words else of_scale
    with pytest.raises(UserError, match=f"^sweeps/dvc.yaml: {key}"):
        of(Sampler(), *words.split())


@pytest.mark.parametrize(("key", "value"), [("fd", "0.04"), ("images", None), ("accuracy", float("inf"))])
def test_a_damaged_point_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, value: object) -> None:
    good = json.loads((ROOT / "sweeps/points/euler.json").read_text(encoding="utf-8"))
    (tmp_path / "sweeps/points").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = Path("sweeps/points/euler.json")
    path.write_text(json.dumps(good), encoding="utf-8")
    assert points("euler") == good["points"]
    good["points"][1][key] = value
    path.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(UserError, match=f"^{path}: .*delete it"):
        points("euler")
