"""What a preparation starts from: the scans of a layout or invented ones, and settings by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from uadray import fields, files
from uadray.errors import ConfigError
from uadray.preparation import layouts
from uadray.preparation.layouts import LeftOut, Scan
from uadray.preparation.layouts.listing import left_out_lines
from uadray.preparation.settings import PrepareConfig, Selection, SplitConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting that decides what a cohort of given files holds; their names are apart."""

    config: PrepareConfig = field(default_factory=PrepareConfig)
    """The steps' parameters."""
    selection: Selection = field(default_factory=Selection)
    """Which scans are taken."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """How large the parts are."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], named: Mapping[str, Any]) -> "Settings":
        """Settings by the names of their flags, such as `hold_out` or `shape`.

        Args:
            flags: Texts, as on a command line.
            named: Values, which hold where both give one.

        Raises:
            ConfigError: there is no such setting, or a value is not possible.
        """
        settings = cls()
        types = fields.types_of(settings)
        paths = {path.rpartition(".")[2]: path for path in types}
        if unknown := [name for name in named if name not in paths]:
            known = fields.closest(unknown[0], paths)
            raise ConfigError(f"prepare has no setting {unknown[0]!r}{known}")
        values = {n: fields.from_text(n, types[paths[n]], text) for n, text in flags.items()}
        values |= {n: fields.checked(n, types[paths[n]], value) for n, value in named.items()}
        made: Settings = fields.replaced(settings, {paths[n]: v for n, v in values.items()})
        return made


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is to be prepared."""

    scans: list[Scan]
    """All healthy, or all with a lesion."""
    config: PrepareConfig
    """The steps' parameters."""
    left_out: tuple[LeftOut, ...] = ()
    """What was found besides."""
    layout: Mapping[str, Any] | None = None
    """Name and package of a layout from outside of uadray; None for one of its own."""


def modality_of(layout: str) -> str:
    """The modality that a layout takes where none is asked for.

    Raises:
        ConfigError: there is no such layout.
    """
    if ":" not in layout and layout not in layouts.LAYOUTS:
        known = fields.closest(layout, [*layouts.LAYOUTS, "phantom"])
        raise ConfigError(f"no layout is named {layout!r}{known}")
    return str(inspect.signature(layouts.layout_named(layout)).parameters["modality"].default)


def find_inputs(
    layout: str,
    root: str,
    modality: str,
    *,
    settings: Settings,
    seed: int = 0,
    lesions: str = "",
    lesion_files: str = "",
    covariates: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> Inputs:
    """Find the scans of a data set, choose some, and give them lesions where masks are given.

    Args:
        layout: Name in `LAYOUTS`.
        root: Folder of the data set, or its table.
        modality: Such as T1w.
        settings: Which scans, and how lesions look.
        seed: Decides who is held out, and who gets which lesion.
        lesions: Folder of lesion masks.
        lesion_files: Pattern of their names.
        covariates: Table of what is known of people besides.
        report: Takes each line of the listing.

    Raises:
        NoScanFoundError: nothing is found, or the table of people is not of them.
    """
    from uadray.preparation.covariates import covariates_of, with_table
    from uadray.preparation.lesions import assign_masks, find_masks
    from uadray.preparation.splits import select_scans

    listing = layouts.list_scans(layout, root, modality)
    for line in listing.lines(files.normalise(root)):
        report(line)
    left_out = listing.left_out
    known = with_table(listing, covariates) if covariates else listing
    scans = select_scans(known, settings.selection, seed=seed)
    found = covariates_of(scans)
    for line in ([str(found)] if found.columns else []) + [f"note: {r}" for r in found.remarks]:
        report(f"  {line}")
    if lesions:
        masks = find_masks(lesions, lesion_files)
        for line in left_out_lines(len(masks), masks.left_out, masks.root, "masks"):
            report(line)
        scans = assign_masks(scans, masks, seed, settings.config.lesion)
        left_out += masks.left_out
    package = layouts.LAYOUTS.package(layout)
    return Inputs(
        scans=scans,
        config=settings.config,
        left_out=left_out,
        layout={"name": layout, "package": asdict(package)} if package else None,
    )
