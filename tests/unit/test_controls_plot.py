"""The picture of patients against healthy controls."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from uadray.report.controls import Controls


@pytest.mark.parametrize(
    "label", ["PCA-16", "3D-None · seed 0, fold 2 of 3", "3D-Multi-Cube-n (mean of 10 folds)"]
)
def test_its_labels_lie_within_it(label: str) -> None:
    row: Any = SimpleNamespace(
        is_plain=False,
        run=SimpleNamespace(
            label=label, is_plain=False, config={"fingerprint": "f", "name": label}
        ),
        evaluation=SimpleNamespace(
            controls={"detection": {"top_mean": {"roc": [[0.0, 0.5, 1.0], [0.0, 0.8, 1.0]]}}}
        ),
    )
    controls = Controls(name="healthy", num_people=5, num_patients=5, rows=(row,))
    svg = str(controls.plot())
    side = re.search(r'x="([-\d.]+)"[^>]*rotate\(-90[^>]*>share of patients', svg)
    assert side is not None
    assert float(side[1]) >= 9  # of a turned text, x is where its letters end
    assert label in svg
