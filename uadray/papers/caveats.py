"""Where a row of ours is not a paper's, in words: data, preparation, method, fit, evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uadray.config import Experiment, learns
from uadray.methods import NAMED, Learned
from uadray.papers.study import CohortNeed, Entry, Study
from uadray.store import Cohort
from uadray.strategies import strategy


@dataclass(frozen=True, kw_only=True)
class Caveat:
    """One difference, and the rows of ours that it is of."""

    text: str
    """In words."""
    roles: frozenset[str] = frozenset()
    """Cohorts whose rows it is of; empty for all."""
    labels: frozenset[str] = frozenset()
    """Methods whose rows it is of, as printed; empty for all."""

    def of(self, entry: Entry) -> bool:
        """Whether a row or point has this difference; one over all cohorts has each of them."""
        role = not self.roles or not entry.role or entry.role in self.roles
        return role and (not self.labels or entry.label in self.labels)


PHANTOM = "phantom://"
"""Begin of the source of an invented subject."""

SEMI_SYNTHETIC = "semi-synthetic"
"""Begin of the note of a subject whose lesion was put into a healthy scan."""


def kind(cohort: Cohort) -> str:
    """`phantom`, `semi-synthetic` or `scans`."""
    table = cohort.subjects
    if table["source"].str.startswith(PHANTOM).any():
        return "phantom"
    if table["notes"].fillna("").str.contains(SEMI_SYNTHETIC).any():
        return "semi-synthetic"
    return "scans"


def differences(need: CohortNeed, cohort: Cohort) -> list[str]:
    """How a cohort differs from the one that a paper was evaluated on.

    Args:
        need: What the paper used.
        cohort: What stands in its place.
    """
    head = f"{need.role}: the paper has {need.data} ({need.modality})"
    counts = _counts(cohort, ("threshold", "test"))
    what = {
        "phantom": "these are phantoms: invented brains and lesions, no patients",
        "semi-synthetic": "these are healthy scans with semi-synthetic lesions, no patients",
        "scans": "these are other scans, or the same ones: the store does not know which set "
        "they are of",
    }[kind(cohort)]
    told = [f"{head}; {what}."]
    modalities = sorted(set(cohort.subjects["modality"]))
    if kind(cohort) == "phantom":
        if need.modality != "T1":
            told.append(f"{need.role}: the phantoms look like T1, not like {need.modality}.")
        drawn = sorted({note.split(", ")[-1] for note in cohort.subjects["notes"] if note})
        if drawn and need.role not in drawn:
            told.append(f"{need.role}: lesions of kind {', '.join(drawn)} stand in for it.")
    elif {_plain(m) for m in modalities} != {_plain(need.modality)}:
        told.append(f"{need.role}: of modality {', '.join(modalities)}, not {need.modality}.")
    wanted = (need.num_threshold, need.num_test)
    if any(n is not None and n != count for n, count in zip(wanted, counts, strict=True)):
        asked = " and ".join("?" if n is None else str(n) for n in wanted)
        told.append(
            f"{need.role}: {counts[0]} subjects to fit the threshold and {counts[1]} to test; the "
            f"paper has {asked}."
        )
    return told


def healthy_differences(study: Study, cohort: Cohort | None) -> list[str]:
    """How the healthy cohort differs from what a paper trained on."""
    if cohort is None:
        return []
    train, validation = _counts(cohort, ("train", "validation"))
    of = {
        "phantom": "phantoms (invented brains)",
        "semi-synthetic": "scans, some with semi-synthetic lesions",
        "scans": "scans",
    }[kind(cohort)]
    z, y, x = cohort.shape
    return [
        f"healthy: the paper has {study.training}; here {train} {of} to learn from and "
        f"{validation} to choose the epoch, on a grid of {z} x {y} x {x}."
    ]


PREPARATION: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "bengs2021": {
        "shape": ([64, 64, 64], "downsamples to 64 x 64 x 64"),
        "spacing_mm": (1.0, "resamples to 1 mm"),
        "register": ("none", "registers nothing"),
        "denoise": (True, "denoises"),
        "correct_bias": (False, "names no bias correction"),
    },
    "baur2018": {
        "register": ("SRI24", "registers to the SRI24 atlas"),
        "skull_strip": ("robex", "strips with ROBEX"),
        "denoise": (True, "denoises by curvature flow"),
        "correct_bias": (False, "names no bias correction"),
    },
    "behrendt2025": {
        "shape": ([50, 96, 96], "takes 100 slices at 2 mm, 50 x 96 x 96"),
        "register": ("SRI24", "registers to the SRI24 atlas"),
        "denoise": (True, "denoises by curvature flow"),
        "correct_bias": (True, "corrects the bias field by N4"),
    },
    "frotscher2025": {
        "register": ("SRI24", "registers to the SRI24 atlas"),
        "percentiles": ([0.0, 100.0], "clips no intensities"),
        "denoise": (False, "names no denoising"),
    },
    "meissen2021": {
        "register": ("SRI24", "registers to the SRI24 atlas, by the T1 scans"),
        "skull_strip": ("robex", "strips with ROBEX"),
        "percentiles": ([0.0, 100.0], "clips no intensities"),
        "denoise": (False, "names no denoising"),
        "mask_threshold": (0.9, "cuts the registered masks at 0.9"),
        "resize": ("nearest", "resizes by the nearest voxel"),
    },
}
"""What each paper does to its scans, by the fields of a preparation: the value, and words."""


def preparation_differences(paper: str, role: str, cohort: Cohort) -> list[str]:
    """Steps of a cohort's preparation that are not the paper's; phantoms have none to compare."""
    recorded = (cohort.attributes.get("plan") or {}).get("config")
    if kind(cohort) == "phantom":
        return []
    if not recorded:
        return [f"{role}: how the cohort was prepared is not recorded."]
    texts = []
    for name, (value, words) in PREPARATION.get(paper, {}).items():
        ours = recorded.get(name)
        same = str(ours).startswith(value) if isinstance(value, str) else ours == value
        if not same:
            said = "not recorded" if ours is None else ours
            texts.append(f"{role}: the paper {words}; here {name} is {said}.")
    return texts


EVALUATION: Mapping[str, Sequence[str]] = {
    "behrendt2025": (
        "The paper's figures are means over five folds of its training, and their deviations are "
        "over the folds; its AUPRC is a mean over persons, which no figure of ours is.",
        "The paper's code erodes the brain mask before the median, its text after it: before it "
        "here.",
    ),
    "frotscher2025": (
        "The figures are digitised from a picture, to about 0.001; whether with the median filter "
        "or without, and at which of two thresholds, is not said. `frotscher2025-raw` has none.",
        "The benchmark's median filter has an even size of 4 voxels of 1 mm, which moves the map "
        "by half a voxel: here 3.",
        "It takes two thresholds from validation: that of the best Dice, here of the fitting part, "
        "and that of 1 % false positives on healthy voxels: --threshold-rule healthy_fpr_1.",
    ),
    "bengs2021": (
        "The paper erodes the brain mask slightly and filters by a median, neither of a stated "
        "size: here one iteration for 25 rows and 5 x 5 x 5, as in its laboratory's later code.",
        "Which subjects fit the paper's threshold and which it tests is not published: both are "
        "drawn at random, here by a seed.",
    ),
    "baur2018": (
        "The paper's median filter has no stated size: here 5 x 5 x 5, as in its authors' later "
        "study.",
        "The paper's 20 slices lie around the midline of the SRI24 atlas; here around the middle "
        "of each brain's box.",
        "The paper's seconds are for one slice on one graphics card of 2017; here on the hardware "
        "that the run folder names.",
    ),
    "meissen2021": (
        "The paper counts its slices in the space of the SRI24 atlas; here in that of the cohort's "
        "grid.",
    ),
}
"""What of each paper's evaluation it leaves open or cannot be had, however it is prepared."""

_PRINTED = (
    "The paper prints what the methods' own papers or the comparative study report, of fits on "
    "scans that are not public; here each is fitted on the healthy cohort that is given."
)


def method_caveats(study: Study, paper: str) -> list[Caveat]:
    """Differences of the methods, their erasing and their fits, for the rows that have them."""
    caveats: list[Caveat] = []
    made = [(entry.label, entry.experiment) for entry in study.entries if entry.experiment]

    def add(text: str, chosen: Iterable[str]) -> None:
        labels = frozenset(chosen)
        if text and labels:
            everyone = labels == {entry.label for entry in study.entries}
            caveats.append(Caveat(text=text, labels=frozenset() if everyone else labels))

    deviations: dict[str, list[str]] = {}
    for label, one in made:
        deviations.setdefault(_deviations(one), []).append(label)
    for text, labels in deviations.items():
        add(text, labels)
    learned = [(label, one) for label, one in made if learns(one)]
    erased = [(label, one) for label, one in learned if strategy(one.erasing) is not None]
    add(
        "Boxes are clipped at the border, of which the paper says nothing: of a nominal mean of "
        "13 % cubes erase 8.4 % and patches 10.4 %, so that 3D is erased less than 2D.",
        (label for label, one in erased if "border" in _entry(one).settings),
    )
    add(
        'Noise is drawn from the brain\'s voxels; the paper has "the image pixel distribution".',
        (label for label, one in erased if one.erasing.fill == "noise"),
    )
    if paper == "bengs2021" and learned:
        epochs = " or ".join(str(n) for n in sorted({one.fit.epochs for _, one in learned}))
        add(
            "The paper tunes the number of epochs of each network and does not print it; here the "
            f"best of {epochs} by reconstruction of healthy scans.",
            (label for label, _ in learned),
        )
    add(
        "Gradients longer than 1 are scaled down; no paper names a limit.",
        (label for label, one in learned if "Gradients" not in _deviations(one)),
    )
    if paper == "meissen2021":
        add(_PRINTED, (label for label, _ in learned))
    return caveats


def _entry(one: Experiment) -> Any:
    match = strategy(one.erasing)
    assert match is not None
    return match


def _deviations(one: Experiment) -> str:
    """What is said of the method in the registry."""
    method = one.method
    name = method.label or (f"{method.ndim}D-None" if isinstance(method, Learned) else "")
    return NAMED[name].deviations if name in NAMED else ""


def _counts(cohort: Cohort, splits: Iterable[str]) -> list[int]:
    return [int((cohort.subjects["split"] == split).sum()) for split in splits]


def _plain(modality: str) -> str:
    return modality.lower().removesuffix("w")
