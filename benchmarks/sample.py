"""Sampling with the bundled model, decoded images included: the flow with its default solver, and its flow map in 4, 2 and 1
evaluations, one image and 500 at a time.

    python -m benchmarks.sample [--rounds 5] [--batches 1 500]
"""

from functools import partial

import numpy as np

from benchmarks.measure import alternate, options, ratio, report
from lfm.model import LatentFlow
from lfm.precision import resolve
from lfm.sampling.sampler import Sampler
from pipeline.machine.device import device as chosen_device


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 500], help="images at a time")
    o = parser.parse_args()
    device = chosen_device()
    model = LatentFlow.from_pretrained().to(device)
    assert model.flow_map is not None
    s = model.sampler
    flow = f"flow, {s.solver} {s.steps}"
    ways = {flow: s} | {f"flow map, {n}": Sampler("flow_map", steps=n) for n in reversed(model.flow_map.steps)}
    rows, figures = [], {}
    for batch in o.batches:
        labels = np.arange(batch) % model.classes
        draw = partial(model.sample, labels, seed=0, output_type="np", batch_size=batch, precision="auto")
        seconds = alternate({name: partial(draw, sampler=way) for name, way in ways.items()}, o.rounds, device)
        for name, way in ways.items():
            an_image = seconds[name] / batch
            figure = {
                "evaluations": draw(sampler=way).nfe, "batch": batch, "milliseconds_per_image": 1e3 * np.median(an_image),
                "images_per_second": 1 / np.median(an_image), "times_flow": ratio(seconds[flow], seconds[name]),
                "seconds": seconds[name],
            }  # fmt: skip
            figures[f"{name}, batch {batch}"] = figure
            rows.append(
                (name, f"{figure['evaluations']:.3g}", batch, f"{figure['milliseconds_per_image']:.3g}",
                 f"{figure['images_per_second']:,.0f}", f"{figure['times_flow']:.1f}")
            )  # fmt: skip
    columns = ("sampler", "evaluations an image", "batch", "ms an image", "images/s", "× flow")
    kind = {"precision": resolve("auto", device), "rounds": o.rounds}
    report("sample", device, columns, rows, {**kind, "samplers": figures})


if __name__ == "__main__":
    main()
