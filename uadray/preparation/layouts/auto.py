"""Finds out which layout a folder is in."""

from collections.abc import Mapping

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.preparation.layouts.listing import left_out_lines
from uadray.preparation.layouts.naming import SIGNS, recognise
from uadray.preparation.layouts.scans import IMAGE_ENDINGS, Layout, Scans, find_files

TABLES = (".csv", ".tsv")
"""How a manifest ends."""


def detect(root: str, layouts: Mapping[str, Layout]) -> str:
    """Name the layout whose naming fits all files that fit any.

    Args:
        root: Folder or URL, or a table.
        layouts: By name.

    Raises:
        NoScanFoundError: none fits, or several fit different files; it names them.
    """
    root = files.normalise(root)
    if root.lower().endswith(TABLES):
        return "csv"
    names = find_files(root)
    by_layout = {name: matches for name, matches in recognise(names).items() if name in layouts}
    everything = set().union(*by_layout.values()) if by_layout else set()
    fitting = [name for name, matches in by_layout.items() if matches == everything]
    if fitting:
        return fitting[0]
    listed = ", ".join(f"{name} ({len(matches)} files)" for name, matches in by_layout.items())
    if by_layout:
        raise NoScanFoundError(
            f"{root}: holds files of several layouts: {listed}; name one of them, and the folder "
            "that holds only its files"
        )
    sample = f"{len(names)} files, first {names[0]}" if names else "none"
    if names.left_out:
        sample += f" ({'; '.join(left_out_lines(0, names.left_out, root)[1:]).strip()})"
    raise NoScanFoundError(
        f"{root}: no layout fits; looked for the naming of {', '.join(SIGNS)} in files that end in "
        f"{', '.join(IMAGE_ENDINGS)} and found {sample}; name the scans in a table (layout csv)"
    )


def make_auto(layouts: Mapping[str, Layout]) -> Layout:
    """The layout that takes whichever of `layouts` fits."""

    def auto(root: str, modality: str = "") -> Scans:
        """Scans in whichever layout fits the files' names.

        Args:
            root: Folder or URL, or a table.
            modality: Empty for the one that the set is mostly used with.
        """
        find = layouts[detect(root, layouts)]
        return find(root, modality) if modality else find(root)

    return auto
