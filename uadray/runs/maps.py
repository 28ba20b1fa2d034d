"""Maps from outside in a run folder: `maps/`, one file a volume on the cohort's grid, and a list.

A file is named by its row and content, so that a call that is refused takes nothing from the run.

`maps/index.json` is written last and says of each person of the cohort which file the map came
from, or why there is none. `checkpoint/` holds what the maps are known by, so that scores, frozen
thresholds and figures of other maps are known to be of others, as with any weights.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray import files, npz
from uadray.errors import EvaluationError, RunError
from uadray.methods.outside import OutsideMaps
from uadray.runs.folder import Run
from uadray.runs.learned import Match
from uadray.runs.reading import need, read_object
from uadray.store import Cohort

MAPS, INDEX = "maps", "index.json"
"""The folder in a run folder, and its list."""

_AGAIN = "run the same jobs/evaluate.py --maps again, which reads the maps again"


@dataclass(frozen=True, kw_only=True)
class MapStore:
    """The kept maps of one run; pickles small."""

    run_url: str

    def index(self) -> dict[str, Any] | None:
        """What `index.json` says; None where there is none.

        Raises:
            RunError: it is damaged or cannot be read.
        """
        place = files.join(self.run_url, MAPS, INDEX)
        index = read_object(place, _AGAIN)
        if index is not None:
            need(index, ("cohort", "digest", "maps", "absent"), place)
        return index

    def write_index(self, index: Mapping[str, Any]) -> None:
        """Say which maps count."""
        files.write_json(files.join(self.run_url, MAPS, INDEX), index)

    def write(self, row: int, values: NDArray[np.float32]) -> str:
        """Keep the map (Z, Y, X) of a row beside any other of it; returns its file's digest."""
        content = npz.pack(map=values)
        digest = hashlib.sha256(content).hexdigest()
        files.write_bytes(self._place(row, digest), content)
        return digest

    def keep_listed(self) -> None:
        """Remove maps that the list does not name: those before, or of a call that was refused."""
        maps = (self.index() or {"maps": ()})["maps"]
        listed = {self._place(int(one["row"]), str(one["digest"])) for one in maps}
        folder = files.join(self.run_url, MAPS)
        for name in files.list_names(folder):
            place = files.join(folder, name)
            if name != INDEX and place not in listed:
                files.remove_file(place)

    def read(self, row: int, digest: str) -> NDArray[np.float32]:
        """The map (Z, Y, X) of a row.

        Raises:
            EvaluationError: it is gone, or is not the one of that digest.
        """
        place = self._place(row, digest)
        try:
            content = files.read_bytes(place)
        except FileNotFoundError:
            raise EvaluationError(f"{place} is gone: {_AGAIN}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise EvaluationError(f"{place} is damaged: {_AGAIN}")
        return np.asarray(npz.unpack(content)["map"], np.float32)

    def _place(self, row: int, digest: str) -> str:
        return files.join(self.run_url, MAPS, f"{row:07d}-{digest[:16]}.npz")


class KeptMaps:
    """The maps of a run by the id of their volume, as a detector asks for them."""

    def __init__(self, run_url: str) -> None:
        self._store = MapStore(run_url=run_url)
        index = self._store.index()
        if index is None:
            raise RunError(f"{run_url} holds no list of its maps: {_AGAIN}")
        self._maps = {str(one["id"]): one for one in index["maps"]}
        self._digest = str(index["digest"])

    def check(self, digest: bytes) -> None:
        """See that they are those that the run's checkpoint knows.

        Raises:
            RunError: they are not, as after a job that was cut short.
        """
        if digest.hex() != self._digest:
            raise RunError(f"{self._store.run_url} holds maps that were read in part: {_AGAIN}")

    def __call__(self, name: str) -> NDArray[np.float32] | None:
        """The map (Z, Y, X) of a volume; None where there is none that could be used."""
        if (one := self._maps.get(name)) is None:
            return None
        return self._store.read(int(one["row"]), str(one["digest"]))


def has_maps(run: Run) -> bool:
    """Whether a run holds maps from outside."""
    return isinstance(run.experiment.method, OutsideMaps.Settings)


def match_maps(run: Run, cohort: Cohort) -> Match:
    """How maps from outside go with a cohort.

    Raises:
        EvaluationError: they are of another cohort.
        RunError: their list is absent or damaged.
    """
    index = MapStore(run_url=run.url).index()
    if index is None:
        raise RunError(f"{run.url} holds no list of its maps: {_AGAIN}")
    if index["cohort"] != cohort.fingerprint or run.cohort_fingerprint != cohort.fingerprint:
        raise EvaluationError(
            f"{run.url} holds maps of the volumes of {run.cohort_url} ({run.cohort_fingerprint}), "
            f"and {cohort.url} ({cohort.fingerprint}) is another cohort: bring its maps into a run "
            "of their own with --maps"
        )
    absent = [str(one["id"]) for one in index["absent"]]
    notes = ["maps from outside: what their method was fitted on is not known, so not compared"]
    if absent:
        total = len(absent) + len(index["maps"])
        shown = ", ".join(absent[:5]) + f" and {len(absent) - 5} more" * (len(absent) > 5)
        notes.append(
            f"no usable map of {len(absent)} of {total} scans ({shown}): they count as scans in "
            "which nothing was found, so that figures are over the same people as other methods'"
        )
    for sentence in index.get("remarks", ()):
        notes.append(str(sentence))
    return Match(notes=tuple(notes), absent=tuple(absent))
