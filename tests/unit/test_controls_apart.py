"""Nothing is learned from the test part of a healthy cohort, a model's healthy ranges neither."""

from pathlib import Path

import torch
from tiny_cohorts import write_cohort, write_healthy

from uadray.config import experiment
from uadray.methods import build
from uadray.prediction.healthy import measure_healthy
from uadray.store import Split


def test_a_model_s_healthy_ranges_are_without_controls(tmp_path: Path) -> None:
    donor = write_healthy(tmp_path, name="donor")
    image, brain = donor.read("image", 0, 16), donor.read("brain", 0, 16)
    learned: list[Split] = ["train"] * 8 + ["validation"] * 2
    made = {}
    for name, splits in (("alone", learned), ("both", [*learned, *["test"] * 6])):
        cohort = write_cohort(
            str(tmp_path / f"{name}.zarr"),
            splits,  # type: ignore[arg-type]
            lambda n: (image[n], brain[n], None),
        )
        detector = build(experiment("Intensity").method, cohort.shape)
        made[name] = measure_healthy(cohort, detector, torch.device("cpu"))
    assert made["both"] == made["alone"]
    assert made["both"].num_scans == 10
