"""What a run learned from: modality, preparation and people, compared with a tested cohort.

`config.json` records the first two, `people.npz` digests of the scans that were learned from
(training and validation part), so that both outlive the cohort. Subject ids such as `sub-01` are
the same in many data sets: a person is known by the content of a scan, by its file, or by the id
within one data set.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from uadray import files, npz
from uadray.config import Experiment
from uadray.data.sampling import fit_rows
from uadray.errors import RunError, StoreError
from uadray.methods import is_fitted
from uadray.store import Cohort, open_cohort

PEOPLE = "people.npz"
"""In a run folder: digests of who was learned from."""

TOLERANCE = 0.02
"""Relative, between the voxels of two grids that count as the same: rounding alone."""

MAX_AFFINES = 4096
"""Scans whose voxels are looked at; all of a cohort have the same but for the largest brains."""

_FREE = {
    "strip": {"method", "min_ml", "max_ml"},
    "pad_to_extent": {"grow", "max_cut"},
    "register": {"grow", "max_cut"},
}
"""Parameters of steps that decide which scans are accepted, or where their mask comes from."""

_GENERIC = re.compile(
    r"(sub|subj|subject|patient|pat|participant|person|case|scan|id|img|image|vol|volume|healthy|"
    r"control|hc|[a-z])?[-_ .]?\d{1,4}",
    re.IGNORECASE,
)
"""Ids that many data sets have."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How the scans of a cohort came about."""

    modality: tuple[str, ...]
    """Of its scans, each once."""
    steps: tuple[Mapping[str, Any], ...] | None
    """Of the preparation, as the cohort's plan lists them; None where it does not."""
    voxel_mm: tuple[float, float, float]
    """Median edge lengths of the grid's voxels along X, Y and Z."""

    def to_json(self) -> dict[str, Any]:
        """As `config.json` records it."""
        return {
            "modality": list(self.modality),
            "steps": None if self.steps is None else [dict(step) for step in self.steps],
            "voxel_mm": list(self.voxel_mm),
        }


@dataclass(frozen=True, kw_only=True)
class People:
    """Whose scans a cohort has: four digests a scan, 0 where one is not known."""

    content: NDArray[np.uint64]
    """Of the voxels of its image."""
    source: NDArray[np.uint64]
    """Of the path of its file."""
    person: NDArray[np.uint64]
    """Of the subject's id within its data set."""
    subject: NDArray[np.uint64]
    """Of the subject's id alone."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a run and a cohort that it is tested on go together."""

    differences: tuple[str, ...] = ()
    """Another modality or another preparation, each in a few words."""
    seen: tuple[str, ...] = ()
    """Scans of the cohort that were learned from."""
    likely: tuple[str, ...] = ()
    """Scans of people that were learned from, as far as their ids tell."""
    notes: tuple[str, ...] = ()
    """What could not be compared, or is taken for coincidence."""
    absent: tuple[str, ...] = ()
    """Scans of the cohort that the run has no scores of; they count as without any finding."""

    @property
    def marks(self) -> list[str]:
        """What must stand beside every figure where the user insists on it."""
        if not self.likely:
            return list(self.differences)
        return [*self.differences, f"{len(self.likely)} of its scans may be of people learned from"]

    def to_json(self) -> dict[str, list[str]]:
        """As an evaluation records it."""
        return {
            "differences": list(self.differences),
            "people": list(self.likely),
            "notes": list(self.notes),
        } | ({"absent": list(self.absent)} if self.absent else {})


def origin_of(cohort: Cohort) -> Origin:
    """Modality, preparation and grid of a cohort."""
    table = cohort.columns("modality", "affine")
    affines = np.array([json.loads(a) for a in table["affine"][:MAX_AFFINES]])[:, :3, :3]
    x, y, z = np.median(np.linalg.norm(affines, axis=1), axis=0).tolist()
    steps = cohort.attributes["plan"].get("steps")
    return Origin(
        modality=tuple(sorted(set(map(str, table["modality"])))),
        steps=None if steps is None else tuple(steps),
        voxel_mm=(x, y, z),
    )


def people_of(cohort: Cohort, rows: Iterable[int] | None = None) -> People:
    """Whose scans some rows of a cohort are, or all."""
    return _people(_scans(cohort, rows))


def record_people(url: str, cohort: Cohort, experiment: Experiment) -> None:
    """Leave in the run folder at `url` who the experiment learns from on this cohort."""
    if not is_fitted(experiment.method):
        return
    rows = np.concatenate(fit_rows(cohort, experiment.fit))
    files.write_bytes(files.join(url, PEOPLE), npz.pack(**vars(people_of(cohort, rows))))


def join_people(url: str, members: Iterable[str]) -> None:
    """Leave in the run folder at `url` who the runs at some others learned from, each scan once.

    Where one of them does not say, as a run of an earlier version, nothing is left: the cohort
    itself is asked then.
    """
    recorded = [_recorded_people(one) for one in members]
    known = [one for one in recorded if one is not None]
    if len(known) < len(recorded):
        return
    digests = [np.stack(list(vars(one).values()), axis=1) for one in known]
    scans = np.unique(np.concatenate(digests), axis=0)
    people = People(**dict(zip(vars(known[0]), scans.T, strict=True)))
    files.write_bytes(files.join(url, PEOPLE), npz.pack(**vars(people)))


def compare_cohorts(healthy: Cohort, cohort: Cohort) -> Match:
    """How a cohort that is learned from and one that is tested on go together."""
    rows = [*_rows(healthy, "train"), *_rows(healthy, "validation")]
    return _match(origin_of(healthy), people_of(healthy, rows), cohort)


def compare_run(
    url: str,
    config: Mapping[str, Any],
    experiment: Experiment,
    cohort: Cohort,
    *,
    people: bool = True,
) -> Match:
    """How a run and a cohort that it is tested on go together.

    Args:
        url: The run folder.
        config: Its `config.json`.
        experiment: Of the run.
        cohort: What it is tested on.
        people: Whether to compare people, too.

    Raises:
        RunError: `people.npz` is damaged or cannot be read.
    """
    if not is_fitted(experiment.method):
        return Match()
    origin, learned = _recorded_origin(config), _recorded_people(url)
    if origin is None or (people and learned is None):
        # Fitted before this was recorded; the cohort itself may still be there.
        healthy = _cohort_of(config)
        if healthy is not None:
            origin = origin or origin_of(healthy)
            rows = [*_rows(healthy, "train"), *_rows(healthy, "validation")]
            learned = learned or people_of(healthy, rows)
    return _match(origin, learned, cohort, compare_people=people)


def _match(
    origin: Origin | None, learned: People | None, cohort: Cohort, *, compare_people: bool = True
) -> Match:
    notes: list[str] = []
    differences: list[str] = []
    if origin is None:
        notes.append("modality and preparation of the fit are not recorded, so not compared")
    else:
        differences = _differences(origin, origin_of(cohort), notes)
    seen, likely = list[str](), list[str]()
    if not compare_people:
        pass
    elif learned is None:
        notes.append("the people that were learned from are not recorded, so not compared")
    else:
        # Of a healthy cohort only the controls are tested; the others may be learned from.
        table = _scans(cohort, None if cohort.has_lesion else _rows(cohort, "test"))
        seen, likely = _compare_people(learned, table, notes)
    return Match(
        differences=tuple(differences), seen=tuple(seen), likely=tuple(likely), notes=tuple(notes)
    )


def _differences(there: Origin, here: Origin, notes: list[str]) -> list[str]:
    differences = []
    theirs, ours = set(there.modality) - {""}, set(here.modality) - {""}
    if not theirs or not ours:
        notes.append("a modality is not recorded, so not compared")
    elif not ours <= theirs:
        differences.append(
            f"fitted on {', '.join(sorted(theirs))}, tested on {', '.join(sorted(ours))}"
        )
    if there.steps is None or here.steps is None:
        notes.append("steps of the preparation are not recorded, so not compared")
    else:
        differences += _different_steps(there.steps, here.steps)
    if not np.allclose(there.voxel_mm, here.voxel_mm, rtol=TOLERANCE, atol=0):
        theirs_mm, ours_mm = (
            " x ".join(f"{edge:.2f}" for edge in one.voxel_mm) for one in (there, here)
        )
        differences.append(f"fitted on voxels of {theirs_mm} mm, tested on {ours_mm} mm")
    return differences


def _different_steps(
    there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What one preparation does otherwise than another; a semi-synthetic lesion is no step."""
    theirs, ours = ({str(s.get("step")): s for s in steps} for steps in (there, here))
    parts = []
    for one, other, where in ((theirs, ours, "fit"), (ours, theirs, "cohort")):
        if alone := [name for name in one if name not in other and name != "insert_lesion"]:
            parts.append(f"{', '.join(alone).replace('_', ' ')} only in the {where}")
    for name in theirs:
        if name in ours and name != "insert_lesion":
            a, b = theirs[name], ours[name]
            # What one of them does not record came with another version.
            keys = sorted((set(a) & set(b)) - {"step"} - _FREE.get(name, set()))
            parts += [
                f"{name} {key} {_words(a[key])} in the fit, {_words(b[key])} here".replace("_", " ")
                for key in keys
                if a[key] != b[key]
            ]
    return [f"prepared otherwise: {'; '.join(parts)}"] if parts else []


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', '-')} {_words(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (" to " if len(value) == 2 else " x ").join(map(_words, value))
    return str(value)


def _compare_people(
    learned: People, table: pd.DataFrame, notes: list[str]
) -> tuple[list[str], list[str]]:
    """Ids of scans that were learned from, and of those that are likely of the same people."""
    here = _people(table)
    ids, subjects = table["id"].astype(str).tolist(), table["subject"].astype(str).tolist()

    def shared(key: str) -> NDArray[np.bool_]:
        mine = getattr(here, key)
        return np.isin(mine, getattr(learned, key)) & (mine != 0)

    same_content, same_file = shared("content"), shared("source")
    # The file at a path may be another one by now; contents tell, where both are known.
    replaced = same_file & ~same_content & (here.content != 0) & bool(learned.content.all())
    seen = same_content | (same_file & ~replaced)
    same_person, same_id = shared("person") & ~seen, shared("subject") & ~seen
    own = np.array([_GENERIC.fullmatch(subject) is None for subject in subjects], bool)
    likely = same_person | (same_id & own)
    chance = same_id & ~likely
    if chance.any():
        names = sorted({s for s, is_one in zip(subjects, chance, strict=True) if is_one})
        notes.append(
            f"{len(names)} subject ids ({', '.join(names[:3])}{', ...' * (len(names) > 3)}) also "
            "occur in the cohort of the fit, in another data set: taken for other people"
        )
    if not (here.content.all() and learned.content.all()) and not _made(table):
        notes.append("contents of scans are not recorded: people were compared by id and file")
    return (
        [one for one, is_one in zip(ids, seen, strict=True) if is_one],
        [one for one, is_one in zip(ids, likely, strict=True) if is_one],
    )


def _made(table: pd.DataFrame) -> bool:
    """Whether all scans are phantoms, which are made and not read."""
    return bool(table["source"].str.startswith("phantom://").all())


def _scans(cohort: Cohort, rows: Iterable[int] | None) -> pd.DataFrame:
    wanted = ("row", "id", "subject", "source")
    try:
        table = cohort.columns(*wanted, "image_digest")
    except StoreError:  # of an earlier version
        table = cohort.columns(*wanted).assign(image_digest="")
    table = table.fillna("")
    return table if rows is None else table[table["row"].isin([int(row) for row in rows])]


def _people(table: pd.DataFrame) -> People:
    subjects, sources = table["subject"].astype(str), table["source"].astype(str)
    persons = [
        f"{data_set(source, subject)}\0{subject}" if source and subject else ""
        for source, subject in zip(sources, subjects, strict=True)
    ]
    return People(
        content=_digests(table["image_digest"]),
        source=_digests(sources),
        person=_digests(persons),
        subject=_digests(subjects),
    )


def data_set(source: str, subject: str) -> str:
    """The folder of the data set that a scan lies in.

    It is what stands before the subject's own folder in the path, or else the file's folder.
    """
    *folders, _ = source.split("/")
    return "/".join(folders[: folders.index(subject)] if subject in folders else folders)


def _digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.array(
        [
            int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])
            if text
            else 0
            for text in texts
        ],
        np.uint64,
    )


def _rows(cohort: Cohort, split: str) -> list[int]:
    table = cohort.columns("row", "split")
    return [int(row) for row in table.loc[table["split"] == split, "row"]]


def _recorded_origin(config: Mapping[str, Any]) -> Origin | None:
    recorded = config["cohort"].get("origin")
    try:
        x, y, z = recorded["voxel_mm"]
        steps = recorded["steps"]
        return Origin(
            modality=tuple(map(str, recorded["modality"])),
            steps=None if steps is None else tuple(dict(step) for step in steps),
            voxel_mm=(float(x), float(y), float(z)),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _recorded_people(url: str) -> People | None:
    place = files.join(url, PEOPLE)
    try:
        return People(**npz.unpack(files.read_bytes(place)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{place} cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError) as error:
        raise RunError(f"{place} is damaged ({error}): restore it from a copy") from None


def _cohort_of(config: Mapping[str, Any]) -> Cohort | None:
    try:
        cohort = open_cohort(str(config["cohort"]["url"]))
    except (StoreError, KeyError, OSError):
        return None
    return cohort if cohort.fingerprint == config["cohort"].get("fingerprint") else None
