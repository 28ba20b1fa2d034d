"""A list of scans becomes a cohort: one Ray Data task writes one whole shard."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
import ray
import SimpleITK as sitk
import torch

from uadray import cluster, errors, files
from uadray.config import to_json
from uadray.errors import ScanError, UadrayError
from uadray.prepare.layouts import PHANTOM_SCHEME, Scan
from uadray.prepare.splits import SplitConfig, split_scans
from uadray.prepare.steps import PrepareConfig, PreparedVolume, prepare_scan, record
from uadray.progress import Progress
from uadray.store import Cohort, CohortWriter, Failure, Split, Subject, open_cohort


def prepare_cohort(
    scans: Sequence[Scan],
    url: str,
    *,
    config: PrepareConfig,
    split: SplitConfig,
    seed: int = 0,
) -> Cohort:
    """Prepare all scans and write them as a sealed cohort.

    A scan that cannot be used is quarantined with its reason; any other error ends the job. Called
    again with the same scans and settings it does what is missing, and nothing on a sealed cohort.

    Args:
        scans: All healthy or all with a lesion; their order does not matter.
        url: Local folder or fsspec URL of the cohort.
        config: The steps' parameters.
        split: How large the parts are.
        seed: Decides the parts and the order of the rows.

    Raises:
        ConfigError: see `split_scans`.
        StoreError: something else is at `url`, or no scan could be used.
    """
    rows = split_scans(scans, split, seed=seed)
    has_lesion = rows[0][0].lesioned
    writer = CohortWriter.create(
        url,
        num_rows=len(rows),
        shape=config.shape,
        has_lesion=has_lesion,
        plan=make_plan(rows, config, seed=seed),
    )
    missing = writer.missing_shards()
    if missing:
        _write_shards(_ShardTask(writer=writer, rows=tuple(rows), config=config), missing)
    elif _is_sealed(writer.url):
        return open_cohort(writer.url)
    return writer.seal()


def summary(cohort: Cohort) -> str:
    """What was made, for people: parts, quarantined scans with reasons, place, fingerprint."""
    z, y, x = cohort.shape
    parts = cohort.subjects.groupby("split", sort=False)
    sizes = [f"{len(rows)} {part} ({rows['subject'].nunique()} subjects)" for part, rows in parts]
    quarantine = cohort.quarantine
    lines = [
        f"{cohort.name}: {len(cohort.subjects)} volumes of {z} x {y} x {x}: {', '.join(sizes)}",
        f"  brain {cohort.subjects['brain_ml'].median():.0f} mL (median)",
    ]
    if cohort.has_lesion:
        ml = cohort.subjects["lesion_ml"]
        lines[-1] += f", lesions {ml.min():.1f} to {ml.max():.1f} mL, median {ml.median():.1f}"
    if quarantine:
        total = len(quarantine) + len(cohort.subjects)
        lines.append(f"  {len(quarantine)} of {total} scans could not be used and are not in it:")
        lines += [f"    {failure['id']}: {failure['reason']}" for failure in quarantine]
    lines += [f"  at {cohort.url}", f"  fingerprint {cohort.fingerprint}"]
    lines.append(
        f"next: python jobs/evaluate.py RUN --cohort {cohort.url}"
        if cohort.has_lesion
        else f"next: python jobs/train.py 3D-Cube-n --cohort {cohort.url} --out runs/3D-Cube-n"
    )
    return "\n".join(lines)


def make_plan(
    rows: Sequence[tuple[Scan, Split]], config: PrepareConfig, *, seed: int
) -> dict[str, Any]:
    """What decides a cohort's content, as a JSON value.

    Paths stand relative to their common folder, so that a cohort is the same wherever its scans
    lie; the images' sizes in bytes tell another version of them apart.
    """
    paths = [
        path
        for scan, _ in rows
        for path in (scan.image, scan.brain, scan.lesion, *scan.more_lesions)
        if path
    ]
    prefix = _common_folder(paths)
    scans = []
    for scan, split in rows:
        fields = {key: value for key, value in asdict(scan).items() if value}
        for key in ("image", "brain", "lesion"):
            if key in fields:
                fields[key] = fields[key].removeprefix(prefix)
        if scan.more_lesions:
            fields["more_lesions"] = [path.removeprefix(prefix) for path in scan.more_lesions]
        if scan.synthetic_lesion:
            fields["synthetic_lesion"] = scan.synthetic_lesion.rsplit("/", 1)[-1]
        scans.append({**fields, "bytes": _size(scan.image), "split": split})
    phantom = rows[0][0].image.startswith(PHANTOM_SCHEME)
    strokes = any(scan.synthetic_lesion for scan, _ in rows)
    steps = [{"step": "make_subject"}] if phantom else record(config, strokes=strokes)
    settings = to_json(config)
    if not strokes:
        del settings["stroke"]
    return {"seed": seed, "config": settings, "steps": steps, "scans": scans}


def _common_folder(paths: Sequence[str]) -> str:
    parts = [path.split("/")[:-1] for path in paths]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "/".join(common) + "/" if common else ""


def _size(path: str) -> int | None:
    """Bytes of a file, or None for what is absent (it will be quarantined) or made."""
    if path.startswith(PHANTOM_SCHEME) or not files.exists(path):
        return None
    fs, inner = fsspec.core.url_to_fs(path)
    return int(fs.size(inner))


def _is_sealed(url: str) -> bool:
    return "seal" in files.read_json(files.join(url, "zarr.json"))["attributes"]["uadray"]


def _write_shards(task: "_ShardTask", shards: list[int]) -> None:
    """Run one task per shard on the cluster and tell how far it is."""
    cluster.connect()
    dataset = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
    ).map(task, num_cpus=1)
    total = sum(len(task.writer.rows_of(shard)) for shard in shards)
    quarantined = 0
    with Progress(total=total, what="scans") as progress:
        # A shard of full-size scans takes minutes.
        progress.advance(0)
        for row in dataset.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            quarantined += int(row["quarantined"])
            progress.advance(int(row["done"]), note=f"{quarantined} quarantined")


@dataclass(frozen=True, kw_only=True)
class _ShardTask:
    """Prepares the scans of one shard and writes it; small enough to travel with every task."""

    writer: CohortWriter
    rows: tuple[tuple[Scan, Split], ...]
    config: PrepareConfig

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        result = {"done": 0, "quarantined": 0, "error": "", "message": ""}
        try:
            done, quarantined = self.write(int(item["shard"]))
        except UadrayError as error:
            # Ray Data drops the cause of a failed task on its way back, so that a named error of
            # ours travels as a value.
            return result | {"error": type(error).__name__, "message": str(error)}
        return result | {"done": done, "quarantined": quarantined}

    def write(self, shard: int) -> tuple[int, int]:
        """Prepare and write one shard; return its scans, and how many were quarantined."""
        # Ray grants one CPU; a library that takes all of them only makes the tasks wait.
        torch.set_num_threads(1)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        writer = self.writer
        where = writer.rows_of(shard)
        # float16 as in the store: a shard of full-size volumes is large.
        image = np.zeros((len(where), *writer.shape), np.float16)
        brain = np.zeros(image.shape, bool)
        lesion = np.zeros(image.shape, bool) if writer.has_lesion else None
        subjects, failures = [], []
        for k, row in enumerate(where):
            scan, split = self.rows[row]
            try:
                volume = prepare_scan(scan, self.config)
            except ScanError as error:
                failures.append(Failure(row=row, id=scan.id, source=scan.image, reason=str(error)))
                continue
            image[k], brain[k] = volume.image, volume.brain
            if lesion is not None and volume.lesion is not None:
                lesion[k] = volume.lesion
            subjects.append(_subject(row, scan, split, volume))
        writer.write_shard(
            shard, image=image, brain=brain, lesion=lesion, subjects=subjects, failures=failures
        )
        return len(where), len(failures)


def _subject(row: int, scan: Scan, split: Split, volume: PreparedVolume) -> Subject:
    return Subject(
        row=row,
        id=scan.id,
        subject=scan.subject,
        scanner=volume.scanner,
        split=split,
        modality=scan.modality,
        affine=tuple(tuple(map(float, line)) for line in volume.affine),
        source=scan.image,
        brain_ml=volume.brain_ml,
        lesion_ml=volume.lesion_ml,
        notes=volume.notes,
    )
