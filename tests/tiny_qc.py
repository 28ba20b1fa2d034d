"""A sealed cohort with something to find on its quality page."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from uadray.store import Cohort, CohortWriter, Failure, Subject

MARKUP = "<script>alert(1)</script>"
"""A name that is markup."""

UPSIDE_DOWN = "sub-09"
"""A scan whose brain stands on its head."""

DOUBT_NOTE = "its axes are turned by 23 degrees, and stay so"
"""What the third scan is doubted for."""

QUARANTINED = "sub-cut"
"""A scan that could not be used; its row is the fourth."""

NAMES = [f"sub-{k:02d}" for k in range(11)] + [MARKUP]
"""Scans in row order; the fifth and the sixth hold the same image."""

SHAPE = (14, 16, 16)
"""(Z, Y, X) of every volume."""


def egg(
    rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray]:
    """A textured egg and its mask: alike left and right, wider above and in front."""
    radii = rng.uniform(0.40, 0.44, 3) * shape
    z, y, x = ((np.arange(n) - (n - 1) / 2) / r for n, r in zip(shape, radii, strict=True))
    z, y = z[:, None, None], y[:, None]
    width = 1 + 0.35 * z + 0.25 * y
    brain = (z**2 + y**2 < 1) & (np.abs(x) < width * np.sqrt(np.clip(1 - z**2 - y**2, 0, 1)))
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    image = np.clip(0.5 + 0.4 * texture, 0.05, 0.95) * brain
    return image.astype(np.float16), brain


def write_cohort(folder: Path) -> Cohort:
    """Twelve scans of two scanners, with a lesion each, and one that could not be used."""
    rng = np.random.default_rng(3)
    num_rows = len(NAMES) + 1
    writer = CohortWriter.create(
        str(folder / "c.zarr"), num_rows=num_rows, shape=SHAPE, has_lesion=True, plan={}
    )
    volumes = [egg(rng) for _ in range(num_rows)]
    rows = [row for row in range(num_rows) if row != 3]
    volumes[rows[5]] = volumes[rows[4]]
    down = rows[NAMES.index(UPSIDE_DOWN)]
    volumes[down] = (volumes[down][0][::-1], volumes[down][1][::-1])
    images = np.zeros((num_rows, *SHAPE), np.float16)
    brains, lesions = np.zeros(images.shape, bool), np.zeros(images.shape, bool)
    for row in rows:
        images[row], brains[row] = volumes[row]
        lesions[row, 7:9, 7:10, 5:8] = True
    subjects = [_subject(name, row, brains[row]) for name, row in zip(NAMES, rows, strict=True)]
    reason = "the file ends after 12 bytes"
    failure = Failure(row=3, id=QUARANTINED, source=f"/data/{MARKUP}.nii", reason=reason)
    for shard in range(writer.num_shards):
        span = writer.rows_of(shard)
        here = slice(span.start, span.stop)
        writer.write_shard(
            shard,
            image=images[here],
            brain=brains[here],
            lesion=lesions[here],
            subjects=[s for s in subjects if s.row in span],
            failures=[failure] if 3 in span else [],
        )
    return writer.seal()


def _subject(name: str, row: int, brain: np.ndarray) -> Subject:
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    return Subject(
        row=row,
        id=name,
        subject=name,
        scanner="one" if row % 2 else MARKUP,
        split="threshold" if row < 5 else "test",
        modality="T1w",
        affine=tuple(tuple(line) for line in affine.tolist()),
        source=f"/data/raw/{row}.nii.gz",
        brain_ml=float(brain.sum()) * 12**3 / 1000,
        lesion_ml=18 * 12**3 / 1000,
        notes="brain mask by deepbet" + (f"; doubt: {DOUBT_NOTE}" if name == NAMES[2] else ""),
    )
