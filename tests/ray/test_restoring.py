"""Methods that draw corruption, masks and noise through Ray: two workers learn what one does."""

from pathlib import Path

import pytest
from tiny_cohorts import NUM_TRAIN, write_healthy, write_lesioned
from tiny_methods import tiny

from uadray.evaluation.job import evaluate
from uadray.evaluation.protocols import EvaluateConfig
from uadray.runs.detector import load_detector
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("name", ["3D-DISYRE", "3D-IterMask"])
def test_two_workers_learn_what_one_does(tmp_path: Path, name: str) -> None:
    cohort = write_healthy(tmp_path)
    what = tiny(name, epochs=3, batch_size=NUM_TRAIN)
    one = fit(what, cohort, str(tmp_path / "one"))
    scale = ScaleConfig(num_workers=2, cpus_per_worker=0.5)
    two = fit(what, cohort, str(tmp_path / "two"), scale=scale)
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if "second" not in key:
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), key
    first, second = (load_detector(run).state_dict() for run in (one, two))
    if "threshold" in first:
        assert float(second["threshold"]) == pytest.approx(float(first["threshold"]), rel=0.02)
    config = EvaluateConfig.of("frotscher2025", num_resamples=10)
    (record,) = evaluate([two], write_lesioned(tmp_path), config=config)
    assert 0 <= record["metrics"]["dice_s_mean"] <= 1
