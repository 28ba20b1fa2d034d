"""Pictures of spatial erasing, as in figure 3 of Bengs 2021: what a network is given to repair."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from uadray import __version__, files, html
from uadray.config import Experiment
from uadray.data.erasing import erase, erased_mask, sample_erasing
from uadray.errors import ConfigError
from uadray.methods import Learned
from uadray.report import figures
from uadray.store import Cohort
from uadray.strategies import STRATEGIES

TALLY_EPOCHS = 200
"""Epochs over which the shares of one sample are tallied beside its pictures."""

Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One plane through an erased sample."""

    plane: Plane
    """Axial, coronal or sagittal."""
    index: int
    """Along the plane's axis."""
    image: str
    """The input with the outline of what is erased; data URI."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One sample as one epoch gives it to the network; its address repeats it bit for bit."""

    seed: int
    """Of the run."""
    epoch: int
    """From 0."""
    sample: int
    """The row for volumes, row * Z + z for axial slices."""
    share_of_input: float
    """Voxels erased over all voxels, after clipping and overlap."""
    share_of_brain: float
    """Brain voxels erased over all brain voxels."""
    sections: tuple[Section, ...]
    """The slice itself in 2D, three planes through the largest region in 3D."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How much of one sample is erased over epochs 0 to `epochs` - 1."""

    epochs: int
    """Epochs looked at."""
    erased: int
    """Those that erase the sample."""
    low: float
    """Smallest share of the input among them."""
    median: float
    """Median share of the input among them."""
    high: float
    """Largest share of the input among them."""


def _sample(one: Experiment, volume: NDArray[Any], row: int, plane: int) -> tuple[Any, int]:
    """The sample (1, *spatial) of a 2D or 3D method and its id."""
    ndim = _ndim(one)
    image = volume if ndim == 3 else volume[plane]
    sample = row if ndim == 3 else row * len(volume) + plane
    return torch.from_numpy(np.ascontiguousarray(image)[None]), sample


def _ndim(one: Experiment) -> int:
    if not isinstance(one.method, Learned):
        raise ConfigError(f"{one.name} learns nothing by gradient, so that there is no erasing")
    return one.method.ndim


def erased_epochs(
    one: Experiment, sample: int, *, spatial: tuple[int, ...], count: int
) -> list[int]:
    """The first epochs that erase a sample; those without erasing give it whole.

    Args:
        one: The experiment; its fit's seed counts.
        sample: Id of the sample.
        spatial: Its shape.
        count: How many; fewer come where the experiment's probability is small or 0.
    """
    ids = torch.tensor([sample])
    epochs: list[int] = []
    for epoch in range(64 * count):
        where = sample_erasing(one.erasing, ids, seed=one.fit.seed, epoch=epoch, spatial=spatial)
        if where.erased[0]:
            epochs.append(epoch)
            if len(epochs) == count:
                break
    return epochs


def draw(one: Experiment, volume: NDArray[Any], *, row: int, plane: int, epoch: int) -> Draw:
    """One sample as the network gets it in one epoch.

    Args:
        one: A method that learns by gradient; its fit's seed counts.
        volume: (Z, Y, X) in [0, 1], background 0.
        row: The volume's row in its cohort.
        plane: The axial slice that a 2D method is shown with.
        epoch: The epoch, from 0.

    Raises:
        ConfigError: the method does not erase.
    """
    x, sample = _sample(one, volume, row, plane)
    ids, seed = torch.tensor([sample]), one.fit.seed
    spatial = tuple(x.shape[1:])
    where = sample_erasing(one.erasing, ids, seed=seed, epoch=epoch, spatial=spatial)
    given = erase(x, where, one.erasing, ids, seed=seed, epoch=epoch)[0].numpy()
    mask = erased_mask(x, where)[0]
    brain = x[0].numpy() > 0
    if x.ndim == 3:
        sections: tuple[Section, ...] = (_section("axial", plane, given, mask),)
    else:
        planes = _centre(_largest(where.regions_BRD2[0], spatial) & mask if mask.any() else brain)
        names: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
        sections = tuple(
            _section(name, index, given.take(index, axis), mask.take(index, axis))
            for axis, (name, index) in enumerate(zip(names, planes, strict=True))
        )
    return Draw(
        seed=seed,
        epoch=epoch,
        sample=sample,
        share_of_input=float(mask.mean()),
        share_of_brain=float(mask[brain].mean()) if brain.any() else 0.0,
        sections=sections,
    )


def _largest(regions_RD2: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The voxels of the largest region."""
    sizes = (regions_RD2[..., 1] - regions_RD2[..., 0]).prod(-1)
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*span) for span in regions_RD2[sizes.argmax()])] = True
    return mask


def _centre(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    return tuple(round(float(axis.mean())) for axis in np.nonzero(mask))


def _section(plane: Plane, index: int, image: NDArray[Any], mask: NDArray[np.bool_]) -> Section:
    tile = figures.outline_tile(image.astype(np.float32), np.zeros_like(mask), mask)
    return Section(plane=plane, index=index, image=tile)


def tally(one: Experiment, volume: NDArray[Any], *, row: int, plane: int) -> Tally | None:
    """Shares of the input that `TALLY_EPOCHS` epochs erase of one sample; None if none does."""
    x, sample = _sample(one, volume, row, plane)
    spatial = tuple(x.shape[1:])
    shares: list[float] = []
    for epoch in range(TALLY_EPOCHS):
        where = sample_erasing(
            one.erasing, torch.tensor([sample]), seed=one.fit.seed, epoch=epoch, spatial=spatial
        )
        if where.erased[0]:
            shares.append(float(erased_mask(x, where).mean()))
    if not shares:
        return None
    return Tally(
        epochs=TALLY_EPOCHS,
        erased=len(shares),
        low=min(shares),
        median=float(np.median(shares)),
        high=max(shares),
    )


def erasing_figure(
    experiments: Sequence[Experiment],
    volume: NDArray[Any],
    *,
    row: int,
    num_draws: int = 3,
    plane: int | None = None,
) -> Markup:
    """Draws of each experiment on one volume, as markup for a page with the report's style.

    Args:
        experiments: Methods that learn by gradient, such as those of table 1; their fits' seeds
            count.
        volume: (Z, Y, X) in [0, 1], background 0.
        row: The volume's row in its cohort.
        num_draws: Epochs shown of each, the first that erase the sample.
        plane: The axial slice that 2D methods are shown with; the one with most brain where None.

    Returns:
        One table for 2D methods and one for 3D ones, or only what there is.

    Raises:
        ConfigError: an experiment does not erase, or there is no such slice.
    """
    if num_draws < 1:
        raise ConfigError(f"epochs must be >= 1, was {num_draws}")
    if plane is None:
        plane = int((volume > 0).sum((1, 2)).argmax())
    if not 0 <= plane < len(volume):
        raise ConfigError(f"plane must be in 0 to {len(volume) - 1}, was {plane}")
    tables = []
    for ndim in (2, 3):
        rows = [
            _row(one, volume, row, plane, num_draws) for one in experiments if _ndim(one) == ndim
        ]
        if rows:
            columns = max(len(r["draws"]) for r in rows)
            tables.append({"ndim": ndim, "plane": plane, "rows": rows, "columns": columns})
    return Markup(html.environment().get_template("erasing_figure.html.j2").render(tables=tables))


def _row(
    one: Experiment, volume: NDArray[Any], row: int, plane: int, num_draws: int
) -> dict[str, Any]:
    x, sample = _sample(one, volume, row, plane)
    epochs = erased_epochs(one, sample, spatial=tuple(x.shape[1:]), count=num_draws)
    return {
        "name": one.name,
        "erasing": one.erasing,
        "tally": tally(one, volume, row=row, plane=plane),
        # A method that erases nothing sees the same sample in every epoch.
        "draws": [draw(one, volume, row=row, plane=plane, epoch=e) for e in epochs or [0]],
    }


def write_erasing_page(
    cohort: Cohort,
    out: str,
    experiments: Sequence[Experiment],
    *,
    subject: str | None = None,
    num_draws: int = 3,
    plane: int | None = None,
    made: datetime | None = None,
) -> str:
    """Write one self-contained page that shows what each experiment erases of one scan.

    Args:
        cohort: A sealed cohort.
        out: Where the page goes, ending in `.html`; a local path or an fsspec URL.
        experiments: As for `erasing_figure`.
        subject: Id of the scan; the cohort's first where None.
        num_draws: As for `erasing_figure`.
        plane: As for `erasing_figure`.
        made: Date of making, now where None.

    Returns:
        The page's absolute path or URL; the file is replaced whole.

    Raises:
        ConfigError: `out` does not end in `.html`, there is no such scan or slice, or an
            experiment does not erase.
    """
    out = html.page_url(out)
    table = cohort.subjects
    subject = str(table["id"].iloc[0]) if subject is None else subject
    matches = table[table["id"] == subject]
    if len(matches) != 1:
        known = ", ".join(table["id"].head(5))
        raise ConfigError(
            f"{cohort.url} has no scan {subject!r}; it has {len(table)}, such as {known}"
        )
    row = int(matches["row"].iloc[0])
    volume = cohort.read("image", row, row + 1)[0]
    figure = erasing_figure(experiments, volume, row=row, num_draws=num_draws, plane=plane)
    used = {one.erasing.strategy for one in experiments}
    page = (
        html.environment()
        .get_template("erasing.html.j2")
        .render(
            cohort=cohort,
            subject=subject,
            notes=str(matches["notes"].iloc[0]),
            row=row,
            shape=volume.shape,
            figure=figure,
            made=made or datetime.now(UTC),
            version=__version__,
            style=html.style("report.css"),
            tally_epochs=TALLY_EPOCHS,
            strategies=[STRATEGIES[key] for key in STRATEGIES if key in used],
        )
    )
    files.write_bytes(out, page.encode())
    return out
