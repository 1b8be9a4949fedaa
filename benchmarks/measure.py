"""What benchmarks share: contestants that take turns in one process, the machine by name, a table, and the figures as JSON."""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"
FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")  # as torch.cpu names them
SHORTEST = 0.3  # seconds that a contestant's turn takes at least: a short call is repeated
LOAD = os.getloadavg()[0]  # before this benchmark adds to it
WARM = 3  # calls before anything is measured: compilers and CUDA graphs need so many


def options(text: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A benchmark's command line, described by its module's text."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contestant has its turn")
    return parser


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def alternate(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm: int = WARM
) -> dict[str, np.ndarray]:
    """Seconds of a call of each, (rounds,): all have their turn in every round, so whatever else the machine does meets all
    alike. A turn is as many calls as take `SHORTEST`. `warm`: calls before, at least 1."""
    calls, seconds = {}, {name: np.zeros(rounds) for name in contestants}

    def timed(name: str, n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            contestants[name]()
        wait(device)
        return (time.perf_counter() - began) / n

    for name in contestants:
        for _ in range(warm):
            once = timed(name, 1)
        calls[name] = max(1, round(SHORTEST / once))
    for turn in range(rounds):
        for name in contestants:
            seconds[name][turn] = timed(name, calls[name])
    return seconds


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    """Median over the rounds of a ÷ b."""
    return float(np.median(a / b))


def machine(device: torch.device) -> dict[str, Any]:
    """What figures depend on."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "cpu": _cpu(),
        "features": [name for name in FEATURES if capabilities.get(name)],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "mps" if device.type == "mps" else None,
        "torch": torch.__version__,
        "load": round(LOAD, 2),
    }


def _cpu() -> str:
    """Name, family and model of the processor, as far as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "cpu family" not in told:
        return told.get("model name") or platform.machine()
    return f"{told.get('model name', platform.machine())}, family {told['cpu family']}, model {told.get('model')}"


def report(
    name: str, device: torch.device, header: Sequence[str], rows: Iterable[Sequence[object]], figures: Mapping[str, Any]
) -> None:
    """Print the machine and a table, and write the figures to benchmarks/results/NAME.json."""
    here, today = machine(device), datetime.date.today().isoformat()
    command = " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]])
    where = f"{here['cpu']} ({' '.join(here['features'])}), {here['threads']} of {here['cores']} cores"
    print(f"\n`{command}`, {today}, {where}, {here['gpu'] or 'no GPU'}, torch {here['torch']}, load {here['load']}\n")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"command": command, "date": today, "machine": here, **figures}
    path.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    print(f"\n{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def _plain(value: object) -> object:
    """Arrays and their numbers as JSON has them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value)} in a benchmark's figures")
