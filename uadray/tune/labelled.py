"""Objectives that use labels: Dice and AUPRC on the threshold part of a lesioned cohort.

Only asked for by name, and named wherever they decide. A run keeps them in `objective.json`, apart
from its evaluation: its figures are of the subjects that thresholds are fitted on, so they serve to
choose between trials and are no results. The test part is never read.
"""

from collections.abc import Iterator
from typing import Any

from uadray import files
from uadray.device import compute_device
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import count_volumes, read_example
from uadray.methods import Detector
from uadray.metrics.counts import SubjectCounts, ThresholdPart
from uadray.metrics.measures import auprc, dice_d
from uadray.metrics.thresholds import fit_threshold
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.settings import USES_LABELS

FILE = "objective.json"
"""In a run folder."""


def count_threshold_part(
    detector: Detector, cohort: Cohort, config: EvaluateConfig | None = None
) -> ThresholdPart:
    """Score and count the threshold part of a cohort, one volume at a time; nothing is kept.

    Args:
        detector: In evaluation mode.
        cohort: Has lesions.
        config: Residual and post-processing.

    Raises:
        StoreError: the cohort has no threshold part.
    """
    config = config or EvaluateConfig()
    device = compute_device()
    detector = detector.to(device)
    rows = cohort.rows("threshold")
    names = cohort.subjects.set_index("row")["id"]

    def counted() -> Iterator[tuple[str, SubjectCounts]]:
        for row in rows.tolist():
            example = read_example(cohort, row, names[row])
            ((_, counts),) = count_volumes(detector, {0: example}, config, device)
            yield example.id, counts

    return ThresholdPart.from_subjects(
        counted(), name=f"{cohort.name}/threshold", score_range=detector.score_range
    )


def measure(part: ThresholdPart, rule: str = "bengs_bisection") -> dict[str, Any]:
    """Dice_D at the threshold fitted on the same part, and AUPRC over its voxels."""
    threshold = fit_threshold(part, rule)
    return {
        "dice": float(dice_d(part, threshold.level)),
        "auprc": float(auprc(part.merged("volume"))),
        "threshold": float(threshold.value),
    }


def measure_run(run: Run, cohort: Cohort, epoch: int | None) -> dict[str, Any]:
    """Measure what a run would detect with now, and keep it in its folder.

    Args:
        run: Has a checkpoint, or needs none.
        cohort: Labelled.
        epoch: The epoch that its folder holds as the best; None for methods without epochs. What
            was measured of it before is taken.

    Returns:
        The figures of that epoch.
    """
    url = files.join(run.url, FILE)
    record = files.read_json(url) if files.exists(url) else {}
    if record.get("cohort", {}).get("fingerprint") != cohort.fingerprint:
        record = {
            "note": f"{USES_LABELS}: threshold part of {cohort.name}, the test part was not read",
            "cohort": {"name": cohort.name, "fingerprint": cohort.fingerprint},
            "num_subjects": len(cohort.rows("threshold")),
            "measured": [],
        }
    weights = weights_digest(run)
    for figures in record["measured"]:
        if figures["epoch"] == epoch and figures.get("weights") == weights:
            return dict(figures)
    figures = {"epoch": epoch, "weights": weights}
    figures |= measure(count_threshold_part(load_detector(run), cohort))
    others = [old for old in record["measured"] if old["epoch"] != epoch]
    files.write_json(url, record | {"measured": [*others, figures]})
    return figures


def measured_at(run: Run, cohort: Cohort, epoch: int) -> dict[str, Any] | None:
    """What was measured of the epoch that was the best when `epoch` had ended, or None."""
    url = files.join(run.url, FILE)
    record = files.read_json(url) if files.exists(url) else {}
    if record.get("cohort", {}).get("fingerprint") != cohort.fingerprint:
        return None
    before = [f for f in record["measured"] if f["epoch"] is not None and f["epoch"] <= epoch]
    return max(before, key=lambda figures: figures["epoch"], default=None)
