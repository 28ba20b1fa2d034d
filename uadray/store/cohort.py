"""A sealed cohort, open for reading."""

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from uadray import files
from uadray.errors import StoreError, StoreNotSealedError, UadrayError
from uadray.store.layout import (
    COVARIATES,
    LEFT_OUT,
    QUARANTINE,
    SUBJECTS,
    ArrayName,
    Split,
    array_names,
    file_digest,
    open_array,
    present_shards,
    read_attributes,
    shard_url,
    storage_errors,
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
    def seal_url(self) -> str:
        """The file that says what the cohort is, by which nodes tell that they see the same one."""
        return files.join(self.url, "zarr.json")

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
        place, content = self._sealed(SUBJECTS)
        try:
            table = pd.read_parquet(io.BytesIO(content), columns=list(names) or None)
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise StoreError(f"{place} is damaged ({error}): {_again(self.url)}") from None
        return table.sort_values("row").reset_index(drop=True) if "row" in table else table

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """The scans that could not be used, with reasons."""
        place, content = self._sealed(QUARANTINE)
        try:
            return [dict(files.parse_json(line)) for line in content.splitlines()]
        except (ValueError, TypeError) as error:
            raise StoreError(f"{place} is damaged ({error}): {_again(self.url)}") from None

    def _sealed(self, name: str) -> tuple[str, bytes]:
        """The place of a small file and its content, if it is the one that was sealed."""
        place = files.join(self.url, name)
        with storage_errors(place):
            content = files.read_bytes(place)
        expected = self.attributes.get("seal", {}).get("files", {}).get(name)
        if expected not in (None, file_digest(content)):
            raise StoreError(
                f"{place} is not the file that the cohort was sealed with, as after a copy that "
                f"was interrupted: {_again(self.url)}"
            )
        return place, content

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Files that were found and are no scans of the cohort, with reasons; may be unrecorded."""
        try:
            text = files.read_bytes(files.join(self.url, LEFT_OUT)).decode()
            return [files.parse_json(line) for line in text.splitlines()]
        except (OSError, ValueError):
            return []

    @cached_property
    def covariates(self) -> pd.DataFrame:
        """What is known of the people besides, in the order of `subjects`.

        Columns are numbers (float64) or words, with NaN for what is not known; there is none where
        nothing is recorded, as in cohorts of earlier versions.

        Raises:
            StoreError: the table is damaged.
        """
        rows = self.columns("row")["row"]
        place = files.join(self.url, COVARIATES)
        if not files.exists(place):
            return pd.DataFrame(index=range(len(rows)))
        with storage_errors(place):
            content = files.read_bytes(place)
        try:
            read = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
            table = read.to_pandas().set_index("row").reindex(rows).reset_index(drop=True)
        except (pa.ArrowException, ValueError, KeyError, OSError) as error:
            raise StoreError(
                f"{place} is damaged ({error}): run again what made the cohort, which writes "
                "it anew"
            ) from None
        return table

    def add_covariates(self, columns: Mapping[str, Sequence[float | str | None]]) -> None:
        """Write down what is known of the people, in place of columns of the same names.

        Args:
            columns: Name -> a number, a word or None for each scan, in the order of `subjects`.
        """
        try:
            before = self.covariates
        except StoreError:
            before = pd.DataFrame(index=range(len(self.columns("row"))))
        now = before.assign(**{name: list(values) for name, values in columns.items()})
        if now.equals(before):
            return
        arrays = {name: pa.array(now[name], from_pandas=True) for name in now}
        table = pa.table({"row": pa.array(self.columns("row")["row"])} | arrays)
        with files.replacing(files.join(self.url, COVARIATES)) as file:
            pq.write_table(table, file, write_page_checksum=True)
        self.__dict__.pop("covariates", None)  # what is kept of it

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
    def _opened(self) -> dict[tuple[str, bool], zarr.Array]:
        return {}

    def read(self, array: ArrayName, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of one array, (stop - start, Z, Y, X).

        Raises:
            StoreError: a shard of a sealed cohort is absent or damaged, or the storage cannot be
                read. Zarr would give fill values for a shard that is gone.
        """
        place = (array, "seal" in self.attributes)
        try:
            if place not in self._opened:
                refuse = partial(self._refuse_absent, array) if place[1] else None
                self._opened[place] = open_array(self.url, array, absent=refuse)
            return np.asarray(self._opened[place][start:stop])
        except UadrayError:
            raise
        except OSError as error:
            with storage_errors(f"{self.url}/{array}"):
                raise error
        except Exception as error:  # whatever a codec raises on a damaged chunk
            raise StoreError(
                f"{self.url}: rows {start} to {stop - 1} of {array!r} are damaged "
                f"({type(error).__name__}: {error}): {_again(self.url)}"
            ) from None

    def read_as_it_is(self, array: ArrayName, start: int, stop: int) -> np.ndarray:
        """The same, with fill values for what is gone, and whatever Zarr raises."""
        if (array, False) not in self._opened:
            self._opened[array, False] = open_array(self.url, array)
        return np.asarray(self._opened[array, False][start:stop])

    def check_shards(self) -> None:
        """See by a listing of each array that every shard of a sealed cohort is there.

        Raises:
            StoreError: one is absent or empty.
        """
        num_shards = -(-int(self.attributes["num_rows"]) // self.shard)
        with storage_errors(self.url):
            gone = {
                name: sorted(set(range(num_shards)) - present_shards(self.url, name, num_shards))
                for name in array_names(has_lesion=self.has_lesion)
            }
        lost = {
            name: [shard for shard in shards if shard in self._filled[name]]
            for name, shards in gone.items()
            if shards
        }
        where = " and ".join(
            f"shard{'s' * (len(shards) > 1)} {_some(shards)} of {name!r}"
            for name, shards in lost.items()
            if shards
        )
        if where:
            are = "is" if sum(map(len, lost.values())) == 1 else "are"
            raise StoreError(
                f"{self.url} was sealed, but {where} {are} gone or empty, and would read as "
                f"volumes without content: {_again(self.url)}"
            )

    @cached_property
    def _filled(self) -> dict[str, set[int]]:
        """Shards of each array that hold more than fill values: Zarr writes no others.

        Rows of quarantined scans are empty, and a whole shard may be of such.
        """
        table = self.columns("row", "brain_ml", "lesion_ml")
        shards = table["row"].to_numpy(np.int64) // self.shard
        brain, lesion = (set(shards[table[k] > 0].tolist()) for k in ("brain_ml", "lesion_ml"))
        return {"image": brain, "brain": brain, "lesion": lesion}

    def _refuse_absent(self, array: ArrayName, shard: int) -> None:
        if shard in self._filled[array]:
            raise StoreError(
                f"{self.url} was sealed, but shard {shard} of {array!r} is gone "
                f"({shard_url(self.url, array, shard)}): {_again(self.url)}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A task needs no digests of files, of which there are as many as shards; each of as many
        # tasks would carry them.
        attributes = dict(self.attributes)
        if "seal" in attributes:
            attributes["seal"] = {k: v for k, v in attributes["seal"].items() if k != "files"}
        return {"url": self.url, "attributes": attributes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _again(url: str) -> str:
    """What helps where a part of a cohort is gone or damaged."""
    verify = f"python jobs/prepare.py --verify {shlex.quote(url)}"
    return f"restore it from a copy, or see what {verify} says"


def _some(shards: Sequence[int]) -> str:
    more = f" and {len(shards) - 8} more" if len(shards) > 8 else ""
    return ", ".join(map(str, shards[:8])) + more


def open_cohort(url: str) -> Cohort:
    """Open a sealed cohort.

    Raises:
        StoreError: there is none, or a shard of it is gone.
        StoreNotSealedError: its prepare job did not finish.
    """
    url = files.normalise(url)
    attributes = read_attributes(url)
    if "seal" not in attributes:
        raise StoreNotSealedError(
            f"{url} is not sealed: its prepare job did not finish; run the same job again, it "
            "does only what is missing"
        )
    cohort = Cohort(url=url, attributes=attributes)
    cohort.check_shards()
    return cohort


def repeated_images(subjects: pd.DataFrame) -> list[pd.DataFrame]:
    """Scans that hold the same image under several ids: the lines of each such group.

    Args:
        subjects: A cohort's table; nothing is known of cohorts that recorded no digests.
    """
    if "image_digest" not in subjects:
        return []
    known = subjects[subjects["image_digest"].fillna("") != ""]
    groups = known.groupby("image_digest", sort=False)
    return [lines for _, lines in groups if len(lines) > 1]
