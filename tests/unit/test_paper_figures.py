"""Figure 4 of Bengs 2021 and figure 6 of Baur 2018, from what evaluations keep."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_cohorts import write_healthy, write_lesioned

from uadray.metrics.counts import TestPart, count_subject
from uadray.papers import BAUR_2018, BENGS_2021
from uadray.papers.figures import PANELS, dice_by_lesion, draw, residual_histograms
from uadray.papers.reproduce import Reproduction
from uadray.papers.scales import SCALES
from uadray.runs.folder import Run
from uadray.tune.sweep import run_url


def subjects(seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in np.geomspace(20, 5000, 14)]
    people = [
        {"id": f"s{k}", "dice": float(rng.random()), "lesion_voxels": size}
        for k, size in enumerate(sizes)
    ]
    return [*people, {"id": "empty", "dice": None, "lesion_voxels": 0}]


def test_points_are_means_over_fits_of_the_subjects_that_all_have() -> None:
    first, second = subjects(0), subjects(1)[1:]
    voxels, dice = dice_by_lesion([{"subjects": first}, {"subjects": second}])
    assert voxels.tolist() == [s["lesion_voxels"] for s in first[1:-1]]
    assert dice[0] == pytest.approx((first[1]["dice"] + second[0]["dice"]) / 2)  # type: ignore[operator]


def test_figure_4_pairs_methods_in_panels(tmp_path: Path) -> None:
    healthy, cohort = write_healthy(tmp_path), write_lesioned(tmp_path, name="mine")
    one = Reproduction(
        paper=BENGS_2021,
        study=BENGS_2021.study("figure-4"),
        scale=SCALES["full"],
        out=str(tmp_path / "out"),
        healthy=healthy,
        cohorts={"tumour": cohort},
    )
    assert draw(one) is None, "nothing is evaluated"
    for n, entry in enumerate(one.entries()):
        assert entry.experiment is not None
        run = Run.create(run_url(one.url, entry.experiment), entry.experiment, healthy)
        run.finish({"status": "finished"})
        record = {
            "cohort": {"name": cohort.name, "fingerprint": cohort.fingerprint},
            "subjects": subjects(n),
        }
        place = Path(run.url) / "evaluation" / f"{cohort.name}.json"
        place.parent.mkdir()
        place.write_text(json.dumps(record))
    drawn = draw(one)
    assert drawn is not None
    text = drawn.decode()
    for pair in PANELS:
        assert f"tumour: {' and '.join(pair)}" in text
    assert "annotated voxels" in text
    assert drawn == draw(one)
    assert "stroke: 2D" not in text


def test_residuals_of_normal_and_anomalous_voxels() -> None:
    rng = np.random.default_rng(0)
    shape = (4, 8, 8)
    lesion = rng.random(shape) < 0.2
    levels = rng.integers(0, 40_000, shape).astype(np.uint16)
    levels[lesion] += 20_000
    brain = np.ones(shape, bool)
    counted = count_subject(levels, brain, lesion, brain)
    part = TestPart.from_subjects([("a", counted)], name="x/test", score_range=(0.0, 2.0))
    edges, normal, anomalous = residual_histograms(part)
    assert (normal * np.diff(edges)).sum() == pytest.approx(1)
    assert (anomalous * np.diff(edges)).sum() == pytest.approx(1)
    expected, _ = np.histogram(levels[lesion] / 65535 * 2, edges, density=True)
    assert anomalous == pytest.approx(expected)
    assert edges[-1] == pytest.approx(levels.max() / 65535 * 2)


def test_the_paper_has_its_figure() -> None:
    assert [s.key for s in BAUR_2018.select((), ("6",))] == ["figure-6"]
