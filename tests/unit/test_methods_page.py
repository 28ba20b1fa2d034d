"""The page of methods, and the study of its figures."""

from pathlib import Path

import pytest

from benchmarks import methods_page
from benchmarks.harness import DOCS
from benchmarks.made_sweep import write_sweep
from benchmarks.methods import IN_3D, Cell, Study, above, figures, rows_of
from uadray.config import BASELINES, OTHERS
from uadray.methods import NAMED, Learned, build
from uadray.report.compare import series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.records import load_runs


def test_the_page_names_every_method() -> None:
    text = (DOCS / methods_page.PAGE).read_text()
    for name, named in NAMED.items():
        assert f"\n### {name}\n" in text, f"{name}: run python -m benchmarks.methods --page"
        assert f"- Source: {named.source}." in text
        assert f"`{named.equation}`" in text


def test_a_method_is_described_with_its_defaults() -> None:
    description = methods_page.described("sVAE-GAN")
    assert description["says"].startswith("An autoencoder of Baur 2018")
    for piece in ("`adversarial_rate` 0.0001", "`widths` 32 64 128 128"):
        assert piece in description["settings"]
    assert "`epochs` 150" in description["fit"]
    assert "`restore.steps` 150" in methods_page.described("VAE-restoration")["settings"]


def test_what_a_volume_takes_is_a_line_a_method() -> None:
    rows = [
        {"measure": "RIAD: seconds", "value": 3.597, "detail": ""},
        {"measure": "RIAD: memory", "value": 83.9, "detail": ""},
        {"measure": "IterMask: seconds", "value": 0.4, "detail": "a pass"},
        {"measure": "IterMask: memory", "value": 126.2, "detail": "a pass"},
    ]
    assert methods_page._costs(rows) == [
        ["RIAD", "3.60", "84", ""],
        ["IterMask", "0.40", "126", "a pass"],
    ]


@pytest.mark.slow
def test_every_experiment_of_the_study_builds_at_its_size() -> None:
    study = Study()
    assert set(study.names) == {*BASELINES, *OTHERS, "2D-None", "2D-Patch-n", *IN_3D}
    for name in study.names:
        what = study.experiment(name, seed=3)
        assert what.name == name
        build(what.method, (study.size,) * 3)
        if isinstance(what.method, Learned):
            epochs = study.epochs if what.method.ndim == 2 else study.epochs_3d
            assert (what.fit.seed, what.fit.epochs) == (3, epochs)


def test_figures_become_rows_and_rows_become_cells() -> None:
    measured = {
        "sVAE": {
            "tumour Dice_D": Cell(0.35, (0.25, 0.375), 0.0711),
            "stroke Dice_D": Cell(0.3, (0.25, 0.375)),
            "fit minutes": Cell(1.25),
            "parameters": Cell(1000),
        }
    }
    rows = rows_of(measured, Study(seeds=2))
    cells = {row.measure: (row.value, row.detail) for row in rows}
    both = "95 % over subjects: 0.250 to 0.375; deviation over seeds: 0.071"
    assert cells["sVAE: tumour Dice_D"] == (0.35, both)
    assert cells["sVAE: stroke Dice_D"] == (0.3, "95 % over subjects: 0.250 to 0.375")
    assert cells["size of the study"][0] == 2
    results = {
        "rows": [vars(row) for row in rows],
        "date": "2026-01-01",
        "machine": {"cpu": "a processor"},
    }
    found_again = methods_page.measured(results)
    dice = "0.350<br><small>0.250 to 0.375</small><br><small>± 0.071</small>"
    line = ["sVAE", dice, "0.300<br><small>0.250 to 0.375</small>", "1.2"]
    assert found_again["lines"] == [line]
    assert found_again["machine"]["cpu"] == "a processor"


def test_a_method_is_compared_with_the_reference_on_the_same_subjects(tmp_path: Path) -> None:
    runs = load_runs([write_sweep(str(tmp_path), 12, num_resamples=50)])
    for group in group_by_cohort(runs):
        for one in (all_series := series_of(group)):
            (column,) = figures([one]).keys() & {f"{group.name} Dice_D"}
            assert figures([one])[column].value == one.mean("dice_d")
        one, other = all_series[:2]
        differences = above([(one, other), (other, other)])
        (cell,) = differences.values()
        assert list(differences) == [f"{group.name} Dice_D above PCA-16"]
        means = [each.mean("dice_d") or 0.0 for each in (one, other)]
        assert cell.value == pytest.approx(means[0] - means[1])
        assert cell.bounds is not None
