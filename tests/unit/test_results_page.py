"""The page of sweeps that were run, from what `benchmarks.real_use` keeps."""

from typing import Any

from markdown_tables import rows_of

from benchmarks.harness import DOCS
from benchmarks.real_use import PAGE, kept, page


def made(name: str, seeds: list[float], *, is_plain: bool = False) -> dict[str, Any]:
    figure = {"mean": sum(seeds) / len(seeds), "interval_over_subjects": [0.25, 0.375]}
    return {
        "name": name,
        "is_plain": is_plain,
        "latent_size": None if is_plain else 512,
        "figures": {
            "dice_d": figure | {"each_seed": seeds},
            "dice_s_mean": None,
            "auprc": figure | {"each_seed": seeds},
        },
    }


def test_every_figure_stands_with_its_interval_and_seeds() -> None:
    difference = {"value": -0.25, "interval": [-0.5, 0.125]}
    sweep = {
        "about": "phantoms at 32^3: 86 to learn from",
        "runs": 3,
        "ended": {"finished": 2, "failed": 1},
        "fit_minutes": 12.4,
        "machine": {"cpu": "a processor"},
        "fitted_on": {"fingerprint": "abc"},
        "commit": "1234567",
        "date": "2026-01-01",
        "cohorts": [
            {
                "cohort": "stroke",
                "num_threshold": 4,
                "num_test": 8,
                "experiments": [made("3D-None", [0.25, 0.5]), made("ZScore", [0.5], is_plain=True)],
                "differences": {
                    "erasing against none": [
                        {
                            "of": "3D-Cube-n, z 512",
                            "against": "3D-None, z 512",
                            "differences": {"dice_d": difference, "auprc": difference},
                            "holm_p": 0.25,
                            "over_seeds_dice_d": [-0.05, 0.01],
                            "verdict": "not distinguishable",
                        }
                    ]
                },
            }
        ],
    }
    text = page([sweep])
    assert "## Phantoms at 32^3\n" in text
    assert "86 to learn from. 3 runs (2 finished, 1 failed), 12 minutes" in text
    rows, dice, other = rows_of(text), "0.375 [0.250, 0.375]", "0.500 [0.250, 0.375]"
    assert ["3D-None", "512", dice, "", dice, "0.250 0.500"] in rows
    assert ["ZScore", "", other, "", other, ""] in rows
    assert "**Erasing against none**" in text
    cell = "-0.250 [-0.500, +0.125]"
    names = ["3D-Cube-n, z 512", "3D-None, z 512"]
    assert [*names, cell, cell, "0.250", "-0.050 to +0.010", "not distinguishable"] in rows


def test_the_page_is_that_of_the_kept_results() -> None:
    assert (DOCS / PAGE).read_text() == page(kept()), "run python -m benchmarks.real_use --page"
