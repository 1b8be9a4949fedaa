"""Pictures, and one page with everything on it → reports/pictures/*.png and reports/report.html."""

from pipeline.artifacts import hdf5 as arrays
from pipeline.artifacts.files import (
    CLASSIFIER,
    FLOW,
    IMAGES,
    IMAGES_FORMAT,
    METRICS,
    REPORTS,
    SAMPLES,
    SAMPLES_FORMAT,
    publishing,
    replacing,
)  # fmt: skip
from pipeline.page.gallery import GALLERY, Sources, class_names
from pipeline.page.pictures import sheet
from pipeline.page.report import render
from pipeline.page.tables import IMAGE_COLUMNS, read_table
from pipeline.params import Params
from pipeline.run import run

TABLES = REPORTS / "tables"
PICTURES = REPORTS / "pictures"
PAGE = REPORTS / "report.html"


def main(p: Params) -> None:
    generated, test = (read_table(TABLES / f"{name}.csv", *IMAGE_COLUMNS) for name in ("generated", "test"))
    with arrays.reading(IMAGES, IMAGES_FORMAT) as images, arrays.reading(SAMPLES, SAMPLES_FORMAT) as samples:
        sources = Sources(images, samples, generated, test, class_names(images, IMAGES))
        pictures = [draw(sources) for draw in GALLERY]
        html = render(p, sources, pictures, metrics=METRICS, tables=TABLES, flow=FLOW, classifier=CLASSIFIER)
    with publishing(PICTURES) as folder:
        for picture in pictures:
            sheet(folder / f"{picture.name}.png", picture, p.report.zoom)
    with replacing(PAGE) as part:
        part.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    sections = [name for name in Params.model_fields if name != "runtime"]
    run(main, *sections)
