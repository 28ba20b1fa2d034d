"""What runs say of the papers' claims: which fits are compared, and what may be said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_run
from rich.table import Table

from benchmarks.claims import (
    README,
    cohort_table,
    kept_findings,
    measured,
    readme_table,
    results_table,
)
from benchmarks.harness import read_between
from benchmarks.real_use import kept
from uadray.config import Experiment
from uadray.papers import BENGS_2021
from uadray.papers.claims import CLAIMS, Side
from uadray.papers.reproduce import Reproduction
from uadray.papers.scales import SCALES
from uadray.papers.tables import claims_table
from uadray.papers.verdicts import UNTESTED, Finding, findings, judge, match
from uadray.report.compare import HIGHER, LOWER, ONE_FIT, SAME, TOO_FEW, Series, series_of
from uadray.report.rows import group_by_cohort
from uadray.runs.records import load_runs

CLAIM = {one.key: one for one in CLAIMS if one.paper == "bengs2021"}


def series(folder: Path) -> tuple[Series, ...]:
    (group,) = group_by_cohort(load_runs([str(folder)]))
    return series_of(group)


def on_share(share: float):  # type: ignore[no-untyped-def]
    def change(one: Experiment) -> Experiment:
        return replace(one, fit=replace(one.fit, data_share=share))

    return change


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, ...]:
    """Three seeds of four methods, one of them also on 60 % of the data."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for name in ("2D-None", "2D-Patch-n", "3D-None", "3D-Cube-n"):
            write_run(root / f"{name}-{seed}", name, seed=seed, num_test=20)
        less = root / f"less-{seed}"
        write_run(less, "3D-Cube-n", seed=seed, num_test=20, change=on_share(0.6))
    return series(root)


def test_a_side_is_matched_by_name_share_and_settings(fits: tuple[Series, ...]) -> None:
    claim = CLAIM["erasing-on-60"]
    whole = match(fits, claim, Side(method="3D-Cube-n"))
    part = match(fits, claim, Side(method="3D-Cube-n", share=0.6))
    assert whole is not None
    assert part is not None
    assert whole is not part
    assert len(part.rows) == 3
    assert match(fits, claim, Side(method="3D-Cube-n", share=0.2)) is None
    assert match(fits, claim, Side(method="3D-Cube-0")) is None
    assert match(fits, claim, Side(method="3D-Cube-n", role="tumour")) is None


def test_of_several_latent_sizes_the_papers_is_taken(tmp_path: Path) -> None:
    def small(one: Experiment) -> Experiment:
        return replace(one, method=replace(one.method, latent_size=32))  # type: ignore[call-arg]

    write_run(tmp_path / "paper", "3D-None")
    write_run(tmp_path / "small", "3D-None", change=small)
    matched = match(series(tmp_path), CLAIM["3d"], Side(method="3D-None"))
    assert matched is not None
    assert matched.rows[0].run.url.endswith("paper")


def test_every_contrast_that_was_run_is_found(fits: tuple[Series, ...]) -> None:
    made = findings(fits)
    contrasts = {(one.claim, one.contrast) for one in made}
    assert ("erasing-on-60", "3D-Cube-n, 60% of the data against 3D-None") in contrasts
    assert ("3d", "3D-Cube-n against 2D-Patch-n") in contrasts
    assert ("noise", "3D-Cube-n against 3D-Cube-0") not in contrasts
    assert not any(one.claim == "t1ce" for one in made)
    for one in made:
        claim = CLAIM[one.claim]
        assert one.metric == claim.metrics[0]
        assert one.fits == 3
        assert one.num_people == (20 if claim.subset == "all" else 10)
        assert one.p is not None
    one = next(one for one in made if one.claim == "3d-without-erasing")
    sides = [match(fits, CLAIM["3d"], Side(method=name)) for name in ("3D-None", "2D-None")]
    means = [side.mean("dice_d") for side in sides if side is not None]
    assert one.value == pytest.approx(means[0] - means[1])  # type: ignore[operator]


def test_small_and_large_lesions_are_compared_apart(fits: tuple[Series, ...]) -> None:
    by_contrast = {one.contrast: one for one in findings(fits) if "lesions" in one.contrast}
    assert set(by_contrast) == {
        "3D-Cube-n against 3D-None, large lesions",
        "2D-Patch-n against 2D-None, large lesions",
        "3D-Cube-n against 2D-Patch-n, small lesions",
    }
    one = by_contrast["3D-Cube-n against 2D-Patch-n, small lesions"]
    means = []
    for name in ("3D-Cube-n", "2D-Patch-n"):
        side = match(fits, CLAIM["3d"], Side(method=name))
        assert side is not None
        subjects = [row.evaluation.values["subjects"] for row in side.rows]
        middle = np.median([s["lesion_ml"] for s in subjects[0]])
        means.append(
            np.mean([s["dice"] for fit in subjects for s in fit if s["lesion_ml"] < middle])
        )
    assert one.value == pytest.approx(means[0] - means[1])
    assert one.bounds is not None
    assert one.bounds[0] < one.value < one.bounds[1]


def finding(p: float | None, value: float = 0.1, **changes: object) -> Finding:
    base = Finding(
        paper="bengs2021",
        claim="3d",
        contrast=f"{p} {changes}",
        metric="dice_d",
        value=value,
        bounds=None,
        p=p,
        num_people=50,
        fits=3,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_verdicts_are_corrected_over_the_table() -> None:
    rows = [
        finding(1e-4),
        finding(1e-3, value=-0.1),
        finding(0.04),
        finding(0.045),
        finding(1e-4, fits=1),
        finding(1e-4, num_people=5),
        finding(None),
    ]
    assert [one.verdict for one in judge(rows)] == [
        HIGHER,
        LOWER,
        SAME,
        SAME,
        ONE_FIT,
        TOO_FEW,
        UNTESTED,
    ]
    assert judge([finding(0.04)])[0].verdict == HIGHER
    twice = judge([finding(0.04), replace(finding(0.04), claim="best-against-2d")])
    assert [one.verdict for one in twice] == [HIGHER, HIGHER], "one comparison of two claims"


def test_what_is_kept_gives_the_same_table(fits: tuple[Series, ...]) -> None:
    cohort = {"cohort": "stroke", "num_test": 20, "claims": measured(fits)}
    assert kept_findings(cohort) == findings(fits)
    assert "3D-Cube-n, 60% of the data against 3D-None" in cohort_table(cohort)
    sweep = {"about": "made runs: a few", "cohorts": [cohort]}
    table = results_table([sweep])
    assert all(claim.says in table for claim in CLAIMS)
    assert "made runs, stroke: 20 people" in readme_table([sweep])


def test_of_earlier_versions_the_means_are_compared_and_not_tested() -> None:
    def made(name: str, mean: float, share: float, num: int) -> dict[str, object]:
        figures = {"dice_d": {"mean": mean}, "auprc": {"mean": mean}}
        latent = 512 if name.startswith("3D") else 128
        return {"name": name, "is_plain": False, "latent_size": latent, "data_share": share,
                "seeds": list(range(num)), "figures": figures}  # fmt: skip

    experiments = [made("3D-Cube-n", 0.5, 0.6, 3), made("3D-None", 0.4, 1.0, 3)]
    cohort = {"num_test": 48, "experiments": experiments}
    (one,) = judge(kept_findings(cohort))
    assert one.claim == "erasing-on-60"
    assert one.value == pytest.approx(0.1)
    assert one.verdict == UNTESTED
    experiments[0]["seeds"] = [0]
    assert judge(kept_findings(cohort))[0].verdict == ONE_FIT
    assert judge(kept_findings(cohort | {"num_test": 4}))[0].verdict == ONE_FIT


def test_the_readme_has_the_table_of_the_kept_results() -> None:
    assert read_between(README, "claims") == readme_table(kept()), "run python -m benchmarks.claims"


def test_a_reproduction_shows_the_claims_of_its_table(tmp_path: Path) -> None:
    for seed in range(2):
        for name in ("2D-None", "3D-None", "3D-Cube-n"):
            write_run(tmp_path / f"{name}-{seed}", name, seed=seed, num_test=20)
    runs = [str(path) for path in sorted(tmp_path.iterdir())]

    def claims_of(study: str) -> Table | None:
        one = Reproduction(
            paper=BENGS_2021,
            study=BENGS_2021.study(study),
            scale=SCALES["full"],
            out="nowhere",
            healthy=None,
            cohorts={},
        )
        return claims_table(one, runs)

    table = claims_of("table-1")
    assert table is not None
    contrasts = set(table.columns[2].cells)
    assert "3D-Cube-n against 3D-None" in contrasts
    assert set(table.columns[1].cells) == {"stroke"}
    assert claims_of("figure-7") is None
