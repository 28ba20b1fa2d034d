"""What `jobs/prepare.py` does once its arguments are read: a cohort, its page, its calibration."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from uadray import fields, files
from uadray.errors import ConfigError
from uadray.evaluation.calibration import Calibration, write_calibration
from uadray.evaluation.protocols import PROTOCOLS
from uadray.phantom.subject import Kind
from uadray.preparation.inputs import Inputs, Settings, find_inputs, modality_of
from uadray.preparation.layouts import phantom
from uadray.preparation.settings import (
    MAX_FAILURES,
    PrepareConfig,
    Redo,
    Selection,
    SplitConfig,
    check_numbers,
)
from uadray.quality.page import QualityPage, quality_url, write_quality_page
from uadray.store import Cohort, open_cohort, storage_errors


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A cohort that was prepared."""

    cohort: Cohort
    """Sealed."""
    page: QualityPage
    """Where its quality page is, and which scans it flags."""
    calibration: Calibration | None
    """What simple scores reach on it; None where there was nothing to calibrate."""

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """What is not in the cohort, each with its `reason`.

        Scans that could not be used have an `id`, files that were found besides a `path`.
        """
        return [*self.cohort.quarantine, *self.cohort.left_out]


def prepare_inputs(
    find: Callable[[], Inputs],
    out: str,
    *,
    split: SplitConfig,
    seed: int = 0,
    max_failures: float = MAX_FAILURES,
    redo: Sequence[Redo] = (),
    workers: int | None = None,
    command: str = "",
    qc: str = "",
    healthy: str = "",
    calibrate: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Prepared:
    """Prepare scans as a sealed cohort, with its quality page and its calibration.

    Args:
        find: Finds them, once what costs nothing has been looked at.
        out: The cohort.
        split: As for `prepare_cohort`, with the five that follow.
        seed: As there.
        max_failures: As there.
        redo: As there.
        workers: As there.
        command: As there.
        qc: Place of the quality page; beside the cohort by default.
        healthy: A healthy cohort that plain methods learn from for the calibration.
        calibrate: Calibrate also without one.
        report: Takes each line on how it went.

    Raises:
        UadrayError: see `ingest.prepare_cohort` and `quality.page.quality_url`.
    """
    from uadray.preparation.ingest import prepare_cohort

    check_numbers(seed=seed, workers=workers)
    # What is wrong with the page's place is said before the work, not after it.
    page = quality_url(out, qc)
    learned = open_cohort(healthy) if healthy else None
    inputs = find()
    cohort = prepare_cohort(
        inputs.scans,
        out,
        config=inputs.config,
        split=split,
        seed=seed,
        max_failures=max_failures,
        redo=redo,
        workers=workers,
        command=command,
        left_out=inputs.left_out,
        layout=inputs.layout,
    )
    shown = show_quality(cohort, page, report)
    calibration = None
    if learned or calibrate:
        calibration = write_calibration(cohort, learned)
        report(str(calibration or f"{cohort.url}: nothing to calibrate"))
    return Prepared(cohort=cohort, page=shown, calibration=calibration)


def prepare(
    layout: str,
    root: str | Path,
    out: str | Path,
    *,
    modality: str = "",
    grid: str = "none",
    size: int | None = None,
    lesions: str | Path = "",
    lesion_files: str = "",
    covariates: str | Path = "",
    count: int = 24,
    first_seed: int = 0,
    version: int | None = None,
    qc: str | Path = "",
    healthy: str | Path | Cohort = "",
    seed: int = 0,
    max_failures: float = MAX_FAILURES,
    redo: Sequence[Redo] = (),
    workers: int | None = None,
    **settings: Any,
) -> Prepared:
    """Turn scans into a sealed cohort, as `jobs/prepare.py`.

    Args:
        layout: Such as `bids`; `phantom` invents subjects.
        root: Folder of the data set, or its table; of phantoms their kind, such as `healthy`.
        out: The cohort.
        modality: Such as T1w; the layout's own by default.
        grid: The preparation of an evaluation protocol, such as `baur2018`; settings that are
            given hold instead of its own.
        size: Short for `shape=(size, size, size)`; phantoms have 64.
        lesions: Folder of lesion masks: healthy scans get semi-synthetic lesions of their shapes.
        lesion_files: Pattern of the masks' names.
        covariates: Table of what is known of people besides, such as their ages.
        count: Number of phantoms.
        first_seed: Seed of the first phantom.
        version: How phantoms are made; the newest by default, 1 as in cohorts of before.
        qc: The quality page; beside the cohort by default.
        healthy: A healthy cohort that plain methods learn from for the calibration.
        seed: Decides who is held out, the parts, the order and who gets which lesion.
        max_failures: Share of the scans that may be unusable, in [0, 1].
        redo: Which scans of a sealed cohort are prepared again.
        workers: Scans prepared at a time.
        settings: Fields of `PrepareConfig`, `Selection` and `SplitConfig` and of what they hold,
            such as `hold_out=12` or `denoise=False`.

    Returns:
        The `cohort`, its quality `page`, and what was `left_out` with the reasons.

    Raises:
        UadrayError: see `ingest.prepare_cohort`; a scan that cannot be used is left out.
    """
    place, masks, people = str(root), str(lesions), str(covariates)
    flags: dict[str, Any] = {"seed": seed}
    if layout == "phantom":
        chosen = Settings.of({}, settings)
        if place not in (kinds := get_args(Kind)):
            raise ConfigError(f"root must be a kind of phantom: {', '.join(kinds)}, was {place!r}")
        files_alone = modality or masks or lesion_files or people or grid != "none"
        if files_alone or (chosen.config, chosen.selection) != (PrepareConfig(), Selection()):
            raise ConfigError(
                "phantoms are made on their grid: give size, and settings of the split"
            )
        flags |= {"count": count, "first_seed": first_seed, "size": size, "version": version}
        scans = phantom(place, count, first_seed, version=version)
        config = PrepareConfig(shape=(size or 64,) * 3)
    else:
        if size is not None and settings.setdefault("shape", (size,) * 3) != (size,) * 3:
            raise ConfigError("size and shape both say how many voxels: give one")
        chosen = Settings.of(protocol_flags(grid), settings)
        modality, place = modality or modality_of(layout), files.normalise(place)
        masks = files.normalise(masks) if masks else ""
        people = files.normalise(people) if people else ""
        flags |= {"modality": modality, "lesions": masks, "lesion_files": lesion_files}
        flags |= {"covariates": people}

    def find() -> Inputs:
        if layout == "phantom":
            return Inputs(scans=scans, config=config)
        return find_inputs(
            layout,
            place,
            modality,
            settings=chosen,
            seed=seed,
            lesions=masks,
            lesion_files=lesion_files,
            covariates=people,
        )

    return prepare_inputs(
        find,
        str(out),
        split=chosen.split,
        seed=seed,
        max_failures=max_failures,
        redo=redo,
        workers=workers,
        command=command_of(layout, place, flags | {"grid": grid} | settings),
        qc=str(qc),
        healthy=healthy.url if isinstance(healthy, Cohort) else str(healthy),
        calibrate=bool(masks),
    )


def protocol_flags(grid: str) -> dict[str, str]:
    """The settings of a protocol's preparation by name, as texts; none where `grid` is `none`.

    Raises:
        ConfigError: there is no such protocol.
    """
    if grid == "none":
        return {}
    if grid not in PROTOCOLS:
        raise ConfigError(f"grid: no protocol is named {grid!r}{fields.closest(grid, PROTOCOLS)}")
    protocol, flags, name = PROTOCOLS[grid], dict[str, str](), ""
    for word in shlex.split(f"{protocol.prepare} {protocol.split}"):
        if word.startswith("--"):
            name = word.removeprefix("--").removeprefix("no-").replace("-", "_")
            flags[name] = "false" if word.startswith("--no-") else ""
        else:
            flags[name] += f",{word}" if flags[name] else word
    return flags


def command_of(layout: str, root: str, flags: Mapping[str, Any]) -> str:
    """The command of a preparation, as a cohort keeps it: without place and conduct of the job."""
    words = ["python", "jobs/prepare.py", layout, root]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value not in ("", "none", None, ()):
            several = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{flag}", *map(str, several)]
    return shlex.join(words)


def show_quality(cohort: Cohort, out: str, report: Callable[[str], object]) -> QualityPage:
    """Write the quality page and say where it is."""
    with storage_errors(out):
        page = write_quality_page(cohort, out)
    report(page.line())
    return page
