"""The people of a part of a cohort: their scans, who they are, what is known of them."""

import numpy as np
import pandas as pd

from uadray.preparation.geometry import voxel_ml
from uadray.store import Cohort, Split


def subjects_of(cohort: Cohort, split: Split) -> list[tuple[int, str]]:
    """Row and id of each scan."""
    table = cohort.subjects[cohort.subjects["split"] == split]
    return list(zip(table["row"].astype(int), table["id"], strict=True))


def voxel_volumes(cohort: Cohort) -> list[float]:
    """ML of a voxel of each scan of the test part."""
    table = cohort.subjects[cohort.subjects["split"] == "test"]
    return [voxel_ml(np.array(affine)) for affine in table["affine"]]


def people_of(cohort: Cohort, split: Split) -> list[str]:
    """The person of each scan, in the order of `subjects_of`."""
    return list(cohort.subjects[cohort.subjects["split"] == split]["subject"].astype(str))


def known_of(cohort: Cohort, split: Split) -> pd.DataFrame:
    """What is known of the people of a part besides their scans, a row a scan."""
    return cohort.covariates[(cohort.subjects["split"] == split).to_numpy()]
