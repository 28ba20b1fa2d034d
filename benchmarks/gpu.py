"""What a GPU makes of fits and scoring, measured in under six minutes on a machine with torch.

python -m benchmarks.gpu                         on the first GPU; benchmarks/results/gpu.json
python -m benchmarks.gpu --quick --device cpu    small, to see that it runs; keeps nothing
python -m benchmarks.gpu --only step,epoch       some sections alone, in their order
python -m benchmarks.gpu --out FILE              where to keep the rows, each as soon as it is there

It needs neither Ray nor data: brains are made here. Each section has seconds of its own; one that
fails says so in a row, and the others go on. A run that is cut off keeps what it has measured.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import gpu_fits, gpu_layers
from benchmarks.gpu_bench import Bench, first_line
from benchmarks.harness import RESULTS, Row, arguments, as_json, circumstances

TOTAL_S = 330.0
"""Seconds of all sections together."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some rows that belong together."""

    name: str
    """On the command line, and at the front of its rows."""
    seconds: float
    """It is stopped after the row that ends later than this."""
    rows: Callable[[Bench], Iterator[Row]]
    """Measures, a row at a time."""


SECTIONS = (
    Section(name="machine", seconds=15, rows=gpu_layers.machine),
    Section(name="step", seconds=40, rows=gpu_fits.eager_steps),
    Section(name="trace", seconds=20, rows=gpu_fits.trace),
    Section(name="erasing", seconds=15, rows=gpu_layers.erasing),
    Section(name="losses", seconds=5, rows=gpu_fits.losses),
    Section(name="convolutions", seconds=25, rows=gpu_layers.convolutions),
    Section(name="variants", seconds=25, rows=gpu_layers.variants),
    Section(name="epoch", seconds=40, rows=gpu_fits.epochs_3d),
    Section(name="slices", seconds=45, rows=gpu_fits.epochs_2d),
    Section(name="table 1", seconds=1, rows=gpu_fits.table_1),
    Section(name="families", seconds=30, rows=gpu_fits.families),
    Section(name="scoring", seconds=12, rows=gpu_fits.scoring),
    Section(name="deterministic", seconds=12, rows=gpu_fits.deterministic),
    Section(name="compiled", seconds=45, rows=gpu_fits.other_steps),
)


def run(
    sections: Sequence[Section],
    bench: Bench,
    keep: Callable[[list[Row]], None],
    total: float,
) -> list[Row]:
    """Measure section after section.

    Args:
        sections: In their order; a later one may go by what an earlier one found.
        bench: Where and how large.
        keep: Called with all rows so far, after each.
        total: Seconds of all sections.
    """
    measured: list[Row] = []
    end = time.monotonic() + total

    def add(row: Row) -> None:
        measured.append(row)
        keep(measured)

    for section in sections:
        start = time.monotonic()
        stop = end if bench.quick else min(start + section.seconds, end)
        if start >= end:
            over = f"not measured: the {total:.0f} s of all sections are over"
            add(Row(section.name, None, "", detail=over))
            continue
        rows = section.rows(bench)
        try:
            for row in rows:
                add(row)
                if time.monotonic() > stop:
                    over = f"stopped here: its {section.seconds:.0f} s are over"
                    add(Row(f"{section.name}: the rest", None, "", detail=over))
                    break
        except Exception as error:
            # One kernel that fails must not cost the other sections' figures.
            detail = f"failed: {first_line(error)}"
            add(Row(f"{section.name}: the rest", None, "", detail=detail))
        rows.close()  # type: ignore[attr-defined]
        bench.free()
        add(Row(f"{section.name}: all of it", time.monotonic() - start, "s"))
    return measured


def keep_in(path: Path) -> Callable[[list[Row]], None]:
    """Writes rows to a file, whole or not at all."""
    head = circumstances("gpu")

    def keep(rows: list[Row]) -> None:
        aside = path.with_name(f".{path.name}.part")
        aside.write_text(json.dumps(head | {"rows": as_json(rows)}, indent=2) + "\n")
        os.replace(aside, path)

    path.parent.mkdir(parents=True, exist_ok=True)
    return keep


def line(row: Row) -> str:
    """One row as text: it shows at once, and needs no table library."""
    value = "not measured" if row.value is None else f"{row.value:.4g} {row.unit}"
    holds = {True: f" ({row.goal}: yes)", False: f" ({row.goal}: NO)", None: ""}[row.holds]
    return f"{row.measure}: {value}{holds}" + (f"; {row.detail}" if row.detail else "")


def main() -> None:
    """The command line."""
    parser = arguments()
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--only", default="", help="names of sections, separated by commas")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json")
    given = parser.parse_args()
    wanted = [name.strip() for name in given.only.split(",") if name.strip()]
    names = [section.name for section in SECTIONS]
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no section is named {unknown[0]!r}; there are {', '.join(names)}")
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu shows that everything runs")
    bench = Bench(device=device, quick=given.quick)
    out = given.out or (None if given.quick or wanted else RESULTS / "gpu.json")
    write = keep_in(out) if out else lambda rows: None

    def keep(rows: list[Row]) -> None:
        print(line(rows[-1]), flush=True)
        write(rows)

    sections = [s for s in SECTIONS if not wanted or s.name in wanted]
    rows = run(sections, bench, keep, math.inf if given.quick else TOTAL_S)
    failed = [row for row in rows if row.detail.startswith("failed")]
    missed = [row for row in rows if row.holds is False]
    print(f"{len(rows)} rows; {len(failed)} failed; {len(missed)} goals not met")


if __name__ == "__main__":
    main()
