"""A user's scan as MNIST has digits, and the grid in which digits go out."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lfm import decoder, images
from lfm.errors import ConfigError

INK = {
    "black on white": ("RGB", "white", "black"),
    "white on black": ("L", "black", "white"),
    "red on green of the same grey": ("RGB", (90, 160, 90), (205, 110, 80)),
    "black on transparent": ("RGBA", (0, 0, 0, 0), "black"),
    "white on transparent": ("RGBA", (255, 255, 255, 0), "white"),
    "pencil on grey": ("L", 200, 150),
}


def seven(mode: str, paper: object, ink: object, size: tuple[int, int] = (300, 400), width: int = 30) -> Image.Image:
    """A drawn seven, off the middle."""
    image = Image.new(mode, size, paper)  # type: ignore[arg-type]
    w, h = size
    points = [(0.1 * w, 0.1 * h), (0.5 * w, 0.1 * h), (0.3 * w, 0.7 * h)]
    ImageDraw.Draw(image).line(points, fill=ink, width=width)  # type: ignore[arg-type]
    return image


def scanned(image: Image.Image, **options: object) -> Image.Image:
    """Through a file, as the command reads it."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return decoder.decode(file, background=None)


@pytest.mark.parametrize("kind", INK)
def test_any_ink_on_any_plain_paper_becomes_the_same_digit(kind: str) -> None:
    digit = np.asarray(images.as_digit(scanned(seven(*INK[kind])))[0], float)
    expected = np.asarray(images.as_digit(seven(*INK["white on black"]))[0], float)
    assert np.abs(digit - expected).mean() < 2


@pytest.mark.parametrize("size", [(40, 60), (300, 400), (2400, 3200)])
def test_a_digit_fits_20_pixels_and_its_mass_is_in_the_middle(size: tuple[int, int]) -> None:
    digit = np.asarray(images.as_digit(seven("L", 255, 0, size, max(2, size[0] // 40)))[0], float)
    rows, columns = np.nonzero(digit > 20)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20) and digit.max() == 255
    for axis in (0, 1):
        mass = digit.sum(axis=1 - axis)
        assert abs((mass * (np.arange(28) + 0.5)).sum() / mass.sum() - 14) <= 0.51


def test_thin_strokes_are_drawn_thicker_and_what_was_done_is_said() -> None:
    digit, did = images.as_digit(seven("L", 255, 0, width=3))
    assert did.startswith("300×400, dark on light, inverted, the digit of ") and "strokes made thicker" in did
    assert 0.05 < np.asarray(digit).mean() / 255 < 0.2  # MNIST: 0.13


def test_a_28_by_28_image_on_black_stays_as_it_is() -> None:
    digit = images.as_digit(seven("L", 255, 0))[0]
    again, did = images.as_digit(digit)
    assert again.tobytes() == digit.tobytes() and did == "28×28, taken as it is"


def test_exif_turns_a_scan_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90°
    turned = scanned(seven("L", 255, 0).rotate(90, expand=True), exif=exif)
    assert images.as_digit(turned)[0].tobytes() == images.as_digit(seven("L", 255, 0))[0].tobytes()


@pytest.mark.parametrize("kind", ["white", "one pixel", "a faint shade"])
def test_an_image_with_nothing_on_it_is_refused(kind: str) -> None:
    shade = Image.linear_gradient("L").point(lambda v: 100 + v // 16)
    image = {"white": Image.new("L", (50, 50), 255), "one pixel": Image.new("L", (1, 1))}.get(kind, shade)
    with pytest.raises(ConfigError, match="nothing is on it"):
        images.as_digit(image)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = b"P5 20000 20000 255\n"  # and no pixels: nothing could be decoded
    (tmp_path / "huge.pgm").write_bytes(header)
    with pytest.raises(ConfigError, match="far more pixels"):
        images.read(tmp_path / "huge.pgm")


def test_a_grid_has_lines_between_its_pictures() -> None:
    sheet = np.asarray(images.grid(list(np.full((5, 3, 2, 4), 200, np.uint8)), 3, 2))
    assert sheet.shape == (10, 28, 3)  # two rows of 2 and three columns of 4 pixels, a line between, each pixel 2 × 2
    assert (sheet[4:6] == images.GAP_GREY).all() and (sheet[:4, :8] == 200).all()
