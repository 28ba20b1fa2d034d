"""docs/methods.md: every method's source, equation, settings, size and measured figures."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.harness import RESULTS, render, write_page
from uadray.config import BASELINES, Experiment, experiment, flat, to_json
from uadray.methods import NAMED, GradientDetector, Learned, build

PAGE = "methods.md"

SIZE = 64
"""Side of the volumes of the table of sizes: the grid of Bengs 2021."""

STUDIES = {"methods": "Measured on phantoms", "methods-real": "Measured on real anatomy"}
"""Title of each study on the page."""


def write() -> None:
    """Write the page from what the studies left."""
    kept = {}
    for name, title in STUDIES.items():
        results = RESULTS / f"{name}.json"
        if results.exists():
            kept[title] = json.loads(results.read_text())
    write_page(PAGE, page(kept))


def page(results: Mapping[str, dict[str, Any]]) -> str:
    """The page's text.

    Args:
        results: What the studies left, by their title.
    """
    learned = [n for n in NAMED if isinstance(NAMED[n].method, Learned)]
    return render(
        PAGE,
        sizes=[_sizes(name) for name in learned],
        size=SIZE,
        studies={title: measured(kept) for title, kept in results.items()},
        methods=[described(name) for name in (*learned, *BASELINES)],
    )


def _sizes(name: str) -> list[str]:
    both = [name] if name[1:3] == "D-" else [name, f"3D-{name}"]
    cells = {experiment(n).method.ndim: _size(experiment(n)) for n in both}  # type: ignore[union-attr]
    anchor = re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-")
    numbers = [x for ndim in (2, 3) for x in cells.get(ndim, ("", ""))]
    return [f"[{name}](#{anchor})", NAMED[name].source, *numbers]


def _size(what: Experiment) -> tuple[str, str]:
    """Parameters, and GFLOP that score a volume; more than once where it searches."""
    detector = build(what.method, (SIZE,) * 3)
    assert isinstance(detector, GradientDetector)
    num = sum(p.numel() for p in detector.parameters())
    return f"{num / 1e6:.2f} M", _gflop(what)


def _gflop(what: Experiment) -> str:
    """Of one volume, every slice of which holds brain; of one step where it searches by steps."""
    method: Any = what.method
    each = ""
    if hasattr(method, "restore"):
        method = replace(method, restore=replace(method.restore, steps=1))
        each = " a step"
    if hasattr(method, "search_steps"):
        method = replace(method, search_steps=1)
        each = " a step"
    if hasattr(method, "max_passes"):
        method = replace(method, max_passes=1)
        each = " a pass"
    detector = build(method, (SIZE,) * 3).eval()
    x = torch.rand(1, 1, *(SIZE,) * 3)
    with torch.no_grad(), _Flops() as counter:
        detector.anomaly_map(x, x[:, 0] > 0)
    return f"{counter.total / 1e9:.1f}{each}"


class _Flops(TorchDispatchMode):
    """Counts by torch's formulas; its own counter cannot follow gradients inside a method."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def measured(results: dict[str, Any]) -> dict[str, Any]:
    """What a study left, with the cells of its table."""
    by_method: dict[str, dict[str, tuple[float, str]]] = {}
    about = ""
    for row in results["rows"]:
        name, _, column = row["measure"].rpartition(": ")
        if name:
            by_method.setdefault(name, {})[column] = (row["value"], row["detail"])
        else:
            about = row["detail"]
    columns = dict.fromkeys(c for cells in by_method.values() for c in cells if c != "parameters")
    lines = [
        [name, *(_cell(c, cells.get(c)) for c in columns)] for name, cells in by_method.items()
    ]
    return results | {"about": about, "head": ["experiment", *columns], "lines": lines}


def _cell(column: str, cell: tuple[float, str] | None) -> str:
    if cell is None:
        return ""
    value, words = cell
    digits = {"fit minutes": 1, "seconds per volume": 3, "healthy L1": 4}.get(column, 3)
    spreads = []
    for part in words.split("; ") if words else ():
        what, _, spread = part.partition(": ")
        spreads.append(f"± {spread}" if "seeds" in what else spread)
    return "<br>".join([f"{value:.{digits}f}", *(f"<small>{one}</small>" for one in spreads)])


def described(name: str) -> dict[str, str]:
    """A method in words: its source, equation, deviations, settings and fit."""
    named, method = NAMED[name], experiment(name).method
    settings = (
        f"`{key}` {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in flat(to_json(method)).items()
        if key != "type"
    )
    return {
        "name": name,
        "says": (type(method).__doc__ or "").strip().splitlines()[0],
        "source": named.source,
        "equation": named.equation,
        "deviations": named.deviations,
        "settings": ", ".join(settings),
        "fit": ", ".join(f"`{k}` {v:g}" for k, v in named.fit.items()),
    }
