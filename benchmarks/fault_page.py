"""docs/reliability.md, from what `benchmarks.faults` has measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Row, as_json, render

PAGE = "reliability.md"

HEADS = {
    "worker": "a worker process is killed",
    "raylet": "a node's raylet is killed",
    "drain": "a node says that it leaves, and does 30 s later",
    "driver": "the job itself is killed",
    "head": "the head (GCS) is killed",
    "s3": "S3 answers 1 in 10 with 500 or late",
    "disk": "the disk is full for 20 s",
    "cut": "a node is cut off for 20 s",
}
STAGES = ("prepare", "fit", "tune", "evaluate")

Cell = Mapping[str, Any]


def outcome(cell: Cell) -> str:
    """How a job came back."""
    codes = cell["codes"]
    if codes == [0]:
        return "by itself"
    if codes[-1] != 0:
        return "**not**"
    again = "the same command" if len(codes) == 2 else f"the same command, {len(codes) - 1} times"
    return f"{again}, after a hang" if "hung" in codes else again


def is_equal(cell: Cell, cells: Mapping[tuple[str, str], Cell]) -> bool:
    """Whether the final figures are those of an undisturbed job, bit for bit."""
    return bool(cell["whole"]) and cell["whole"] == cells[cell["stage"], "none"]["whole"]


def lost(cell: Cell, cells: Mapping[tuple[str, str], Cell]) -> float:
    """Seconds longer than undisturbed; negative where noise is larger than the loss."""
    alone = cells[cell["stage"], "none"]
    if cell["fault"] == "disk":
        alone = cells.get((cell["stage"], "none-disk"), alone)
    return float(cell["seconds"] - alone["seconds"])


def rows(measured: Sequence[Cell]) -> list[dict[str, Any]]:
    """The figures in the form that all benchmarks share."""
    cells = {(c["stage"], c["fault"]): c for c in measured}
    faulty = [c for c in measured if not c["fault"].startswith("none")]
    faulty = [c for c in faulty if (c["stage"], "none") in cells]
    if not faulty:
        return []
    counts = {
        "cells whose figures are those of an undisturbed job": [is_equal(c, cells) for c in faulty],
        "cells that come back by themselves": [c["codes"] == [0] for c in faulty],
        "cells that come back by themselves or by the same command": [
            c["codes"][-1] == 0 for c in faulty
        ],
        "cells without a hang": ["hung" not in c["codes"] for c in faulty],
        "cells in which nothing half-written passed as whole": [
            not c["false_whole"] for c in faulty
        ],
    }
    shares = [
        Row(
            what,
            sum(holds) / len(holds),
            "share",
            goal="" if "themselves" in what and "command" not in what else ">= 1",
            detail=f"{sum(holds)} of {len(holds)} cells",
        )
        for what, holds in counts.items()
    ]
    return as_json(shares)


def text(measured: Sequence[Cell]) -> str:
    """The page, with the table and what does not hold."""
    cells = {(c["stage"], c["fault"]): c for c in measured}
    rows = [["undisturbed", *(_alone(cells.get((stage, "none"))) for stage in STAGES)]]
    for fault, head in HEADS.items():
        rows.append([head, *(_cell(cells.get((stage, fault)), cells) for stage in STAGES)])
    exceptions = _exceptions(cells)
    return render(PAGE, stages=list(STAGES), rows=rows, exceptions=exceptions)


def _alone(cell: Cell | None) -> str:
    return "not measured" if cell is None else f"{cell['seconds']:.0f} s"


def _cell(cell: Cell | None, cells: Mapping[tuple[str, str], Cell]) -> str:
    if cell is None or (cell["stage"], "none") not in cells:
        return "not measured"
    figures = "equal" if is_equal(cell, cells) else "**not equal**"
    back = "" if cell["back_s"] is None else f", on again {cell['back_s']:.0f} s later"
    return f"{outcome(cell)}{back}; {lost(cell, cells):+.0f} s; figures {figures}"


def _exceptions(cells: Mapping[tuple[str, str], Cell]) -> list[str]:
    """A line for whatever falls short of the promise."""
    lines = []
    for stage in STAGES:
        known = (stage, "none") in cells
        missing = [head for f, head in HEADS.items() if not known or (stage, f) not in cells]
        if missing:
            which = "" if len(missing) == len(HEADS) else f": {'; '.join(missing)}"
            lines.append(f"{stage}, not measured yet{which}.")
        for fault, head in HEADS.items():
            cell = cells.get((stage, fault))
            if cell is None or not known:
                continue
            name, what = f"{stage}, {head}", []
            if cell["codes"][-1] != 0:
                what.append(f"did not come back, exit codes {cell['codes']}")
            elif "hung" in cell["codes"]:
                what.append("the job hung and had to be killed")
            if not is_equal(cell, cells):
                what.append("the figures are not those of an undisturbed job")
            if cell["false_whole"]:
                what.append(f"passed as whole and was not: {', '.join(cell['false_whole'])}")
            if what:
                message = f" It said: `{cell['said'][-1]}`" if cell["said"] else ""
                lines.append(f"{name}: {'; '.join(what)}.{message}")
    return lines
