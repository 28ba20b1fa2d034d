"""What cannot be evaluated, refused before anything is scored."""

from collections.abc import Sequence

import numpy as np

from uadray.errors import ConfigError, EvaluationError
from uadray.evaluate.frozen import SUFFIX
from uadray.evaluate.protocols import EvaluateConfig
from uadray.evaluate.thresholds import WITHOUT_LESIONS
from uadray.store import Cohort
from uadray.train.run import Run


def check_inputs(
    runs: Sequence[Run],
    cohorts: Sequence[Cohort],
    healthy: Cohort | None,
    config: EvaluateConfig,
) -> None:
    """Refuse runs and cohorts that do not fit together.

    Raises:
        EvaluationError: There is no run or no cohort, a run is not finished, grids differ, lesions
            or a split are missing, a person is on both sides, or two cohorts share a name.
        ConfigError: The rule needs lesions, and was to be fitted on healthy volumes.
    """
    if not runs or not cohorts:
        raise EvaluationError("nothing to evaluate: name at least one run and one cohort")
    for run in runs:
        if (run.summary or {}).get("status") not in ("finished", "stopped"):
            raise EvaluationError(f"{run.url} is not finished: run the same jobs/train.py again")
    if healthy is not None and config.threshold_rule not in WITHOUT_LESIONS:
        raise ConfigError(
            f"the threshold rule {config.threshold_rule!r} needs lesions, healthy volumes have "
            f"none: choose one of {sorted(WITHOUT_LESIONS)}, or leave --healthy out"
        )
    names = [c.name for c in (*cohorts, *([healthy] if healthy is not None else []))]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise EvaluationError(
            f"cohorts {twice} are named twice; their scores would lie in one folder: evaluate "
            "each once, and rename those that are not the same"
        )
    for cohort in cohorts:
        _check_cohort(cohort, needs_threshold=healthy is None)
    for cohort in (*cohorts, *([healthy] if healthy is not None else [])):
        config.fixed.check_grid(cohort.shape, cohort.url)
        for run in runs:
            if run.shape != cohort.shape:
                raise EvaluationError(
                    f"{run.url} was fitted on volumes of {run.shape}, {cohort.url} holds "
                    f"{cohort.shape}: prepare the cohort with the same --size"
                )
    if healthy is not None:
        healthy.rows("validation")


def _check_cohort(cohort: Cohort, *, needs_threshold: bool) -> None:
    if not cohort.has_lesion:
        raise EvaluationError(
            f"{cohort.url} has no lesion masks, so there is nothing to evaluate against: give a "
            "cohort prepared with lesions"
        )
    if cohort.name.endswith(SUFFIX):
        raise EvaluationError(
            f"{cohort.url}: the name of a cohort must not end in {SUFFIX!r}, which names the files "
            "of frozen thresholds; rename its folder"
        )
    cohort.rows("test")
    if needs_threshold:
        cohort.rows("threshold")
    table = cohort.subjects
    sides = table.groupby("subject")["split"].nunique()
    if both := sorted(sides.index[sides > 1]):
        raise EvaluationError(
            f"{cohort.url}: scans of {both[:5]} are in the threshold part and in the test part; "
            "prepare the cohort again, with all scans of a person on one side"
        )


def check_truth(brain: np.ndarray, lesion: np.ndarray, subject: str) -> None:
    """Refuse a subject whose lesion leaves its brain mask.

    Scores exist inside the mask alone, so that such voxels could never be found; a cohort that
    `jobs/prepare.py` wrote has none.

    Args:
        brain: (Z, Y, X) mask.
        lesion: (Z, Y, X) truth.
        subject: Named in the message.

    Raises:
        EvaluationError: A lesion voxel lies outside the brain.
    """
    outside = int(np.count_nonzero(lesion & ~brain))
    if outside:
        raise EvaluationError(
            f"subject {subject!r}: {outside} of {int(np.count_nonzero(lesion))} lesion voxels lie "
            "outside the brain mask; check that both masks are of this scan, and prepare the "
            "cohort again"
        )
