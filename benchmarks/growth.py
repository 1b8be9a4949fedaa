"""How the cost of training grows with the transformer's width and with the number of tokens: seconds and GFLOP an image, and
the peak memory of a process. The exponent is the slope between two rows on logarithmic scales. What it would come to on
ImageNet's latents is arithmetic on the same counts: docs/speed.md.

    python -m benchmarks.growth [--rounds 5] [--eager]
"""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.measure import alternate, options, report
from benchmarks.store import watched
from benchmarks.train import LATENT, flop_of, ours
from lfm.flow.loss import cfm_loss
from lfm.flow.path import make_path
from lfm.nets.transformer import Transformer
from pipeline.machine.device import device as chosen_device
from pipeline.params import load_params

BATCH = 64
CHANNELS, SIZE = LATENT
SIZES = {  # what grows: (width, side of the latents) of each row; the patches are of 2 × 2
    "width": [(128, SIZE), (256, SIZE), (512, SIZE)],
    "tokens": [(128, SIZE), (128, 2 * SIZE), (128, 4 * SIZE)],
}
DIT_XL2: dict[str, Any] = {
    "block": "dit", "patch_size": 2, "width": 1152, "depth": 28, "heads": 16, "mlp_ratio": 4, "classes": 1000
}  # fmt: skip


def one(width: int, size: int, rounds: int, eager: bool) -> dict[str, float]:
    """In a process of its own: a training whose heads are 64 wide, as those of params.yaml."""
    p, device = load_params(), chosen_device()
    model = p.model.model_dump(exclude={"labels"}) | {"width": width, "heads": width // 64}
    run = ours(model, (CHANNELS, size), [BATCH], p, device, eager)[0]
    seconds = alternate({"step": run.step}, rounds, device)["step"]
    return {"seconds": float(np.median(seconds)) / BATCH, "gflop": run.flop / 1e9}


def flop_of_xl2() -> tuple[float, int]:
    """Of an image of 4×32×32 through DiT-XL/2, forward and backward, and how many weights it has. No value is computed."""
    with torch.device("meta"):
        net = Transformer(4, 32, **DIT_XL2)
        x, t, y = torch.empty(1, 4, 32, 32), torch.empty(1), torch.zeros(1, dtype=torch.int64)
    flop = flop_of(lambda: cfm_loss(net, make_path("cond_ot", 1e-3), x, x, t, y))
    return flop, sum(w.numel() for w in net.parameters())


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--one", nargs=2, type=int, metavar=("WIDTH", "SIZE"), help="one row, as JSON")
    o = parser.parse_args()
    if o.one:
        width, size = o.one
        print(json.dumps(one(width, size, o.rounds, o.eager)))
        return
    rows: list[tuple[object, ...]] = []
    figures: dict[str, list[dict[str, float]]] = {}
    for name, sizes in SIZES.items():
        figures[name] = []
        for width, size in sizes:
            words = ["-m", "benchmarks.growth", "--rounds", str(o.rounds), "--one", str(width), str(size)]
            printed, _, memory = watched([*words, *(["--eager"] if o.eager else [])])
            value = width if name == "width" else (size // 2) ** 2
            figures[name].append({"value": value, "peak_mb": memory, **json.loads(printed.splitlines()[-1])})
        slopes = [None, *(
            {key: math.log(b[key] / a[key]) / math.log(b["value"] / a["value"]) for key in ("seconds", "gflop")}
            for a, b in pairwise(figures[name])
        )]  # fmt: skip
        for row, slope in zip(figures[name], slopes, strict=True):
            cells = [f"{slope[key]:.2f}" if slope else "" for key in ("seconds", "gflop")]
            milliseconds, gflop = f"{1e3 * row['seconds']:.3g}", f"{row['gflop']:.3g}"
            rows.append((name, row["value"], milliseconds, cells[0], gflop, cells[1], f"{row['peak_mb']:,.0f}"))
    header = ("what grows", "to", "ms an image", "exponent", "GFLOP an image", "exponent", "peak memory, MB")
    flop, weights = flop_of_xl2()
    report(
        "growth",
        chosen_device(),
        header,
        rows,
        {"batch": BATCH, "dit_xl2": {"flop": flop, "weights": weights}, **figures},
    )
    print(f"DiT-XL/2 on 4×32×32: {weights / 1e6:.0f} million weights, {flop / 1e9:.0f} GFLOP an image and step")


if __name__ == "__main__":
    main()
