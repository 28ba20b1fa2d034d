"""How much of a paper is made again."""

from dataclasses import dataclass
from typing import Any, Literal

ScaleName = Literal["smoke", "phantom", "full"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of a paper is made again."""

    name: ScaleName
    """Its key in `SCALES`."""
    told: str
    """What it is for."""
    size: int = 0
    """Voxels along each axis of phantoms; 0 where cohorts must be given."""
    healthy: int = 0
    """Healthy phantoms."""
    lesioned: tuple[tuple[str, int], ...] = ()
    """Phantoms of each kind."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Fields of every experiment's fit that are replaced."""
    batch_size_3d: int = 0
    """Volumes in a step of 3D methods; 0 leaves it as it is."""


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        name="smoke",
        told="a few phantoms at 32^3 and three epochs: whether all parts work, on a laptop; the "
        "figures mean nothing",
        size=32,
        healthy=20,
        lesioned=(("tumour", 6), ("stroke", 6)),
        changes=(("epochs", 3),),
        batch_size_3d=4,
    ),
    "phantom": Scale(
        name="phantom",
        told="phantoms in the numbers of Bengs 2021 at 64^3, all other settings the papers': for a "
        "GPU",
        size=64,
        healthy=2008,
        lesioned=(("tumour", 335), ("stroke", 304)),
    ),
    "full": Scale(name="full", told="the papers' settings on cohorts that are given"),
}
"""The scales by name."""


PHANTOM_OF = {
    "tumour": "tumour",
    "stroke": "stroke",
    "ms": "stroke",
    "mslub": "stroke",
    "wmh": "stroke",
    "msseg2015": "stroke",
}
"""Kind of the phantoms that stand in for a role; there are none of contrast-enhanced T1."""
