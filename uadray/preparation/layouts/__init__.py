"""Where data sets keep their files: each layout finds its scans and yields them as `Scan`s.

A layout only looks at names and small tables; whether a scan can be used is seen when it is read.
`docs/datasets.md` says where to get each set. A new layout is a function, in `registry` or in any
other package with an entry point of the group `uadray.layouts`.
"""

from uadray.preparation.layouts.auto import detect
from uadray.preparation.layouts.bids import bids
from uadray.preparation.layouts.listing import LeftOut
from uadray.preparation.layouts.phantoms import phantom, version_at
from uadray.preparation.layouts.registry import LAYOUTS, layout_named, list_scans
from uadray.preparation.layouts.scans import (
    PHANTOM_SCHEME,
    Layout,
    Scan,
    Scans,
    canonical_modality,
    checked,
    find_files,
    read_phantom_url,
    stem,
)
from uadray.preparation.layouts.tables import csv
from uadray.preparation.layouts.white_matter import mslub

__all__ = [
    "LAYOUTS",
    "PHANTOM_SCHEME",
    "Layout",
    "LeftOut",
    "Scan",
    "Scans",
    "bids",
    "canonical_modality",
    "checked",
    "csv",
    "detect",
    "find_files",
    "layout_named",
    "list_scans",
    "mslub",
    "phantom",
    "read_phantom_url",
    "stem",
    "version_at",
]
