"""Pictures, and one page with everything on it → reports/pictures/*.png and reports/report.html."""

import numpy as np

from pipeline.artifacts import hdf5, images, samples
from pipeline.errors import UserError
from pipeline.page.gallery import GALLERY, Sources, class_names
from pipeline.page.pictures import sheet
from pipeline.page.report import render
from pipeline.page.tables import IMAGE_COLUMNS, read_table
from pipeline.run import Context, run


def main(context: Context) -> None:
    p, tables = context.params, context.input("tables")
    generated, test = (read_table(tables / f"{name}.csv", *IMAGE_COLUMNS) for name in ("generated", "test"))
    with (
        hdf5.reading(context.input("images"), images.FORMAT) as file,
        hdf5.reading(context.input("samples"), samples.FORMAT) as drawn,
    ):
        samples.check_images(drawn, file)
        labels = file.read("test/labels")
        if not np.array_equal(test["label"], labels) or len(generated["label"]) != len(labels):
            raise UserError(f"{tables}: of other test images than {context.input('images')}; run `dvc repro`")
        sources = Sources(file, drawn, generated, test, class_names(file, context.input("images")))
        pictures = [draw(sources) for draw in GALLERY]
        html = render(
            p, sources, pictures, metrics=context.input("metrics"), tables=tables, flow=context.input("flow"),
            classifier=context.input("classifier"),
        )  # fmt: skip
    with context.publish("report") as page:
        page.write_text(html, encoding="utf-8")
        with context.publish("pictures") as folder:
            for picture in pictures:
                sheet(folder / f"{picture.name}.png", picture, p.report.zoom)


if __name__ == "__main__":
    run(main)
