"""docs/methods.md: every method's source, equation, settings, size and measured figures."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.harness import RESULTS
from uadray.config import BASELINES, Experiment, experiment, flat, to_json
from uadray.methods import NAMED, GradientDetector, Learned, build
from uadray.tables import to_markdown

PAGE = RESULTS.parents[1] / "docs" / "methods.md"

SIZE = 64
"""Side of the volumes that sizes are told of: the grid of Bengs 2021."""

STUDIES = {"methods": "Measured on phantoms", "methods-real": "Measured on real anatomy"}
"""Title of each study on the page."""

_HEAD = """# Methods

Made from the registry and `benchmarks/results/methods*.json` by `python -m benchmarks.methods
--page`; edits here are lost.

Every method is an experiment: `python jobs/train.py NAME --cohort HEALTHY.zarr --out RUN`. Methods
that learn by gradient take axial slices by default and volumes as `3D-NAME`, and may learn from
erased input: `sVAE-Patch-n`, `3D-sVAE-Cube-n`. Those of Bengs 2021 name their dimension:
`2D-None`, `3D-None`, `3D-Cube-n`.
"""

_EQUATIONS = (
    "x is the image, s its score in each voxel, E an encoder, D a decoder, e and z standard "
    "normal; sums are over voxels."
)


def write_page() -> Path:
    """Write it again."""
    kept = {}
    for name, title in STUDIES.items():
        results = RESULTS / f"{name}.json"
        if results.exists():
            kept[title] = json.loads(results.read_text())
    PAGE.write_text(page(kept))
    print("docs/methods.md")
    return PAGE


def page(results: Mapping[str, dict[str, Any]]) -> str:
    """The page's text.

    Args:
        results: What the studies left, by their title.
    """
    learned = [n for n in NAMED if isinstance(NAMED[n].method, Learned)]
    parts = [_HEAD, "## At a glance\n", _sizes(learned)]
    for title, kept in results.items():
        parts += [f"## {title}\n", _measured(kept)]
    parts += ["## One by one\n", _EQUATIONS + "\n"]
    parts += [_method(name) for name in (*learned, *BASELINES)]
    return "\n".join(parts).rstrip() + "\n"


def _sizes(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        both = [name] if name[1:3] == "D-" else [name, f"3D-{name}"]
        cells = {experiment(n).method.ndim: _size(experiment(n)) for n in both}  # type: ignore[union-attr]
        numbers = [x for d in (2, 3) for x in cells.get(d, ("", ""))]
        rows.append([_link(name), NAMED[name].source, *numbers])
    head = ["experiment", "source", "parameters", "GFLOP", "in 3D: parameters", "GFLOP"]
    told = (
        "\nParameters, and the floating point operations of convolutions and products that score "
        f"a volume of {SIZE}^3 at the default settings; of methods that search or restore, those "
        "of one step.\n"
    )
    return to_markdown(head, rows, align="l") + "\n" + told


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


def _measured(results: dict[str, Any]) -> str:
    found: dict[str, dict[str, tuple[float, str]]] = {}
    told = ""
    for row in results["rows"]:
        name, _, column = row["measure"].rpartition(": ")
        if not name:
            told = row["detail"]
            continue
        found.setdefault(name, {})[column] = (row["value"], row["detail"])
    columns = list(dict.fromkeys(c for cells in found.values() for c in cells))
    shown = [c for c in columns if c != "parameters"]
    rows = [
        [name, *(_cell(column, cells.get(column)) for column in shown)]
        for name, cells in found.items()
    ]
    machine = results["machine"]
    where = f"{told}. Measured on {results['date']} on {machine['cpu']}, one thread a fit."
    words = (
        "Figures are means over the seeds; below them the 95 % interval over subjects and, after "
        "a ±, the deviation over seeds. Ranks after so few epochs of small networks say nothing of "
        "ranks at the papers' sizes, nor on patients. Other work ran on the same cores: minutes "
        "and seconds are sizes, not speeds."
    )
    table = to_markdown(["experiment", *shown], rows, align="l")
    return f"{where}\n\n{words}\n\n{table}\n"


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


def _method(name: str) -> str:
    named = NAMED[name]
    method, fit = experiment(name).method, named.fit
    lines = [f"### {name}\n", f"{_first_line(type(method))}\n", f"- Source: {named.source}."]
    lines.append(f"- `{named.equation}`")
    if named.deviations:
        lines.append(f"- {named.deviations}")
    settings = [
        f"`{key}` {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in flat(to_json(method)).items()
        if key != "type"
    ]
    if settings:
        lines.append(f"- Defaults: {', '.join(settings)}.")
    if fit:
        lines.append("- Fit: " + ", ".join(f"`{k}` {v:g}" for k, v in fit.items()) + ".")
    return "\n".join(lines) + "\n"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _link(name: str) -> str:
    anchor = re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-")
    return f"[{name}](#{anchor})"
