"""Seconds and memory that a volume of 64^3 takes to score, by each of the methods with a U-Net.

python -m benchmarks.methods_cost            two minutes of one core
python -m benchmarks.methods_cost --quick    at 16^3, to see that it runs; keeps nothing
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row, alone, main
from uadray.config import experiment
from uadray.methods import NAMED, build
from uadray.methods.unet import UNetSettings

SIDE = 64

REFERENCES = ("2D-None", "3D-None")
"""What the others are beside."""


def _side(name: str, side: int) -> tuple[Callable[[], Any], ...]:
    """Score a ball of noise; the first call warms up."""
    torch.set_num_threads(1)
    method: Any = experiment(name).method
    if hasattr(method, "max_passes"):
        method = replace(method, max_passes=1)
    detector = build(method, (side,) * 3).eval()
    at = torch.linspace(-1, 1, side)
    inside = at[:, None, None] ** 2 + at[:, None] ** 2 + at**2 < 0.8
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(side, side, side, generator=generator) * 0.8 + 0.1) * inside

    def score() -> float:
        start = time.process_time()
        with torch.inference_mode():
            detector.anomaly_map(x[None, None], inside[None])
        return time.process_time() - start

    return score, score


def rows(quick: bool, folder: Path) -> list[Row]:
    """Two rows a method."""
    side = 16 if quick else SIDE
    own = [name for name, one in NAMED.items() if isinstance(one.method, UNetSettings)]
    measured = []
    for name in (*REFERENCES, *own, *(f"3D-{name}" for name in own)):
        taken = alone(_side, name, side)
        detail = "a pass; 20 at most" if "IterMask" in name else ""
        measured.append(Row(f"{name}: seconds", taken.value, "s", detail=detail))
        measured.append(Row(f"{name}: memory", taken.mib, "MiB", detail=detail))
    return measured


if __name__ == "__main__":
    main("methods-cost", rows)
