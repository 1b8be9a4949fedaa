"""The page in a browser without a network: it draws what torch draws, for mouse, finger and keyboard, and says what it lacks.

Skipped where node, npm or Chromium are missing; the reason names which.
"""

import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfm import random
from lfm.errors import ConfigError
from lfm.flow.path import PATHS, convert, make_path
from lfm.model import LatentFlow
from lfm.page import server
from lfm.sampling.guidance import Guidance, guided
from lfm.sampling.inversion import slerp
from lfm.sampling.solver import FIXED_STEP, integrate, time_grid
from pipeline.errors import UserError
from tools.page import install
from web.export import GENERATED, export_page

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
MEGABYTES = 11
GREY_LEVELS = 2  # mean difference of pictures that count as equal
READY, FAILED = "body[data-state=ready]", "#error:not([hidden])"
FOUR = [[(0.35, 0.15), (0.22, 0.55), (0.75, 0.52)], [(0.62, 0.25), (0.55, 0.9)]]
SEVEN = [[(0.2, 0.2), (0.75, 0.2), (0.4, 0.9)]]
PIXELS = """canvases => canvases.map(canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);
})"""


@pytest.fixture(scope="module")
def packages() -> None:
    """The page's npm packages."""
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    if missing:
        pytest.skip(f"NOT TESTED: the page, since {' and '.join(missing)} is missing (apt-get install nodejs npm)")
    try:
        install(WEB)
    except UserError as error:
        pytest.skip(f"NOT TESTED: the page, since its npm packages are missing ({error})")


@pytest.fixture(scope="module")
def model() -> LatentFlow:
    return LatentFlow.from_pretrained()


@pytest.fixture(scope="module")
def dist(packages: None, model: LatentFlow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built for the bundled model."""
    exported, built = tmp_path_factory.mktemp("exported"), tmp_path_factory.mktemp("page")
    drawn = model.sample(range(model.classes), 5, seed=0, output_type="latent", steps=2)
    assert isinstance(drawn.images, torch.Tensor)
    export_page(model, exported, drawn.images.numpy(), drawn.labels, GENERATED)
    command = ["npm", "run", "--silent", "build", "--", "--outDir", str(built), "--emptyOutDir", "--logLevel", "warn"]
    subprocess.run(command, cwd=WEB, env=os.environ | {"LFM_PAGE_MODEL": str(exported)}, check=True)
    return built


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"NOT TESTED: the page, since {CHROMIUM} is missing (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(dist: Path) -> Iterator[str]:
    with server(dist, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


class Tab:
    """A page of the browser, what it complained about and what it asked other hosts for."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.strangers: list[str] = []
        self.complaints: list[str] = []
        self.context.route("**/*", self._route)
        self.address, self.page = address, self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _console(self, message: Any) -> None:
        if "willReadFrequently" not in message.text:  # a hint that the tests' own reading of pixels brings about
            self.complaints.append(message.text)

    def _route(self, route: Any) -> None:
        if route.request.url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.strangers.append(route.request.url)
            route.abort()

    def open(self, state: str = "") -> None:
        self.page.goto(self.address + state)
        self.page.wait_for_selector(f"{READY}, {FAILED}", timeout=60_000)
        assert not self.page.is_visible("#error"), self.page.inner_text("#error")

    def settle(self) -> None:
        """Wait until all pictures are up to date."""
        self.page.wait_for_timeout(350)  # as long as the page waits for another stroke
        self.page.wait_for_selector(READY, timeout=60_000)

    def show(self, state: str) -> None:
        self.page.evaluate("state => { location.hash = state }", state)
        self.settle()

    def pictures(self, selector: str = "#ten canvas") -> np.ndarray:
        return np.array(self.page.eval_on_selector_all(selector, PIXELS), np.float64)

    def draw(self, strokes: list[list[tuple[float, float]]]) -> None:
        """With the mouse."""
        self.page.evaluate("scrollTo(0, 0)")
        box, mouse = self.page.locator("#pad").bounding_box(), self.page.mouse
        for stroke in strokes:
            for i, (x, y) in enumerate(stroke):
                mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=1 if i == 0 else 8)
                if i == 0:
                    mouse.down()
            mouse.up()
        self.settle()


@pytest.fixture(scope="module")
def desk(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address, viewport={"width": 1280, "height": 900}, color_scheme="light")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.open()
    yield tab
    tab.context.close()


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no other host was asked, and the console is empty."""
    yield
    if "desk" in request.fixturenames:
        tab = request.getfixturevalue("desk")
        assert (tab.strangers, tab.complaints) == ([], [])


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


def torch_pictures(model: LatentFlow, seed: int, row: int, **values: Any) -> np.ndarray:
    """The ten digits of one hand. The page has no weak model, so no autoguidance."""
    values |= {"seed": seed, "rows": [row] * 10, "autoguidance_scale": 1.0, "output_type": "np", "batch_size": 10}
    images = model.sample(range(10), **values).images
    return np.asarray(images).reshape(10, -1)


# --- beside the graphs -----------------------------------------------------------------------------------------------

SCRIPT = """
import { encodeStrokes, decodeStrokes, rasterise } from "./ink";
import { guided, integrate, predictedData, slerp, timeGrid } from "./flow";
import { normal } from "./random";
import { fromAddress, toAddress } from "./state";

const [a, b] = [normal(0, "sample", 0, 12), normal(0, "sample", 1, 12)];
const velocity = async (t, x, labels) =>
  x.map((value, i) => Math.sin(3 * t) - 0.7 * value + 0.1 * (i + 1) * labels[Math.floor((i * labels.length) / x.length)]);
const field = guided(velocity, [1, 2], 5, { guidance: 2.5, from: 0.25, to: 0.75 });
const out = { normal: {}, solved: {}, data: {}, grid: [...timeGrid(7, 1.5, 1 - 1e-5)], slerp: [...slerp(a, b, 0.3)] };
for (const seed of [0, 1, 2 ** 32 - 1])
  out.normal[seed] = Array.from({ length: 100 }, (_, row) => [...normal(seed, "sample", row, 96)]);
for (const solver of ["euler", "midpoint", "heun", "rk4"])
  out.solved[solver] = [...(await integrate(field, a, timeGrid(8), solver))];
for (const path of ["cond_ot", "gvp", "vp"]) out.data[path] = [...predictedData({ path, sigma_min: 0.01 }, 0.4, a, b)];
out.guided = {};
for (const solver of ["euler", "midpoint", "heun", "rk4"])
  for (let first = 0; first <= 20; first++)
    for (let last = first; last <= 20; last++) {
      let count = 0;
      const counting = async (t, x, labels) => { count += labels.length - 1; return x; };
      const field = guided(counting, [0], 5, { guidance: 3, from: first / 20, to: last / 20 });
      await integrate(field, new Float32Array(1), timeGrid(10), solver);
      out.guided[`${solver} ${first} ${last}`] = count;
    }
const strokes = [[0.25, 0.1, 0.25, 0.9], [0.5, 0.5]];
out.ink = [...rasterise(strokes)];
out.strokes = decodeStrokes(encodeStrokes(strokes));
const state = { seed: 3, row: 4, strokes: out.strokes, meant: 2, digit: 5, time: 0.25, first: 1, second: 6, share: 0.75,
                solver: "rk4", steps: 3, guidance: 1.5, from: 0.1, to: 0.4 };
const defaults = { ...state, seed: 0, row: 0, strokes: [], meant: null, digit: 7, time: 1, first: 0, second: 1, share: 0,
                   solver: "euler", steps: 9, guidance: 1, from: 0, to: 1 };
out.sameState = JSON.stringify(fromAddress(toAddress(state), defaults, 10)) === JSON.stringify(state);
const broken = "#seed=-1&row=1.5&steps=1e9&solver=dopri5&digit=11&meant=x&ink=%00&guidance=&from=NaN&to=2&time=no&first=%&share";
out.brokenState = JSON.stringify(fromAddress(broken, defaults, 10)) === JSON.stringify(defaults);
console.log(JSON.stringify(out));
"""


@pytest.fixture(scope="module")
def computed(packages: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's modules compute, in node."""
    bundle = tmp_path_factory.mktemp("node") / "script.mjs"
    command = [str(WEB / "node_modules/.bin/esbuild"), "--bundle", "--format=esm", "--loader=ts", f"--outfile={bundle}"]
    subprocess.run([*command, "--log-level=error"], cwd=WEB / "src", input=SCRIPT, text=True, check=True)
    return json.loads(subprocess.run(["node", bundle], capture_output=True, text=True, check=True).stdout)


def test_noise_is_that_of_python_bit_for_bit(computed: dict[str, Any]) -> None:
    for seed, rows in computed["normal"].items():
        assert np.array_equal(np.array(rows, np.float32), random.normal_rows(int(seed), "sample", range(100), [96]))


def test_solvers_guidance_and_path_are_those_of_python(computed: dict[str, Any]) -> None:
    a, b = random.normal_rows(0, "sample", range(2), [12])
    index = torch.arange(1, 13).reshape(2, 6)

    def velocity(t: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        places = index if len(x) == 2 else torch.arange(1, 25).reshape(4, 6)
        return torch.sin(3 * t) - 0.7 * x + 0.1 * places * labels[:, None]

    field = guided(velocity, torch.tensor([1, 2]), 5, Guidance(2.5, (0.25, 0.75)))
    for solver in FIXED_STEP:
        expected = integrate(field, a.view(2, 6), time_grid(8), solver).x[-1].flatten()
        assert np.allclose(computed["solved"][solver], expected, rtol=1e-5, atol=1e-5), solver
    assert np.allclose(computed["grid"], time_grid(7, 1.5, 1 - 1e-5), atol=1e-7)
    assert np.allclose(computed["slerp"], slerp(a[None], b[None], 0.3)[0], atol=1e-5)
    for path in PATHS:
        expected = convert(make_path(path, 0.01), "velocity", "data", b, a, torch.tensor(0.4))
        assert np.allclose(computed["data"][path], expected, rtol=1e-4, atol=1e-4), path


def test_an_interval_has_its_ends_whatever_float32_rounds(computed: dict[str, Any]) -> None:
    """As many guided evaluations as in Python, for every interval of twentieths and ten steps."""
    for words, count in computed["guided"].items():
        solver, first, last = words.split()
        rows: list[int] = []

        def velocity(t: torch.Tensor, x: torch.Tensor, y: torch.Tensor, rows: list[int] = rows) -> torch.Tensor:
            rows.append(len(x) - 1)
            return x

        interval = int(first) / 20, int(last) / 20
        field = guided(velocity, torch.zeros(1, dtype=torch.int64), 5, Guidance(3.0, interval))
        integrate(field, torch.zeros(1, 1), time_grid(10), solver)
        assert count == sum(rows), words


def test_a_drawing_becomes_an_image_as_mnist_has_it(computed: dict[str, Any]) -> None:
    image = np.array(computed["ink"]).reshape(28, 28)
    rows, _columns = np.nonzero(image > 127)
    assert image.max() == 255 and 19 <= np.ptp(rows) + 1 <= 21  # a box of 20
    mass = image / image.sum()
    centre = [(mass.sum(1) * np.arange(28)).sum(), (mass.sum(0) * np.arange(28)).sum()]
    assert np.abs(np.array(centre) - 13.5).max() <= 0.75


def test_the_address_holds_the_state_and_nothing_that_is_wrong(computed: dict[str, Any]) -> None:
    assert computed["sameState"] and computed["brokenState"]
    assert np.allclose(np.concatenate(computed["strokes"]), [0.25, 0.1, 0.25, 0.9, 0.5, 0.5], atol=1e-3)


def test_nothing_names_a_host() -> None:
    assert "://" not in (WEB / "package-lock.json").read_text()
    for path in (WEB / "index.html", *(WEB / "src").iterdir()):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, path


# --- in the browser --------------------------------------------------------------------------------------------------


def test_a_digit_appears_without_a_click(desk: Tab, model: LatentFlow) -> None:
    assert int(desk.page.get_attribute("body", "data-first-digit")) < 3000  # ms; 400 on two idle cores
    assert (desk.pictures().max(1) > 200).all()
    assert desk.page.inner_text("#status").startswith("Hand 0 of seed 0, all ten in")
    nfe = model.sample(0, seed=0, batch_size=1, autoguidance_scale=1.0, output_type="latent").nfe
    assert f"{nfe:.0f}" in desk.page.inner_text("#meter")


def test_pictures_are_those_of_torch(desk: Tab, model: LatentFlow) -> None:
    for seed, row in ((0, 0), (0, 99), (7, 3)):
        desk.show(f"seed={seed}&row={row}")
        assert difference(desk.pictures(), torch_pictures(model, seed, row)) <= GREY_LEVELS
    for solver in FIXED_STEP:
        values = {"solver": solver, "steps": 6, "guidance_scale": 2.0, "guidance_interval": (0.2, 1.0)}
        desk.show(f"seed=1&row=5&solver={solver}&steps=6&guidance=2&from=0.2&to=1")
        assert difference(desk.pictures(), torch_pictures(model, 1, 5, **values)) <= GREY_LEVELS, solver


def test_a_drawing_is_read_and_written_as_ten_digits(desk: Tab, model: LatentFlow) -> None:
    desk.show("seed=0&row=0")
    for strokes, label in ((FOUR, 4), (SEVEN, 7)):
        desk.page.click("#clear") if desk.page.is_enabled("#clear") else None
        desk.draw(strokes)
        assert desk.page.inner_text("#status").startswith(f"Read as {label}. Your hand")
        assert desk.page.inner_text("#flow-digit") == str(label)
        seen = desk.pictures("#seen")[0]
        assert difference(desk.pictures()[label], seen) < 20  # there and back
        image = seen.reshape(1, 28, 28).astype(np.uint8)
        noise = model.invert(image, label, 10)
        field = model._guided(np.arange(10), model.sampler.by_labels)
        with torch.inference_mode():
            latents = integrate(field, noise.expand(10, -1, -1, -1), time_grid(model.sampler.steps), "midpoint").x[-1]
        assert difference(desk.pictures(), np.asarray(model.decode(latents, "np")).reshape(10, -1)) <= GREY_LEVELS
    drawn, link = desk.pictures(), desk.page.url.split("#")[1]
    desk.page.click("#undo")  # the only stroke
    desk.settle()
    assert not desk.page.is_enabled("#clear") and "ink" not in desk.page.url
    desk.show(link)
    assert np.array_equal(desk.pictures(), drawn)
    desk.page.select_option("#meant", "1")
    desk.settle()
    assert desk.page.inner_text("#flow-digit") == "1"


def test_time_and_the_way_between(desk: Tab, tmp_path: Path) -> None:
    desk.show("seed=0&row=0&digit=3&first=3&second=8&share=0")
    page = desk.page
    ten = desk.pictures()
    assert np.array_equal(desk.pictures("#state")[0], desk.pictures("#predicted")[0])
    assert (
        difference(desk.pictures("#middle")[0], ten[3]) <= 1
        and difference(desk.pictures("#frames canvas")[0], ten[3]) <= 1
    )
    page.fill("#time", "0")
    assert page.inner_text("#time-value") == "t = 0.00"
    assert difference(desk.pictures("#state")[0], ten[3]) > 20
    page.focus("#time")
    page.keyboard.press("End")
    assert difference(desk.pictures("#state")[0], ten[3]) <= 1
    page.click("#play")
    page.wait_for_timeout(300)
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.click("#play")
    assert 0 < float(page.inner_text("#time-value").removeprefix("t = ")) < 1
    page.locator("#frames").scroll_into_view_if_needed()
    box = page.locator("#frames").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 10, steps=5)
    page.mouse.up()
    desk.settle()
    assert float(page.input_value("#share")) > 0.95
    assert difference(desk.pictures("#middle")[0], desk.pictures("#frames canvas")[-1]) <= 5
    for button, kind in (("#save-png", b"\x89PNG"), ("#save-gif", b"GIF89a")):
        with page.expect_download() as download:
            page.click(button)
        download.value.save_as(tmp_path / "file")
        assert (tmp_path / "file").read_bytes().startswith(kind)


def test_buttons_and_keyboard(desk: Tab, model: LatentFlow) -> None:
    desk.show("seed=0&row=0&digit=7")
    page = desk.page
    page.click("#another")
    desk.settle()
    assert page.inner_text("#status").startswith("Hand 1 of seed 0")
    page.focus("#ten [aria-checked=true]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#flow-digit") == "8"
    page.keyboard.press("2")
    assert page.inner_text("#flow-digit") == "2"
    page.focus("#steps")
    page.keyboard.press("Home")
    page.fill("#seed", "5")
    page.keyboard.press("Tab")
    page.select_option("#solver", "euler")
    desk.settle()
    assert all(part in page.url for part in ("steps=1&", "seed=5&", "digit=2", "solver=euler"))
    page.click("#reset")
    desk.settle()
    assert f"steps={model.sampler.steps}&" in page.url and "solver=midpoint" in page.url
    page.focus("#pad")
    for key in [" ", *["ArrowDown"] * 18, " "]:
        page.keyboard.press(key)
    desk.settle()
    assert page.inner_text("#status").startswith("Read as 1.")
    page.click("#link")
    page.wait_for_selector("#status:has-text('copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_everything_has_a_name(desk: Tab) -> None:
    unnamed = desk.page.eval_on_selector_all(
        "button, input, select, [role=img], [role=radio]",
        "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)",
    )
    assert unnamed == []
    without_why = desk.page.eval_on_selector_all(
        "#controls input", "all => all.filter(e => !e.getAttribute('aria-describedby'))"
    )
    assert without_why == []


def test_looks(desk: Tab, tmp_path: Path) -> None:
    """Four screenshots to look at, and nothing wider than the screen."""
    for width, height in ((390, 844), (1280, 900)):
        for scheme in ("light", "dark"):
            desk.page.set_viewport_size({"width": width, "height": height})
            desk.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            desk.page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
            assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
    desk.page.set_viewport_size({"width": 1280, "height": 900})


def test_touch_on_a_phone(browser: Any, address: str) -> None:
    phone = Tab(
        browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    phone.open()
    box, session = phone.page.locator("#pad").bounding_box(), phone.context.new_cdp_session(phone.page)
    for stroke in SEVEN:
        points = np.concatenate([np.linspace(a, b, 8) for a, b in itertools.pairwise(stroke)])
        for i, (x, y) in enumerate(points):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if i else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    phone.settle()
    assert phone.page.inner_text("#status").startswith("Read as 7.")
    assert phone.page.evaluate("scrollY") == 0
    assert (phone.strangers, phone.complaints) == ([], [])
    phone.context.close()


def test_what_is_missing_is_said_on_the_page(browser: Any, address: str, dist: Path) -> None:
    old = Tab(browser, address)
    old.page.add_init_script("delete globalThis.WebAssembly")
    old.page.goto(address)
    old.page.wait_for_selector(FAILED)
    assert "no WebAssembly" in old.page.inner_text("[role=alert]")
    old.context.close()
    (dist / "decoder.bin").rename(dist / "elsewhere")
    try:
        tab = Tab(browser, address)
        tab.page.goto(address)
        tab.page.wait_for_selector(FAILED, timeout=60_000)
        assert "decoder.bin is missing" in tab.page.inner_text("[role=alert]")
        tab.context.close()
    finally:
        (dist / "elsewhere").rename(dist / "decoder.bin")


def test_the_build_is_light_and_hostable_in_any_folder(dist: Path) -> None:
    files = [path for path in dist.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    assert {path.suffix for path in files} <= {".html", ".js", ".css", ".json", ".bin"}
    text = (dist / "index.html").read_text()
    assert 'src="/' not in text and 'href="/' not in text


def test_the_server_says_what_it_lacks(dist: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no index\.html"):
        server(tmp_path)
    with server(dist, 0) as running, pytest.raises(ConfigError, match=f"port {running.server_port}"):
        server(dist, running.server_port)
