"""A new metric is one entry: everything that computes or shows figures reads it."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# In a process of its own: tables of columns are made when their modules are imported.
SCRIPT = """
import json, sys
from pathlib import Path
from uadray.metrics import table

def recall(part, level, weights):
    return (weights @ part.positives(level)[0]) / (weights @ part.num_lesion)

table.METRICS += (
    table.Metric(
        key="recall",
        head="Recall",
        value=lambda one: float(recall(one.part, one.threshold.level, 1 + 0 * one.part.num_lesion)),
        weighted=lambda one: recall(one.part, one.threshold.level, one.weights),
        compared=True,
    ),
)
table.BY_KEY["recall"] = table.METRICS[-1]

from fake_runs import write_run
from voxel_cohorts import count, random_cohort
from uadray.metrics import thresholds
from uadray.metrics.inference import leaving_out
from uadray.metrics.counts import TestPart, ThresholdPart
from uadray.papers.study import figures
from uadray.prediction import card
from uadray.report import write_report

test = count(TestPart, random_cohort(6, seed=5), name="test")
threshold = thresholds.best_dice(count(ThresholdPart, random_cohort(4, seed=4), name="fit"))
value = table.compute_metrics(test, threshold)["recall"]
found = table.fits_by_person(test, threshold, leaving_out(test.subjects))["recall"].values[0]
assert 0 < value <= 1 and abs(found[0] - value) < 1e-12 and len(set(found)) > 2
assert "recall" in figures() and card._FIGURES["recall"] == "Recall"

out = Path(sys.argv[1])
runs = [str(write_run(out / name, name)) for name in ("3D-None", "PCA-16")]
for run in runs:
    path = f"{run}/evaluation/stroke.json"
    record = json.load(open(path))
    record["metrics"]["recall"], record["intervals"]["recall"] = 0.4321, [0.3, 0.5]
    json.dump(record, open(path, "w"))
write_report(runs, str(out / "report.html"))
"""


def test_one_entry_reaches_every_table(tmp_path: Path) -> None:
    paths = [str(TESTS), str(TESTS / "unit"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for ending in ("html", "csv", "md", "tex"):
        text = (tmp_path / f"report.{ending}").read_text()
        assert "0.432" in text, ending
        assert "ecall" in text, ending
