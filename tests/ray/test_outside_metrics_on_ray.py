"""Metrics of installed packages in evaluations: computed, recorded, and made again when changed."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_registry import OwnRegistry
from tiny_cohorts import write_healthy, write_lesioned

from uadray.config import experiment
from uadray.evaluation.job import evaluate
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics import outside
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.metrics.table import METRICS
from uadray.runs.records import load_runs
from uadray.train.job import fit

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(300)]

CONFIG = EvaluateConfig(
    postprocess=PostprocessConfig(erosion_iterations=1, median_size=3), num_resamples=20
)

SOURCE = """
from uadray.metrics.measures import auprc, dice
from uadray.metrics.table import Metric

RECALL = Metric(
    key="recall",
    head="Recall",
    value=lambda one: one.true_positives.sum() / one.num_lesion.sum(),
    at_threshold=True,
)
OWN_DICE = Metric(
    key="own_dice",
    head="Own Dice",
    value=lambda one: float(
        dice(one.true_positives.sum(), one.false_positives.sum(), one.num_lesion.sum())
    ),
    people=lambda one: one.true_positives + one.false_positives + one.num_lesion,
    at_threshold=True,
    compared=True,
)
OWN_AUPRC = Metric(
    key="own_auprc", head="Own AUPRC", value=lambda one: float(auprc(one.volume)),
    people=lambda one: one.num_lesion,
)
BROKEN = Metric(key="broken", head="Broken", value=lambda one: one.true_positives / 0)
"""


def install(registry: OwnRegistry, version: str, *keys: str) -> None:
    """What `pip install` of that version leaves, as a new process finds it."""
    registry.remove()
    registry.write("theirs", SOURCE)
    entries = {key: f"theirs:{key.upper()}" for key in keys}
    registry.install("theirs", version, group="metrics", **entries)
    for key in ("recall", "own_dice", "own_auprc", "broken"):
        METRICS.imported.pop(key, None)
    outside.installed.cache_clear()


def test_a_metric_of_a_package(own_registry: OwnRegistry, tmp_path: Path) -> None:
    stroke = write_lesioned(tmp_path)
    run = fit(experiment("Intensity"), write_healthy(tmp_path), str(tmp_path / "run"))

    def figures(config: EvaluateConfig = CONFIG) -> dict[str, Any]:
        (record,) = evaluate([run], stroke, config=config)
        return record

    without = figures()
    install(own_registry, "1.0", "recall", "own_dice", "own_auprc", "broken")
    record = figures()
    for key in ("metrics", "intervals"):
        assert without[key].items() <= record[key].items()
    for own, theirs in (("dice_d", "own_dice"), ("auprc", "own_auprc")):
        assert record["metrics"][theirs] == record["metrics"][own]
        ours, made = record["intervals"][own], record["intervals"][theirs]
        assert made == (None if ours is None else pytest.approx(ours, rel=1e-9))
    positives = sum(one["true_positives"] for one in record["subjects"])
    voxels = sum(one["lesion_voxels"] for one in record["subjects"])
    assert record["metrics"]["recall"] == positives / voxels
    assert record["metrics"]["broken"] is None
    kept = record["outside_metrics"]
    assert kept["recall"]["package"] == {"distribution": "theirs", "version": "1.0"}
    assert kept["recall"]["remark"] == ""
    assert kept["broken"]["remark"] == "no figure: gave ndarray where a number is expected"
    (read,) = load_runs([run.url])[0].evaluations
    assert read.outside["recall"].package == "theirs 1.0"
    fits = read.by_person.fits
    assert np.allclose(fits["own_dice"].values, fits["dice_d"].values, rtol=1e-12)
    assert np.array_equal(fits["own_dice"].refits, fits["dice_d"].refits)

    path = Path(run.url) / "evaluation/stroke.json"
    before = path.stat().st_mtime_ns
    assert figures() == record
    assert path.stat().st_mtime_ns == before
    install(own_registry, "1.1", "recall", "own_dice", "own_auprc")
    with pytest.warns(UserWarning, match="had broken, which no package"):
        again = figures()
    assert again["outside_metrics"]["recall"]["package"]["version"] == "1.1"
    assert again["metrics"]["recall"] == record["metrics"]["recall"]

    filtered = replace(CONFIG, components=ComponentConfig(max_size=4))
    record = figures(filtered)
    for theirs, own in (("own_dice", "dice_d"), ("own_auprc", "auprc")):
        for part in (record, record["unfiltered"], record["filtered"]):
            assert part["metrics"][theirs] == part["metrics"][own]

    healthy_free = replace(CONFIG, threshold_rule="none", num_resamples=2)
    record = figures(healthy_free)
    assert record["metrics"]["recall"] is record["metrics"]["own_dice"] is None
    assert record["intervals"]["own_dice"] is None
    assert record["outside_metrics"]["recall"]["remark"] == ""
    assert record["metrics"]["own_auprc"] == record["metrics"]["auprc"]

    own_registry.remove()
    for key in ("recall", "own_dice", "own_auprc"):
        del METRICS.imported[key]
    outside.installed.cache_clear()
    with warnings.catch_warnings(action="error"):
        assert figures(healthy_free) == record
    assert json.loads(path.read_text()) == record
