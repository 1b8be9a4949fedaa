"""`dvc repro`, watched: seconds and peak memory of every stage that ran, and what a run with nothing changed costs.

In a fresh clone, so that nothing is cached: LFM_MIRROR=… make bench
"""

import re
import sys
import time

import psutil
import torch

from benchmarks.measure import options, report
from benchmarks.repro_noop import NOTHING, seconds_of
from pipeline.machine.device import device as chosen_device


def watch(words: list[str]) -> tuple[float, dict[str, tuple[float, float]]]:
    """Run a command. Returns its seconds, and for each stage that ran seconds and peak memory in MB (resident, with its
    children, sampled every 20 ms)."""
    began = time.monotonic()
    spans: dict[str, tuple[float, float, float]] = {}  # stage: first seen, last seen, peak
    command = psutil.Popen(words)
    while command.poll() is None:
        for process in command.children(recursive=True):
            try:
                stage = re.search(r" -m stages\.(\w+)$", " ".join(process.cmdline()))
                if not stage:
                    continue
                memory = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 1e6
            except psutil.NoSuchProcess:
                continue
            first, _, peak = spans.get(stage[1], (time.monotonic(), 0.0, 0.0))
            spans[stage[1]] = (first, time.monotonic(), max(peak, memory))
        time.sleep(0.02)
    if command.returncode:
        sys.exit(f"{' '.join(words)}: exit code {command.returncode}")
    return time.monotonic() - began, {name: (last - first, peak) for name, (first, last, peak) in spans.items()}


def main() -> None:
    o = options(__doc__).parse_args()
    total, stages = watch([sys.executable, "-m", "dvc", "repro"])
    nothing = seconds_of(o.rounds)[NOTHING]
    middle = torch.tensor(nothing).median().item()
    rows = [(name, f"{seconds:.0f}", f"{peak:,.0f}") for name, (seconds, peak) in stages.items()]
    rows += [("`dvc repro`, all", f"{total:.0f}", ""), (f"{NOTHING}, median of {o.rounds}", f"{middle:.2f}", "")]
    figures = {
        "seconds": {name: seconds for name, (seconds, _) in stages.items()},
        "peak_megabytes": {name: peak for name, (_, peak) in stages.items()},
        "all_seconds": total,
        "nothing_changed_seconds": nothing,
    }
    report("end_to_end", chosen_device(), ("stage", "seconds", "peak memory, MB"), rows, figures)


if __name__ == "__main__":
    main()
