"""Layouts by name: ours, and those that other packages add."""

import inspect
import os
from dataclasses import replace
from typing import Any

from uadray import files
from uadray.config import from_json
from uadray.errors import ConfigError, NoScanFoundError, PluginError, UadrayError
from uadray.plugins import Registry, failure
from uadray.preparation.layouts.auto import make_auto
from uadray.preparation.layouts.bids import bids
from uadray.preparation.layouts.healthy import ixi, oasis1
from uadray.preparation.layouts.listing import LeftOut
from uadray.preparation.layouts.scans import (
    Layout,
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
)
from uadray.preparation.layouts.stroke import atlas
from uadray.preparation.layouts.tables import csv
from uadray.preparation.layouts.tumour import brats
from uadray.preparation.layouts.white_matter import mslub, msseg2015, wmh

OTHER_COMMANDS = ("phantom", "verify", "quality")
"""Words that stand in a layout's place in `jobs/prepare.py`."""


def _check(name: str, layout: Any) -> None:
    if name in OTHER_COMMANDS:
        raise PluginError(f"{name!r} means something else in jobs/prepare.py; name it otherwise")
    try:
        parameters = inspect.signature(layout).parameters
        fits = list(parameters) == ["root", "modality"]
        fits &= isinstance(parameters["modality"].default, str)
    except (TypeError, ValueError, KeyError):
        fits = False
    if not fits:
        raise PluginError(
            f'expected a function (root, modality="T1w") that returns Scans, was {layout!r}'
        )


LAYOUTS: Registry[Layout] = Registry("uadray.layouts", "layout", _check)
"""The layouts of files by name; `phantom` stands apart, since it has none."""

for _one in (bids, csv, ixi, oasis1, brats, atlas, mslub, wmh, msseg2015):
    LAYOUTS[_one.__name__] = _one
LAYOUTS["auto"] = make_auto(dict(LAYOUTS.imported))


def layout_named(name: str) -> Layout:
    """The layout of that name, or the one at `package.module:function`.

    Raises:
        PluginError: there is none, or it cannot be used.
    """
    return LAYOUTS.at(name) if ":" in name else LAYOUTS.need(name)


def list_scans(name: str, root: str, modality: str) -> Scans:
    """The scans that a layout finds; those of a layout from outside are checked as ours are.

    Args:
        name: Of the layout, or its place.
        root: Folder of the data set, or its table; a local path or an fsspec URL.
        modality: Such as T1w.

    Raises:
        NoScanFoundError: see `Layout`.
        PluginError: a layout from outside fails, or what it returns are no scans of that modality.
    """
    layout, package = layout_named(name), LAYOUTS.package(name)
    if package is None:
        return layout(root, modality)
    whose, root = f"layout {name} of {package}", files.normalise(root)
    try:
        found = layout(root, modality)
    except UadrayError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{whose} fails: {failure(error, layout.__module__)}") from error
    if not isinstance(found, list):
        raise PluginError(f"{whose}: expected a list of Scan, was {found!r:.200}")
    scans = [_checked_scan(scan, modality, whose) for scan in found]
    left_out = tuple(getattr(found, "left_out", ()))
    if not all(isinstance(one, LeftOut) for one in left_out):
        raise PluginError(f"{whose}: what is left out must be LeftOut, was {left_out!r:.200}")
    if not scans:
        raise NoScanFoundError(
            f"{root}: {whose} finds no scan of modality {modality} there; give the folder that it "
            "is made for, or another --modality"
        )
    here = [scan.image for scan in scans if not files.is_remote(scan.image)]
    if here and not any(map(os.path.exists, here)):
        raise PluginError(
            f"{whose}: none of the images it names is there, the first is {here[0]}; paths are "
            "whole ones, root included"
        )
    fs, path = files.located(root)
    listing = None if left_out or not fs.isdir(path) else find_files(root)
    made = checked(scans, root, listing)
    made.left_out += left_out
    made.remarks = tuple(getattr(found, "remarks", ()))
    return made


def _checked_scan(scan: object, modality: str, whose: str) -> Scan:
    """A scan whose fields have the types that they should."""
    if not isinstance(scan, Scan):
        raise PluginError(f"{whose}: expected a list of Scan, one of it was {scan!r:.200}")
    try:
        made: Scan = from_json(Scan, vars(scan))
    except ConfigError as error:
        raise PluginError(f"{whose}: {error}") from None
    if empty := [key for key in ("id", "subject", "image", "modality") if not getattr(made, key)]:
        raise PluginError(f"{whose}: {scan} has no {empty[0]}")
    made = replace(made, modality=canonical_modality(made.modality))
    if modality and made.modality != canonical_modality(modality):
        raise PluginError(
            f"{whose}: scan {made.id} is of modality {made.modality}, but {modality} was asked for"
        )
    return made
