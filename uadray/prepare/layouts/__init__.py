"""Where data sets keep their files: each layout finds its scans and yields them as `Scan`s.

A layout only looks at names and small tables; whether a scan can be used is seen when it is read.
`docs/datasets.md` says where to get each set.
"""

from uadray.prepare.layouts.auto import detect, make_auto
from uadray.prepare.layouts.bids import bids
from uadray.prepare.layouts.healthy import ixi, oasis1
from uadray.prepare.layouts.listing import LeftOut
from uadray.prepare.layouts.phantoms import phantom
from uadray.prepare.layouts.scans import PHANTOM_SCHEME, Layout, Scan, Scans
from uadray.prepare.layouts.stroke import atlas
from uadray.prepare.layouts.tables import csv
from uadray.prepare.layouts.tumour import brats
from uadray.prepare.layouts.white_matter import mslub, msseg2015, wmh

LAYOUTS: dict[str, Layout] = {
    "bids": bids,
    "csv": csv,
    "ixi": ixi,
    "oasis1": oasis1,
    "brats": brats,
    "atlas": atlas,
    "mslub": mslub,
    "wmh": wmh,
    "msseg2015": msseg2015,
}
"""The layouts of files by name; `phantom` stands apart, since it has none."""

LAYOUTS["auto"] = make_auto(dict(LAYOUTS))

__all__ = [
    "LAYOUTS",
    "PHANTOM_SCHEME",
    "Layout",
    "LeftOut",
    "Scan",
    "Scans",
    "atlas",
    "bids",
    "brats",
    "csv",
    "detect",
    "ixi",
    "mslub",
    "msseg2015",
    "oasis1",
    "phantom",
    "wmh",
]
