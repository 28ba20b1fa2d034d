"""A metric, the share of lesion voxels that are found; a section of reports, who is missed."""

import pandas as pd

from uadray.metrics.table import Metric
from uadray.report.sections import ReportData

SENSITIVITY = Metric(
    key="sensitivity",
    head="Sensitivity",
    value=lambda one: one.true_positives.sum() / one.num_lesion.sum(),
    at_threshold=True,
    brief="Sensitivity\n[95 %]",
    compared=True,
)


def missed(data: ReportData) -> tuple[str, pd.DataFrame]:
    """Test subjects of whose lesion a run finds no voxel."""
    rows = [
        {"Run": run.label, "Cohort": one.cohort, "Subject": each["id"], "mL": each["lesion_ml"]}
        for run in data.runs
        for one in run.evaluations
        for each in one.values["subjects"]
        if each.get("true_positives") == 0
    ]
    return "Whom a run misses", pd.DataFrame(rows, columns=["Run", "Cohort", "Subject", "mL"])
