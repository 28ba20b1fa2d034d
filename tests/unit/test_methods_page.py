"""The page of methods, and the study behind its figures."""

from typing import Any

import pytest

from benchmarks import methods_page
from benchmarks.methods import IN_3D, LESIONED, Study, rows_of
from uadray.config import BASELINES, NAMED, OTHERS, Learned
from uadray.detectors import build


def test_the_page_tells_of_every_method() -> None:
    text = methods_page.PAGE.read_text()
    for name, named in NAMED.items():
        assert f"\n### {name}\n" in text, f"{name}: run python -m benchmarks.methods --page"
        assert f"- Source: {named.source}." in text
        assert f"`{named.equation}`" in text


def test_a_method_is_told_with_its_defaults() -> None:
    text = methods_page._method("sVAE-GAN")
    assert text.startswith("### sVAE-GAN\n\nAn autoencoder of Baur 2018")
    for piece in ("`adversarial_rate` 0.0001", "`widths` 32 64 128 128", "`epochs` 150"):
        assert piece in text
    assert "`restore.steps` 150" in methods_page._method("VAE-restoration")


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
    def run(shift: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{kind} Dice_D": (0.3 + shift, [0.25, 0.375]) for kind in LESIONED
        }
        return found | {"fit minutes": (1.25, None), "parameters": (1000, None)}

    one = rows_of({"sVAE": [run(0)]}, Study())
    cells = {row.measure: (row.value, row.detail) for row in one}
    assert cells["sVAE: tumour Dice_D"] == (0.3, "95 % over subjects: 0.250 to 0.375")
    two = rows_of({"sVAE": [run(0), run(0.1)]}, Study(seeds=2))
    value, words = next((r.value, r.detail) for r in two if r.measure == "sVAE: stroke Dice_D")
    assert value == pytest.approx(0.35)
    assert words == "standard deviation over 2 seeds 0.071"
    results = {
        "rows": [vars(row) for row in one],
        "date": "2026-01-01",
        "machine": {"cpu": "a processor"},
    }
    text = methods_page._measured(results)
    assert "| sVAE | 0.300<br><small>0.250 to 0.375</small> |" in text
    assert "| 1.2 |" in text
    assert "2 seeds" not in text
    assert "a processor" in text
    assert "± 0.071" in methods_page._cell("stroke Dice_D", (value, words))
