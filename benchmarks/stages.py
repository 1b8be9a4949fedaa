"""Seconds and peak memory of every stage, run one after the other as DVC would, in a workspace of its own.

LFM_MIRROR=… python -m benchmarks.stages [PRESET]: prints a table; the last rows are `dvc repro` with nothing changed.
"""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import yaml

from pipeline.workspace import make_workspace

ROOT = Path(__file__).resolve().parent.parent


def run(words: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB (resident, all processes of the command together, sampled every 50 ms)."""
    began, peak = time.monotonic(), 0
    process = psutil.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        sys.exit(f"{' '.join(words)} in {cwd}: exit code {code}")
    return time.monotonic() - began, peak / 1e6


def main() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        preset = workspace / "preset"
        preset.write_text(Path(ROOT / "presets" / sys.argv[1]).read_text() if len(sys.argv) > 1 else "")
        make_workspace(ROOT, workspace, preset)
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        print(
            f"{datetime.date.today()}, {machine}, preset {sys.argv[1] if len(sys.argv) > 1 else 'none (params.yaml)'}\n"
        )
        print("| stage | seconds | peak memory, MB |\n|---|---|---|")
        total = 0.0
        for stage in stages:
            seconds, peak = run(["dvc", "repro", "-s", stage], workspace)
            total += seconds
            print(f"| {stage} | {seconds:.1f} | {peak:.0f} |", flush=True)
        print(f"| all, each started on its own | {total:.1f} | |")
        nothing = min(run(["dvc", "repro"], workspace)[0] for _ in range(5))
        print(f"| `dvc repro`, nothing changed, best of 5 | {nothing:.2f} | |")


if __name__ == "__main__":
    main()
