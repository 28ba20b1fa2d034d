"""How far plain methods already solve a cohort with lesions, before anything is trained.

A cohort that raw intensity solves measures nothing: a method may look good on it that only knows
dark from bright. The plain methods are scored as any other (post-processing, threshold from the
threshold part, figures of the test part), in this process and on a sample of a large cohort.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uadray import files
from uadray.errors import EvaluationError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import Example, count_volumes, read_example
from uadray.methods import Detector, MethodSettings, StreamDetector, build
from uadray.methods.baselines import PCA, Intensity, MeanImage, ZScore
from uadray.metrics.counts import SubjectCounts, TestPart, ThresholdPart
from uadray.metrics.table import compute_metrics
from uadray.metrics.thresholds import best_dice
from uadray.store import Cohort, Split, storage_errors

SOLVED = 0.6
"""From this Dice_D on, raw intensity solves a cohort."""

NOTICED = 0.2
"""From this Dice_D on, raw intensity solves a cohort on which no plain method that learns is
better; below, all may be near chance, and their order says nothing."""

UNSEEN = 0.1
"""Where no plain method has this Dice_D, a cohort may be too hard to tell methods apart."""

MAX_LESIONED = 40
"""Most subjects of a part that are scored."""

MAX_HEALTHY = 200
"""Most healthy subjects that are learned from."""

FILE = "calibration.json"
"""Where a cohort's folder keeps its calibration."""

PLAIN: dict[str, MethodSettings] = {
    "x": Intensity.Settings(),
    "1 - x": Intensity.Settings(polarity="dark"),
}
"""Raw intensity, which learns nothing."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one plain method reaches."""

    method: str
    """Its name."""
    learns: bool
    """Whether it was fitted on healthy subjects."""
    dice_d: float
    """Of the test part, at the threshold of the threshold part; in [0, 1]."""
    upper_bound_dice: float
    """Best of all thresholds on the test part; in [0, 1]."""
    auprc: float
    """Average precision over all voxels of the test part; in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How plain methods stand on a cohort."""

    standings: tuple[Standing, ...]
    """One a method."""
    num_threshold: int
    """Subjects that thresholds were fitted on."""
    num_test: int
    """Subjects that the figures are of."""
    num_healthy: int
    """Healthy subjects that were learned from; 0 where none were given."""

    @property
    def warning(self) -> str:
        """Why methods can hardly be told apart on the cohort; empty where they can.

        The rule: Dice_D of x or 1 - x is at least `SOLVED`, or at least `NOTICED` and above that
        of every plain method that learns from healthy subjects, where there are any; or, at the
        other end, no plain method, one that learns among them, has a Dice_D of `UNSEEN`.
        """
        raw = max((s for s in self.standings if not s.learns), key=lambda s: s.dice_d)
        learned = max((s.dice_d for s in self.standings if s.learns), default=None)
        if raw.dice_d >= SOLVED:
            why = f"at least {SOLVED:g}"
        elif learned is not None and raw.dice_d >= NOTICED and raw.dice_d > learned:
            why = f"above all that learn from healthy subjects (best {learned:.3f})"
        elif learned is not None and max(raw.dice_d, learned) < UNSEEN:
            return (
                f"no plain method finds these lesions: the best Dice_D is "
                f"{max(raw.dice_d, learned):.3f}; methods may not be told apart on this cohort: "
                "make the change larger (--min-change), take larger lesions or a finer --size"
            )
        else:
            return ""
        return (
            f"raw intensity solves this cohort: {raw.method} has Dice_D {raw.dice_d:.3f}, {why}; "
            "methods cannot be told apart on it: make the change smaller (--max-change) or take "
            "other masks"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"warning": self.warning}

    def __str__(self) -> str:
        lines = [
            f"plain methods on {self.num_test} test subjects, thresholds from "
            f"{self.num_threshold}, {self.num_healthy} healthy subjects learned from:",
            f"  {'':12}{'Dice_D':>8}{'bound':>8}{'AUPRC':>8}",
        ]
        lines += [
            f"  {s.method:12}{s.dice_d:8.3f}{s.upper_bound_dice:8.3f}{s.auprc:8.3f}"
            for s in self.standings
        ]
        if not self.num_healthy:
            lines.append("  mean image, z-score and PCA need healthy scans: pass --healthy COHORT")
        if self.warning:
            lines.append(f"  warning: {self.warning}")
        return "\n".join(lines)


def learned_methods(num_healthy: int) -> dict[str, MethodSettings]:
    """The plain methods that learn from that many healthy subjects."""
    if num_healthy < 2:
        return {}
    num = min(16, num_healthy)
    return {
        "mean image": MeanImage.Settings(),
        "z-score": ZScore.Settings(),
        f"PCA-{num}": PCA.Settings(num_components=num),
    }


def calibrate(
    threshold: Iterable[Example],
    test: Iterable[Example],
    healthy: Sequence[NDArray] = (),
    *,
    config: EvaluateConfig | None = None,
) -> Calibration:
    """Score the plain methods.

    Args:
        threshold: Subjects that thresholds are fitted on, by the best Dice of all: Bengs' greedy
            search can miss it, and the warning with it. Consumed one by one.
        test: Others, that the figures are of; consumed one by one.
        healthy: Volumes to learn from, each (Z, Y, X) in [0, 1]; may be empty.
        config: How scores are made and cleaned; as everywhere by default.

    Raises:
        EvaluationError: a part is empty or without a lesion voxel, a subject stands in both, or
            grids differ.
    """
    config = config or EvaluateConfig()
    learned = learned_methods(len(healthy))
    methods = {**PLAIN, **learned}
    fitted: dict[str, Detector] = {}
    parts = []
    for part in (threshold, test):
        counted: dict[str, list[tuple[str, SubjectCounts]]] = {name: [] for name in methods}
        for one in part:
            if not fitted:
                fitted = {n: _fit(m, one.image.shape, healthy) for n, m in methods.items()}
            for name, detector in fitted.items():
                ((_, counts),) = count_volumes(detector, {0: one}, config, torch.device("cpu"))
                counted[name].append((one.id, counts))
        parts.append(counted)
    ids = [[name for name, _ in part[next(iter(methods))]] for part in parts]
    if both := set(ids[0]) & set(ids[1]):
        raise EvaluationError(f"subjects {sorted(both)[:5]} are in both parts of a calibration")
    return Calibration(
        standings=tuple(
            _standing(name, name in learned, parts, fitted.get(name)) for name in methods
        ),
        num_threshold=len(ids[0]),
        num_test=len(ids[1]),
        num_healthy=len(healthy),
    )


def _fit(method: MethodSettings, shape: tuple[int, ...], healthy: Sequence[NDArray]) -> Detector:
    z, y, x = shape
    detector = build(method, (z, y, x))
    if isinstance(detector, StreamDetector):
        for volume in healthy:
            if volume.shape != shape:
                raise EvaluationError(
                    f"healthy volumes have shape {volume.shape}, lesioned ones {shape}; expected "
                    "cohorts prepared alike"
                )
            detector.update(torch.from_numpy(np.array(volume, np.float32))[None])
        detector.finish()
    return detector.eval()


def _standing(
    name: str,
    learns: bool,
    parts: Sequence[dict[str, list[tuple[str, SubjectCounts]]]],
    detector: Detector | None,
) -> Standing:
    bounds = (0.0, 1.0) if detector is None else detector.score_range
    fit = ThresholdPart.from_subjects(parts[0][name], name="threshold", score_range=bounds)
    test = TestPart.from_subjects(parts[1][name], name="test", score_range=bounds)
    figures = {
        key: np.nan if value is None else value
        for key, value in compute_metrics(test, best_dice(fit)).items()
    }
    return Standing(
        method=name,
        learns=learns,
        dice_d=figures["dice_d"],
        upper_bound_dice=figures["upper_bound_dice"],
        auprc=figures["auprc"],
    )


def calibrate_cohort(cohort: Cohort, healthy: Cohort | None = None) -> Calibration:
    """Score the plain methods on a sealed cohort with lesions, or on an even sample of a large one.

    Args:
        cohort: With lesions and the parts threshold and test.
        healthy: Prepared alike, to learn from its part train; None leaves out what learns.

    Raises:
        StoreError: a part is missing.
        EvaluationError: see `calibrate`.
    """
    volumes: list[NDArray] = []
    if healthy is not None:
        # float16 as stored: 200 volumes of 64^3 are 100 MB.
        rows = _sample(healthy.rows("train"), MAX_HEALTHY)
        volumes = [healthy.read("image", row, row + 1)[0] for row in rows]
    return calibrate(_examples(cohort, "threshold"), _examples(cohort, "test"), volumes)


def write_calibration(cohort: Cohort, healthy: Cohort | None = None) -> Calibration | None:
    """Calibrate a cohort and keep the figures in its folder, beside its seal and apart from it.

    Returns:
        What was found; None where the cohort has no lesions or not both parts, so that there is
        nothing to fit a threshold on or nothing to report on.
    """
    if not cohort.has_lesion or not {"threshold", "test"} <= set(cohort.subjects["split"]):
        return None
    calibration = calibrate_cohort(cohort, healthy)
    origin = {
        "cohort": cohort.fingerprint,
        "healthy": healthy.fingerprint if healthy is not None else "",
    }
    with storage_errors(cohort.url):
        files.write_json(files.join(cohort.url, FILE), origin | calibration.to_dict())
    return calibration


def _sample(rows: NDArray[np.int64], most: int) -> list[int]:
    """At most this many rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)
    return [int(row) for row in rows[places]]


def _examples(cohort: Cohort, split: Split) -> Iterator[Example]:
    names = dict(zip(cohort.subjects["row"], cohort.subjects["id"], strict=True))
    for row in _sample(cohort.rows(split), MAX_LESIONED):
        yield read_example(cohort, row, names[row])
