"""Phantom cohorts that stand in for a paper's, where none are given."""

from collections.abc import Sequence

from uadray import files
from uadray.errors import StoreError
from uadray.papers.scales import PHANTOM_OF, Scale
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import phantom, version_at
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.store import Cohort, open_cohort

FIRST_SEED = 100_000
"""Seeds of the phantoms of one role begin at so many times its place in `PHANTOM_OF`."""


def make_phantoms(
    scale: Scale, roles: Sequence[str], out: str, *, dry_run: bool = False
) -> tuple[dict[str, Cohort], frozenset[str]]:
    """The healthy phantoms and those of each role that phantoms can stand in for.

    Args:
        scale: Says how many, and how large.
        roles: Wanted.
        out: Folder of the stores; those that are there are taken.
        dry_run: Only open what is there.

    Returns:
        The cohorts by role, the healthy one as `healthy`; and the roles still to be made.
    """
    split = SplitConfig(preset="bengs2021") if scale.name == "phantom" else SplitConfig()

    # A folder that was begun with older phantoms goes on with them.
    version = version_at(files.join(out, "healthy.zarr"))

    def make(name: str, kind: str, count: int, first: int) -> Cohort | None:
        url = files.join(out, f"{name}.zarr")
        if dry_run:
            try:
                return open_cohort(url)
            except (StoreError, FileNotFoundError):
                return None
        return prepare_cohort(
            phantom(kind, count, first, version=version),
            url,
            config=PrepareConfig(shape=(scale.size,) * 3),
            split=split,
        )

    kinds = {"healthy": "healthy"} | {r: PHANTOM_OF[r] for r in roles if r in PHANTOM_OF}
    counts = dict(scale.lesioned) | {"healthy": scale.healthy}
    places = ["healthy", *PHANTOM_OF]
    made = {
        role: make(role, kind, counts[kind], FIRST_SEED * places.index(role))
        for role, kind in kinds.items()
    }
    present = {role: cohort for role, cohort in made.items() if cohort is not None}
    return present, frozenset(set(made) - set(present))
