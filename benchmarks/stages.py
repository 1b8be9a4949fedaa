"""Seconds and peak memory of every stage, run one after the other as DVC would, in a workspace of its own.

LFM_MIRROR=… python -m benchmarks.stages [PRESET]: prints a table; the last rows are `dvc repro` with nothing changed.
"""

import contextlib
import datetime
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from pipeline.workspace import make_workspace

ROOT = Path(__file__).resolve().parent.parent


def run(words: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB (resident, all processes of the command together, sampled every 20 ms)."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(words, cwd=cwd, stdout=log, stderr=log)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(words)}: exit code {process.returncode}\n{log.read()[-2000:]}")
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
