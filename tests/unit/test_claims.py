"""The papers' claims as data: their figures are printed there, and follow from the tables."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from uadray.errors import ConfigError
from uadray.papers import PAPERS
from uadray.papers.claims import CLAIMS, Claim, Side, experiment_of, in_own_table, printed_figure

BY_KEY = {(one.paper, one.key): one for one in CLAIMS}
BENGS = {one.key: one for one in CLAIMS if one.paper == "bengs2021"}


def ids(claim: Claim) -> str:
    return f"{claim.paper}-{claim.key}"


def plain(text: str) -> str:
    """One line, with words that were hyphenated at a line's end whole again."""
    return re.sub(r"\s+", " ", re.sub(r"-\s*\n\s*", "", text))


@pytest.mark.parametrize("claim", CLAIMS, ids=ids)
def test_its_figures_stand_in_the_papers_text(claim: Claim, real_data: Path) -> None:
    path = real_data.parent / "papers" / f"{claim.paper}.txt"
    if not path.exists():
        pytest.skip(f"the text of {claim.paper} is not at hand")
    text = plain(path.read_text())
    for one in claim.printed:
        assert one.text in text, one
        number = re.search(r"\d+(?:\.\d+)?", one.text)
        assert number is not None
        scale = 100 if "%" in one.text else 1
        assert float(number[0]) / scale == pytest.approx(one.value), one


@pytest.mark.parametrize("claim", CLAIMS, ids=ids)
def test_it_names_what_there_is(claim: Claim) -> None:
    paper = PAPERS[claim.paper]
    roles = {need.role for study in paper.studies for need in study.cohorts}
    assert set(claim.roles) <= roles | {""}
    if claim.study and claim.study not in ("figure-4",):
        paper.study(claim.study)
    assert bool(claim.contrasts) == bool(claim.roles and claim.metrics)
    for contrast in claim.contrasts:
        assert contrast.of != contrast.against
        for side in (contrast.of, contrast.against):
            made = experiment_of(claim, side)
            assert made.fit.data_share == side.share


def test_keys_are_unique() -> None:
    assert len(BY_KEY) == len(CLAIMS)


def test_a_claim_needs_contrasts_or_a_reason() -> None:
    with pytest.raises(ConfigError, match="neither contrasts nor a reason"):
        Claim(key="x", paper="bengs2021", where="here", says="that")
    with pytest.raises(ConfigError, match="unknown"):
        replace(BENGS["3d"], metrics=("dice",))


@pytest.mark.parametrize(
    ("paper", "key", "holds", "total"),
    [
        ("bengs2021", "3d", 42, 42),
        # Half-Slice-0 in Dice_S, Cube-0 and Half-Volume-0 in AUPRC, on strokes.
        ("bengs2021", "erasing", 69, 72),
        # Patch on strokes, in Dice_D and AUPRC.
        ("bengs2021", "noise", 22, 24),
        ("bengs2021", "best-3d", 3, 3),
        ("bengs2021", "best-2d", 3, 3),
        ("bengs2021", "best-against-2d", 3, 3),
        ("bengs2021", "t1ce", 6, 6),
        # sAE1 in AUPRC, below dAE and a hair below dVAE.
        ("baur2018", "spatial", 18, 20),
        ("baur2018", "anogan", 8, 8),
        # The table prints a higher AUPRC for the AE-GAN.
        ("baur2018", "vae-gan-first", 2, 3),
        ("baur2018", "resolution", 2, 2),
        ("baur2018", "speed", 7, 7),
        ("meissen2021", "above-the-study", 21, 21),
        ("meissen2021", "transformer", 2, 2),
        ("meissen2021", "transformer-on-tumours", 1, 1),
        # Drawn without numbers, or of no direction.
        ("bengs2021", "erasing-on-60", 0, 0),
        ("bengs2021", "no-winner", 0, 0),
        ("meissen2021", "auprc", 0, 0),
    ],
)
def test_how_often_it_holds_in_the_papers_own_table(
    paper: str, key: str, holds: int, total: int
) -> None:
    assert in_own_table(BY_KEY[paper, key]) == (holds, total)


def test_relative_gains_and_means_follow_from_the_tables() -> None:
    best, t1ce = BENGS["best-against-2d"], BENGS["t1ce"]

    def figure(claim: Claim, method: str, role: str, metric: str = "dice_d") -> float:
        printed = printed_figure(claim, Side(method=method), role, metric)
        assert printed is not None
        return printed

    def printed(claim: Claim, text: str) -> float:
        return next(one.value for one in claim.printed if one.text == text)

    for role, text in (("tumour", "12.31%"), ("stroke", "32.20%")):
        gain = figure(best, "3D-Cube-n", role) / figure(best, "2D-None", role) - 1
        assert gain == pytest.approx(printed(best, text), abs=5e-5)
    assert figure(best, "2D-None", "") == pytest.approx(printed(best, "25.76%"), abs=5e-5)
    # Printed as .3140; the table's figures have a mean of .3139.
    assert figure(best, "3D-Cube-n", "") == pytest.approx(printed(best, "31.40%"), abs=1.1e-4)
    for name, text in (("2D-Patch-n", "13.61%"), ("3D-Cube-n", "21.82%")):
        gain = figure(t1ce, name, "tumour-t1ce") / figure(t1ce, name, "tumour") - 1
        assert gain == pytest.approx(printed(t1ce, text), abs=1.1e-4)
    text_and_table = BENGS["3d-without-erasing"].printed[0]
    assert text_and_table.value == 0.3086
    assert figure(best, "3D-None", "stroke") == 0.3068
    assert "30.68" in text_and_table.note


def test_less_data_with_erasing_is_compared_with_all_of_it_without() -> None:
    main = BENGS["erasing-on-60"].contrasts[0]
    assert (main.of, main.against) == (
        Side(method="3D-Cube-n", share=0.6),
        Side(method="3D-None", share=1.0),
    )
    main = BENGS["3d-on-20"].contrasts[0]
    assert (main.of, main.against) == (
        Side(method="3D-None", share=0.2),
        Side(method="2D-Patch-n", share=1.0),
    )
