"""The arithmetic of docs/scaling.md, compared with a store that exists."""

import json
import math
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy

from benchmarks import scaling_paper as paper
from benchmarks.scaling_costs import FINE
from uadray.store import MAX_SHARD_VOLUMES, open_cohort

KINDS = (
    "a volume prepared and kept",
    "a volume moved into its shard",
    "a shard sealed",
    "a shard streamed in an epoch",
    "a volume evaluated",
)


@pytest.fixture
def measured() -> dict[str, dict[str, float]]:
    """Costs as a measurement leaves them, round enough to follow by hand."""
    rows = {
        "stored bytes of a voxel, 64^3": 0.5,
        f"stored bytes of a voxel, {FINE}^3": 0.5,
        "decoding, 64^3": 1000.0,
        f"decoding, {FINE}^3": 64.0,
        "operations of a training step, 64^3": 20.0,
        f"operations of a training step, {FINE}^3": 312.5,
        "parameters, 64^3": 15.0,
        f"parameters, {FINE}^3": 200.0,
    }
    for kind in KINDS:
        rows |= {f"writing requests: {kind}": 2.0, f"reading requests: {kind}": 3.0}
    return {name: {"measure": name, "value": value} for name, value in rows.items()}


def test_objects_are_counted_as_a_store_has_them(tmp_path: Path, measured: dict) -> None:
    cohort = write_healthy(tmp_path)
    files = [p for p in Path(cohort.url).rglob("*") if p.is_file()]
    shards = math.ceil(len(cohort.subjects) / cohort.shard)
    assert len(files) == 3 * shards + 6
    lines = {(line[0], line[1]): line for line in paper.cohort_table(measured)}
    line = lines["64^3", "1,000,000"]
    assert line[4] == f"{math.ceil(1e6 / MAX_SHARD_VOLUMES):,}"
    assert line[5] == f"{3 * math.ceil(1e6 / MAX_SHARD_VOLUMES) + 6:,}"
    assert line[3] == "131 GB"
    # Two writes for each volume prepared, two for moving it, two for each shard.
    assert line[6] == "4.0e6"


def test_the_coarse_grid_is_the_stores(measured: dict) -> None:
    small, fine = paper.costs(measured)
    assert small.raw == 2 * 64**3
    assert fine.raw == 2 * 163 * 191 * 158
    assert fine.gflop == pytest.approx(312.5 * 163 * 191 * 158 / FINE**3)
    assert fine.prepare_s < small.prepare_s, "the last step falls away"


def test_what_saturates(measured: dict) -> None:
    small, fine = paper.costs(measured)
    few, many = (paper.limits(small, 50_000, gpus, measured) for gpus in (8, 64))
    # Each GPU brings its own cores and its share of its machine's network; the store is one.
    for name in ("decoding on the CPUs", "bytes from the store"):
        assert few[name] == many[name]
    assert many["reads of the store"] == pytest.approx(8 * few["reads of the store"])
    assert few["gradients between machines"] == 0 < many["gradients between machines"]
    rate = 989e3 * 0.2 / 20
    assert few["decoding on the CPUs"] == pytest.approx(rate / 1000 / 24)
    slower = paper.limits(fine, 50_000, 64, measured)
    assert slower["decoding on the CPUs"] < many["decoding on the CPUs"] * 1.1


def test_several_gpus_gain_little_by_a_batch_that_they_share(measured: dict) -> None:
    small, _ = paper.costs(measured)
    alone, shared = (paper.epoch_of(small, 2000, gpus, 32) for gpus in (1, 8))
    assert alone.computing_s == pytest.approx(8 * shared.computing_s)
    assert alone.launching_s == shared.launching_s > shared.computing_s
    assert alone.steps_s == pytest.approx(63 * alone.computing_s)
    assert shared.steps_s == pytest.approx(63 * shared.launching_s)
    assert paper.epoch_of(small, 2000, 8, 256).steps_s == pytest.approx(8 * alone.computing_s)
    assert alone.checkpoint_s == pytest.approx(15 * 12e6 / 1e9 / 0.44)
    lines = paper.group_table(measured)
    assert len(lines) == 2 * 7
    assert lines[0][-1] == "1"
    assert all(float(line[-1]) <= int(line[1]) for line in lines)


def test_the_page_says_all_of_it(measured: dict) -> None:
    machine = {"cpus": 2, "cpu": "a CPU"}
    text = paper.page(measured, {"commit": "abc", "date": "2026-01-01", "machine": machine})
    for count in paper.COUNTS:
        assert f"{count:,}" in text
    for name in paper.ASSUMED:
        assert name in text
    assert "nan" not in text
    assert "Not measured yet" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.count("|") >= 4


def test_no_result_is_typed_into_the_page() -> None:
    """What stands in docs/scaling.md is what the results file says."""
    results, page = paper.RESULTS / "scaling.json", paper.RESULTS.parents[1] / "docs/scaling.md"
    if not results.exists():
        pytest.skip("not measured yet: python -m benchmarks.scaling")
    head = json.loads(results.read_text())
    assert f"commit {head['commit']} on {head['date']}" in page.read_text()


def test_a_shard_of_the_paper_is_the_stores(tmp_path: Path) -> None:
    assert open_cohort(write_healthy(tmp_path).url).shard <= MAX_SHARD_VOLUMES
