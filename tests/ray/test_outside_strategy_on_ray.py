"""A fit that erases by a strategy of another package."""

from dataclasses import replace
from pathlib import Path

import pytest
from own_registry import OwnRegistry
from tiny_cohorts import SHAPE, write_healthy

from uadray.config import experiment
from uadray.runs.folder import Run
from uadray.runs.reading import read_epochs
from uadray.train.job import fit

pytestmark = pytest.mark.ray

COLUMN = """
import numpy as np

from uadray.strategies import Regions, Strategy


def draw(config, spatial, uniform):
    start = np.floor(uniform(1)[:, 0] * spatial[-1])
    boxes = np.zeros((len(start), 1, len(spatial), 2), np.int64)
    boxes[..., 1] = spatial
    boxes[:, 0, -1] = np.stack([start, start + 1], 1)
    return Regions(boxes_BRD2=boxes)


COLUMN = Strategy(
    key="column",
    names={2: "Column", 3: "Slab"},
    erases="a column",
    settings=(),
    draw=draw,
    nominal=lambda config, spatial: 1 / spatial[-1],
    source="nowhere",
)
"""


def test_fitted_by_its_name(own_registry: OwnRegistry, ray_session: None, tmp_path: Path) -> None:
    own_registry.write("my_column", COLUMN)
    own_registry.install("my-package", "1.2", group="strategies", column="my_column:COLUMN")
    base = experiment("2D-Column-n")
    one = replace(base, fit=replace(base.fit, epochs=1, batch_size=8, precision="float32"))
    run = fit(one, write_healthy(tmp_path), str(tmp_path / "run"))
    (epoch,) = read_epochs(run.url)
    assert 0 < epoch["erasing/share"] < 3 / SHAPE[-1]
    assert Run.open(run.url).experiment == one
