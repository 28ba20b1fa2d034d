"""A sealed cohort, open for reading."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import zarr

from uadray import files
from uadray.errors import StoreError, StoreNotSealedError
from uadray.store.layout import (
    LEFT_OUT,
    QUARANTINE,
    SUBJECTS,
    ArrayName,
    Split,
    open_array,
    read_attributes,
)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A sealed cohort, read only; arrays open on first use. Pickles small, for tasks."""

    url: str
    attributes: dict[str, Any]
    """What `zarr.json` says."""

    @property
    def name(self) -> str:
        """The folder's name without its ending, for tables."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zarr")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the plan, the voxels and the table of subjects."""
        return str(self.attributes["seal"]["fingerprint"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of a volume."""
        z, y, x = self.attributes["shape"]
        return z, y, x

    @property
    def shard(self) -> int:
        """Volumes in a shard."""
        return int(self.attributes["shard_volumes"])

    @property
    def has_lesion(self) -> bool:
        """Whether lesion masks are stored."""
        return bool(self.attributes["has_lesion"])

    @cached_property
    def subjects(self) -> pd.DataFrame:
        """The table of subjects in row order, with the columns of `Subject`."""
        table = self.columns()
        table["affine"] = [json.loads(a) for a in table["affine"]]
        return table

    def columns(self, *names: str) -> pd.DataFrame:
        """Some columns of the table of subjects in row order, as they are stored; all by default.

        With a million subjects the affines alone take a gigabyte: read what is asked for.
        """
        buffer = io.BytesIO(files.read_bytes(files.join(self.url, SUBJECTS)))
        table = pd.read_parquet(buffer, columns=list(names) or None)
        return table.sort_values("row").reset_index(drop=True) if "row" in table else table

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """The scans that could not be used, with reasons."""
        text = files.read_bytes(files.join(self.url, QUARANTINE)).decode()
        return [json.loads(line) for line in text.splitlines()]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Files that were found and are no scans of the cohort, with reasons; may be unrecorded."""
        try:
            text = files.read_bytes(files.join(self.url, LEFT_OUT)).decode()
            return [json.loads(line) for line in text.splitlines()]
        except (FileNotFoundError, ValueError):
            return []

    def rows(self, split: Split) -> np.ndarray:
        """Rows of one split, ascending, (n,) int64.

        Raises:
            StoreError: the cohort has no subject of that split.
        """
        table = self._splits
        rows = table.loc[table["split"] == split, "row"].to_numpy(np.int64)
        if len(rows) == 0:
            has = sorted(table["split"].unique())
            raise StoreError(f"{self.url}: no subject in split {split!r}; it has {has}")
        return rows

    @cached_property
    def _splits(self) -> pd.DataFrame:
        return self.columns("row", "split")

    @cached_property
    def _opened(self) -> dict[str, zarr.Array]:
        return {}

    def read(self, array: ArrayName, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array, (stop - start, Z, Y, X)."""
        if array not in self._opened:
            self._opened[array] = open_array(self.url, array)
        return np.asarray(self._opened[array][start:stop])

    def __getstate__(self) -> dict[str, Any]:
        # A task needs no digests of files, of which there are as many as shards; each of as many
        # tasks would carry them.
        attributes = dict(self.attributes)
        if "seal" in attributes:
            attributes["seal"] = {k: v for k, v in attributes["seal"].items() if k != "files"}
        return {"url": self.url, "attributes": attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def open_cohort(url: str) -> Cohort:
    """Open a sealed cohort.

    Raises:
        StoreError: there is none.
        StoreNotSealedError: its prepare job did not finish.
    """
    url = files.normalise(url)
    attributes = read_attributes(url)
    if "seal" not in attributes:
        raise StoreNotSealedError(
            f"{url} is not sealed: its prepare job did not finish; run the same job again, it "
            "does only what is missing"
        )
    return Cohort(url=url, attributes=attributes)
