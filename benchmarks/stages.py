"""`dvc repro`, watched: seconds and peak memory of every stage that ran, and what a run with nothing changed costs.

In a fresh clone, so that nothing is cached: LFM_MIRROR=… make bench
"""

import datetime
import os
import platform
import re
import sys
import time

import psutil


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
    repro = [sys.executable, "-m", "dvc", "repro"]
    total, stages = watch(repro)
    nothing = min(watch(repro)[0] for _ in range(5))
    print(f"\n{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}\n")
    print("| stage | seconds | peak memory, MB |\n|---|---|---|")
    for name, (seconds, peak) in stages.items():
        print(f"| {name} | {seconds:.0f} | {peak:,.0f} |")
    print(f"| `dvc repro`, all | {total:.0f} | |")
    print(f"| `dvc repro`, nothing changed, best of 5 | {nothing:.2f} | |")


if __name__ == "__main__":
    main()
