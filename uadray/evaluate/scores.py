"""Kept scores and counts of one run on one cohort, in the run folder.

`scores/<cohort>.zarr` holds `scores` (N, Z, Y, X) uint16, one chunk a subject, and
`counts/00017.npz`, one file a subject, written after its chunk: a subject with that file is done.
Every metric can be computed from the counts alone.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from uadray import files
from uadray.config import to_json
from uadray.errors import EvaluationError
from uadray.evaluate.counts import CohortCounts, SubjectCounts
from uadray.evaluate.postprocess import PostprocessConfig
from uadray.store import Cohort, zarr_store
from uadray.train.run import Run


@dataclass(frozen=True, kw_only=True)
class ScoreStore:
    """Where the scores of one run on one cohort are kept; pickles small."""

    url: str
    score_range: tuple[float, float]

    @classmethod
    def create(
        cls,
        run: Run,
        cohort: Cohort,
        score_range: tuple[float, float],
        config: PostprocessConfig,
    ) -> Self:
        """Lay out the store, or take up one of the same run, cohort and post-processing.

        Scores under another post-processing are dropped and made anew.

        Raises:
            EvaluationError: scores of another cohort of the same name are there.
        """
        url = files.join(run.url, "scores", f"{cohort.name}.zarr")
        attributes = {
            "cohort": cohort.fingerprint,
            "run": run.experiment.fingerprint,
            "fitted_on": run.cohort_fingerprint,
            "score_range": list(score_range),
            "postprocess": to_json(config),
        }
        if files.exists(files.join(url, "zarr.json")):
            old = files.read_json(files.join(url, "zarr.json"))["attributes"].get("uadray", {})
            if old.get("cohort", cohort.fingerprint) != cohort.fingerprint:
                raise EvaluationError(
                    f"{url} holds scores of another cohort named {cohort.name!r} "
                    f"({old['cohort']}, not {cohort.fingerprint}): rename the cohort's folder or "
                    "remove those scores"
                )
            if old == attributes:
                return cls(url=url, score_range=score_range)
        files.remove(url)
        group = zarr.create_group(zarr_store(url, read_only=False), zarr_format=3)
        group.create_array(
            "scores",
            shape=(int(cohort.attributes["num_rows"]), *cohort.shape),
            dtype="uint16",
            chunks=(1, *cohort.shape),
            compressors=BloscCodec(cname="lz4", shuffle="shuffle"),
            dimension_names=("volume", "z", "y", "x"),
        )
        group.update_attributes({"uadray": attributes})
        return cls(url=url, score_range=score_range)

    def done(self) -> set[int]:
        """Rows that are scored and counted."""
        names = files.list_names(files.join(self.url, "counts"))
        return {int(name.removesuffix(".npz")) for name in names if name.endswith(".npz")}

    def write(self, row: int, levels: np.ndarray, counts: SubjectCounts) -> None:
        """Keep one subject's levels (Z, Y, X) uint16 and counts."""
        self._array("r+")[row] = levels
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(counts))
        files.write_bytes(self._counts_url(row), buffer.getvalue())

    def levels(self, row: int) -> np.ndarray:
        """One subject's kept levels, (Z, Y, X) uint16."""
        return np.asarray(self._array("r")[row])

    def counts(self, subjects: Iterable[tuple[int, str]], name: str) -> CohortCounts:
        """The counts of subjects, given as (row, id).

        Raises:
            EvaluationError: one is not scored yet, or its file is damaged.
        """
        return CohortCounts.from_subjects(
            ((subject, self._read(row, subject)) for row, subject in subjects),
            name=name,
            score_range=self.score_range,
        )

    def _read(self, row: int, subject: str) -> SubjectCounts:
        url = self._counts_url(row)
        try:
            with np.load(io.BytesIO(files.read_bytes(url)), allow_pickle=False) as loaded:
                values: dict[str, Any] = {k: v if v.ndim else v.item() for k, v in loaded.items()}
        except FileNotFoundError:
            raise EvaluationError(
                f"subject {subject!r} is not scored: run jobs/evaluate.py again"
            ) from None
        except Exception as error:  # a damaged archive raises whatever its parts raise
            raise EvaluationError(f"{url} is damaged ({error}): remove it and evaluate") from None
        return SubjectCounts(**values)

    def _counts_url(self, row: int) -> str:
        return files.join(self.url, "counts", f"{row:07d}.npz")

    def _array(self, mode: Any) -> zarr.Array:
        array = zarr.open_group(zarr_store(self.url, read_only=mode == "r"), mode=mode)["scores"]
        assert isinstance(array, zarr.Array)
        return array
