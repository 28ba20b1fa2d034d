"""docs/scaling.md: what 2 000, 50 000 and 1 000 000 volumes take, from measured costs.

Arithmetic alone; the measured figures come from benchmarks/results, the sizes from the package, and
what neither knows (prices, what hardware can do) stands in `ASSUMED`, each with its source.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, render, write_page
from benchmarks.scaling_costs import FINE, NAME
from uadray.config import FitConfig
from uadray.data.sampling import MIX_SHARDS
from uadray.preparation.settings import Extent
from uadray.store import CHUNK_VOLUMES, MAX_SHARD_VOLUMES

PAGE = "scaling.md"

COUNTS = (2_000, 50_000, 1_000_000)
"""Bengs' cohort and more; UK Biobank's imaging; what does not exist yet."""

GPUS = (8, 64, 512)
"""One machine, a rack, a small supercomputer."""


@dataclass(frozen=True)
class Assumed:
    """A figure that is not measured here."""

    value: float
    source: str


ASSUMED = {
    "peak TFLOP/s of a GPU": Assumed(989, "H100 or H200, bfloat16 without sparsity, data sheet"),
    "share of it that a fit reaches": Assumed(0.2, "a guess; 0.33 was measured on a CPU"),
    "GPU memory, GB": Assumed(141, "H200, data sheet"),
    "GPUs of a machine": Assumed(8, "usual"),
    "CPU cores beside a GPU": Assumed(24, "192 virtual CPUs beside 8 GPUs, as clouds sell them"),
    "GB/s from an object store to a machine": Assumed(12.5, "100 Gbit/s"),
    "GB/s between machines, each": Assumed(50, "400 Gbit/s"),
    "object-store reads a second": Assumed(5500, "AWS S3, for each prefix"),
    "kernels of a training step": Assumed(
        300, "116 operations forward and backward, counted; casts, erasing and optimiser a guess"
    ),
    "microseconds to launch a kernel": Assumed(8, "usual of PyTorch without graphs"),
    "GB/s that a checkpoint is written at": Assumed(0.44, "182 MB in 417 ms, on a local disk"),
    "$ for 1000 writes": Assumed(0.005, "AWS S3 Standard, us-east-1"),
    "$ for 1000 reads": Assumed(0.0004, "AWS S3 Standard, us-east-1"),
    "$ for a GB a month": Assumed(0.023, "AWS S3 Standard, us-east-1"),
    "$ for a CPU core an hour": Assumed(0.05, "general-purpose instances on demand"),
    "$ for a GPU an hour": Assumed(4.0, "H100 on demand; spot is about half"),
}
"""What to change for another place; `python -m benchmarks.scaling --paper` rewrites the page."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one volume of one grid, measured."""

    grid: str
    shape: tuple[int, int, int]
    stored: float
    """Bytes in the store."""
    decoded: float
    """Volumes that one core decodes a second."""
    gflop: float
    """Of a training step."""
    parameters: float
    """Million."""
    prepare_s: float
    """Core seconds of the default pipeline."""
    evaluate_s: float
    """Core seconds after the network: post-processing, counting, keeping."""

    @property
    def raw(self) -> float:
        """Bytes of the float16 image."""
        return 2.0 * math.prod(self.shape)


def assumed(name: str) -> float:
    return ASSUMED[name].value


def gflop_rate() -> float:
    """Of a GPU while it fits, GFLOP/s."""
    return assumed("peak TFLOP/s of a GPU") * assumed("share of it that a fit reaches") * 1e3


def measured(name: str) -> dict[str, dict[str, Any]]:
    """The rows of one results file by what they measure; empty where there is none."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    return {row["measure"]: row for row in json.loads(path.read_text())["rows"]}


def costs(rows: Mapping[str, Mapping[str, Any]]) -> tuple[Costs, Costs]:
    """At 64^3 and at 1 mm."""
    whole = measured("prepare")["whole pipeline"]["value"]
    steps = measured("prepare")
    down = steps["step: downsample"]["value"]
    evaluated = measured("evaluate")["whole evaluation, 1 worker"]["value"]
    small = Costs(
        grid="64^3",
        shape=(64, 64, 64),
        stored=rows["stored bytes of a voxel, 64^3"]["value"] * 64**3,
        decoded=rows["decoding, 64^3"]["value"],
        gflop=rows["operations of a training step, 64^3"]["value"],
        parameters=rows["parameters, 64^3"]["value"],
        prepare_s=60 / whole,
        evaluate_s=1 / evaluated,
    )
    x, y, z = Extent().voxels(1.0)
    voxels, cube = x * y * z, FINE**3
    fine = Costs(
        grid="1 mm",
        shape=(z, y, x),
        stored=rows[f"stored bytes of a voxel, {FINE}^3"]["value"] * voxels,
        decoded=rows[f"decoding, {FINE}^3"]["value"] * cube / voxels,
        gflop=rows[f"operations of a training step, {FINE}^3"]["value"] * voxels / cube,
        parameters=rows[f"parameters, {FINE}^3"]["value"],
        # All steps but the last work at 1 mm already.
        prepare_s=60 / whole - 60 / down,
        evaluate_s=small.evaluate_s * voxels / 64**3,
    )
    return small, fine


def requests(rows: Mapping[str, Mapping[str, Any]], kind: str, what: str) -> float:
    return float(rows[f"{kind} requests: {what}"]["value"])


def cohort_table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What a cohort takes: bytes, shards, objects, requests, hours, money."""
    lines = []
    for cost in costs(rows):
        for count in COUNTS:
            shards = math.ceil(count / MAX_SHARD_VOLUMES)
            writes, reads = (
                count * requests(rows, kind, "a volume prepared and kept")
                + count * requests(rows, kind, "a volume moved into its shard")
                + shards * requests(rows, kind, "a shard sealed")
                for kind in ("writing", "reading")
            )
            core_hours = count * cost.prepare_s / 3600
            stored = count * cost.stored
            dollars = (
                writes / 1000 * assumed("$ for 1000 writes")
                + reads / 1000 * assumed("$ for 1000 reads")
                + core_hours * assumed("$ for a CPU core an hour")
            )
            lines.append(
                [
                    cost.grid,
                    f"{count:,}",
                    _bytes(count * cost.raw * 1.5),
                    _bytes(stored),
                    f"{shards:,}",
                    # An image, a mask and a record a shard; the tables and the metadata.
                    f"{3 * shards + 6:,}",
                    _number(writes),
                    _number(reads),
                    _number(core_hours),
                    _money(dollars),
                    _money(stored / 1e9 * assumed("$ for a GB a month")),
                ]
            )
    return lines


def fit_table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What a fit and an evaluation take."""
    lines, epochs, rate = [], FitConfig().epochs, gflop_rate()
    for cost in costs(rows):
        for count in COUNTS:
            gpu_hours = count * cost.gflop * epochs / rate / 3600
            evaluate_hours = count * cost.evaluate_s / 3600
            writes, reads = (
                count * requests(rows, kind, "a volume evaluated")
                for kind in ("writing", "reading")
            )
            asked = writes / 1000 * assumed("$ for 1000 writes")
            asked += reads / 1000 * assumed("$ for 1000 reads")
            lines.append(
                [
                    cost.grid,
                    f"{count:,}",
                    _number(count * cost.gflop * 1e9 * epochs),
                    _number(gpu_hours),
                    _money(gpu_hours * assumed("$ for a GPU an hour")),
                    _number(evaluate_hours),
                    _number(writes),
                    _number(reads),
                    _money(evaluate_hours * assumed("$ for a CPU core an hour") + asked),
                ]
            )
    return lines


def limits(cost: Costs, count: int, gpus: int, rows: Mapping[str, Any]) -> dict[str, float]:
    """Demand over supply of each resource while all GPUs compute; above 1 they wait for it."""
    each = gflop_rate() / cost.gflop
    machines = math.ceil(gpus / assumed("GPUs of a machine"))
    steps = each / FitConfig().batch_size
    read = requests(rows, "reading", "a shard streamed in an epoch")
    image = cost.stored * 2 / 3
    # A ring moves each gradient twice, and a machine's GPUs share its way out.
    moved = 2 * cost.parameters * 1e6 * 4 * steps if machines > 1 else 0.0
    return {
        "decoding on the CPUs": each / cost.decoded / assumed("CPU cores beside a GPU"),
        "bytes from the store": (
            each * assumed("GPUs of a machine") * image / 1e9
            / assumed("GB/s from an object store to a machine")
        ),
        "reads of the store": (
            gpus * each / MAX_SHARD_VOLUMES * read / assumed("object-store reads a second")
        ),
        "gradients between machines": moved / 1e9 / assumed("GB/s between machines, each"),
        "volumes for a step": FitConfig().batch_size * gpus / count,
    }  # fmt: skip


def limit_table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What GPUs wait for first, when each epoch is streamed and when it is held in their memory."""
    lines = []
    for cost in costs(rows):
        for count in COUNTS:
            for gpus in GPUS:
                found_limits = limits(cost, count, gpus, rows)
                # A quarter of what is free, as `--fit.residency auto` has it.
                held = count * cost.raw / gpus <= assumed("GPU memory, GB") * 1e9 / 4
                inner = ("gradients between machines", "volumes for a step")
                counted = {k: v for k, v in found_limits.items() if not held or k in inner}
                first = max(counted, key=lambda name: counted[name])
                each = gflop_rate() / cost.gflop
                epoch = count / gpus / each * max(1.0, counted[first])
                lines.append(
                    [
                        cost.grid,
                        f"{count:,}",
                        str(gpus),
                        f"{each * gpus:,.0f}",
                        "held" if held else "streamed",
                        f"{first} ({counted[first]:.2g} of what there is)",
                        f"{epoch:,.0f} s" if epoch >= 100 else f"{epoch:.2g} s",
                    ]
                )
    return lines


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Seconds of an epoch on some GPUs of one machine, its volumes held in their memory."""

    computing_s: float
    """Of a step, what the operations take."""
    launching_s: float
    """Of a step, what its kernels take to be launched, however few volumes they compute on."""
    steps_s: float
    """Of all steps, each of which takes the longer of both."""
    checkpoint_s: float
    """To write one, of which there is one an epoch."""


def epoch_of(cost: Costs, count: int, gpus: int, batch_size: int) -> Epoch:
    """What an epoch takes.

    Args:
        cost: Of a volume.
        count: Volumes.
        gpus: Of one machine, in one fit.
        batch_size: Volumes in a step, over all GPUs.
    """
    computing = batch_size / gpus * cost.gflop / gflop_rate()
    kernels = assumed("kernels of a training step")
    launching = kernels * assumed("microseconds to launch a kernel") / 1e6
    # Weights, and the two moments of Adam.
    written = 3 * 4 * cost.parameters * 1e6 / 1e9 / assumed("GB/s that a checkpoint is written at")
    return Epoch(
        computing_s=computing,
        launching_s=launching,
        steps_s=math.ceil(count / batch_size) * max(computing, launching),
        checkpoint_s=written,
    )


def group_table(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What several GPUs of a machine gain, with the paper's batch and with one for each of them."""
    lines, batch_size = [], FitConfig().batch_size
    for cost in costs(rows):
        alone = epoch_of(cost, COUNTS[0], 1, batch_size)
        for gpus in (1, 2, 4, 8):
            for batch in dict.fromkeys((batch_size, batch_size * gpus)):
                one = epoch_of(cost, COUNTS[0], gpus, batch)
                gain = (alone.steps_s + alone.checkpoint_s) / (one.steps_s + one.checkpoint_s)
                lines.append(
                    [
                        cost.grid,
                        str(gpus),
                        str(batch),
                        f"{batch / gpus:g}",
                        f"{one.computing_s * 1e3:.2g} ms",
                        f"{one.launching_s * 1e3:.2g} ms",
                        f"{one.steps_s:.2g} s",
                        f"{one.checkpoint_s:.2g} s",
                        f"{gain:.2g}",
                    ]
                )
    return lines


def page(
    rows: Mapping[str, Mapping[str, Any]],
    head: Mapping[str, Any],
    weak: Mapping[str, Any] | None = None,
) -> str:
    """docs/scaling.md.

    Args:
        rows: Rows of the costs, by what they measure.
        head: Under which circumstances they were measured.
        weak: What `--nodes` kept; None where it was not measured.
    """
    small, fine = costs(rows)
    return render(
        PAGE,
        head=head,
        fine=fine,
        small=small,
        costs=[[name, of(small), of(fine)] for name, of in _COSTS.items()],
        cohorts=cohort_table(rows),
        fits=fit_table(rows),
        limits=limit_table(rows),
        groups=group_table(rows),
        few=COUNTS[0],
        held=[_bytes(MIX_SHARDS * MAX_SHARD_VOLUMES * cost.raw) for cost in (small, fine)],
        mixed=MIX_SHARDS,
        shard=MAX_SHARD_VOLUMES,
        CHUNK_VOLUMES=CHUNK_VOLUMES,
        FINE=FINE,
        NAME=NAME,
        fit=FitConfig(),
        driver=_lines(rows.values(), "driver's memory", "Seal,", "Open"),
        starts=_lines(rows.values(), "a job's start"),
        weak=weak and {**weak, "rows": _lines(weak["rows"], "")},
        assumed=[[name, f"{one.value:g}", one.source] for name, one in ASSUMED.items()],
    )


_COSTS: dict[str, Callable[[Costs], str]] = {
    "image, float16": lambda c: _bytes(c.raw),
    "stored with its brain mask": lambda c: _bytes(c.stored),
    "decoded by a core in a second": lambda c: f"{c.decoded:,.0f} volumes",
    "operations of a training step": lambda c: f"{c.gflop:,.0f} GFLOP",
    "parameters of the network": lambda c: f"{c.parameters:,.1f} million",
    "prepared by a core in": lambda c: f"{c.prepare_s:.2f} s",
    "evaluated by a core in": lambda c: f"{c.evaluate_s * 1e3:,.0f} ms",
}


def _lines(rows: Iterable[Mapping[str, Any]], *starts: str) -> list[list[str]]:
    """The rows whose measures start so, as cells."""
    lines = []
    for row in rows:
        if row["measure"].startswith(starts):
            value = row["value"]
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            goal = f"{row['goal']} (missed)" if row["holds"] is False else row["goal"]
            what = [row["measure"], f"{text} {row['unit']}"]
            lines.append([*what, goal, row["against"], row["detail"]])
    return lines


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def _number(value: float) -> str:
    if value >= 1e6:
        power = int(np.floor(np.log10(value)))
        return f"{value / 10**power:.1f}e{power}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _money(value: float) -> str:
    return f"${value:,.0f}" if value >= 10 else f"${value:.2f}"


def write() -> None:
    """Write the page from what is measured."""
    head = json.loads((RESULTS / "scaling.json").read_text())
    weak = RESULTS / "scaling-nodes.json"
    kept = json.loads(weak.read_text()) if weak.exists() else None
    write_page(PAGE, page(measured("scaling"), head, kept))
