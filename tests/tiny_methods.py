"""Every method at a size that learns in seconds."""

from dataclasses import fields, replace
from typing import Any

from uadray.config import Experiment, experiment, with_fit
from uadray.methods import NAMED, Learned

LEARNED = tuple(name for name, named in NAMED.items() if isinstance(named.method, Learned))
"""Names of all methods that learn by gradient, on slices but for `3D-None`."""

SMALL: dict[str, Any] = {
    "widths": (8, 16),
    "latent_size": 16,
    "latent_width": 8,
    "bottleneck": 8,
    "critic_width": 16,
    "critic_updates": 2,
    "levels": 2,
    "samples": 3,
    "max_tokens": 64,
    "num_residual": 1,
    "num_codes": 8,
    "code_size": 4,
    "model_size": 16,
    "depth": 1,
    "heads": 2,
    "search_steps": 3,
    "embedding": 16,
    "context_widths": (8, 16),
    "context_size": 8,
    "noise_cells": 4,
    "cell_sides": (4, 8),
}
"""Settings of methods, where they have them."""


def tiny(name: str, **fit: Any) -> Experiment:
    """The experiment of that name, small, in float32; its phases are of at least an epoch each."""
    wanted = experiment(name)
    method: Any = wanted.method
    changes = {f.name: SMALL[f.name] for f in fields(method) if f.name in SMALL}
    if hasattr(method, "restore"):
        changes["restore"] = replace(method.restore, steps=2, tv_weights=(0.0, 1.0))
    settings = {"epochs": 2, "batch_size": 8, "precision": "float32", "patience": 0} | fit
    return with_fit(replace(wanted, method=replace(method, **changes)), **settings)


def in_both(name: str) -> tuple[str, ...]:
    """The names of a method in 2D and in 3D."""
    return (name,) if name[1:3] == "D-" else (name, f"3D-{name}")


EVERY = tuple(n for name in LEARNED for n in in_both(name))
"""All of them in 2D and 3D."""
