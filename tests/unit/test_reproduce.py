"""Reproductions: what is there, what is missing, what differs, ours beside theirs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tiny_cohorts import write_healthy, write_lesioned

from uadray.config import BASELINES, experiment, to_json
from uadray.errors import ConfigError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.record import describe_lesions
from uadray.metrics.slicewise import Slices
from uadray.papers import BAUR_2018, BENGS_2021, MEISSEN_2021, Paper
from uadray.papers.caveats import (
    PREPARATION,
    differences,
    method_caveats,
    preparation_differences,
)
from uadray.papers.reproduce import Reproduction
from uadray.papers.scales import SCALES
from uadray.papers.tables import caveats_text, figures_table, to_markdown
from uadray.report.slices import pooled
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.sweep import run_url


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def tumour(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"), name="mine")


def of(study: str, healthy: Cohort | None, out: Path, **roles: Cohort) -> Reproduction:
    return Reproduction(
        paper=BENGS_2021,
        study=BENGS_2021.study(study),
        scale=SCALES["full"],
        out=str(out),
        healthy=healthy,
        cohorts=roles,
    )


def test_numbers_name_tables_with_all_their_parts() -> None:
    assert [s.key for s in BENGS_2021.select(["2"], ["4"])] == ["table-2", "figure-4"]
    assert [s.key for s in MEISSEN_2021.select(["4"])] == ["table-4-I", "table-4-II"]
    assert [s.key for s in MEISSEN_2021.select(["4-I"])] == ["table-4-I"]
    assert BENGS_2021.select() == list(BENGS_2021.studies)
    with pytest.raises(ConfigError, match="no table-9"):
        BENGS_2021.select(["9"])


def test_only_what_has_its_cohorts_is_made(healthy: Cohort, tumour: Cohort, tmp_path: Path) -> None:
    one = of("table-1", healthy, tmp_path, tumour=tumour)
    assert {e.role for e in one.entries()} == {"tumour"}
    assert len(one.experiments()) == 14 + len(BASELINES)
    assert {e.fit.epochs for e in one.experiments()[:14]} == {100}
    assert any("stroke" in line and "not given" in line for line in one.missing())
    # A figure over both cohorts needs both.
    assert of("figure-6", healthy, tmp_path, tumour=tumour).experiments() == []
    both = of("figure-6", healthy, tmp_path, tumour=tumour, stroke=tumour)
    assert len(both.experiments()) == 4 + len(BASELINES)
    assert of("table-1", None, tmp_path, tumour=tumour).experiments() == []
    seeds = replace(one, seeds=(0, 1, 2), baselines=False)
    assert len(seeds.experiments()) == 14 * 3
    states = {state for _, _, state in one.states()}
    assert states == {"missing"}


def test_a_scale_changes_epochs_and_says_so(
    healthy: Cohort, tumour: Cohort, tmp_path: Path
) -> None:
    one = replace(of("table-1", healthy, tmp_path, tumour=tumour), scale=SCALES["smoke"])
    made = {e.name: e for e in one.experiments()}
    assert made["2D-None"].fit.epochs == made["3D-None"].fit.epochs == 3
    assert (made["2D-None"].fit.batch_size, made["3D-None"].fit.batch_size) == (32, 4)
    assert "epochs = 3" in one.caveats()[0]
    phantom = replace(one, scale=SCALES["phantom"])
    assert {e.fit.epochs for e in phantom.experiments() if e.name == "3D-None"} == {100}


def test_another_grid_than_the_protocol_s_is_missing(tumour: Cohort, tmp_path: Path) -> None:
    one = Reproduction(
        paper=MEISSEN_2021,
        study=MEISSEN_2021.study("table-4-I"),
        scale=SCALES["full"],
        out=str(tmp_path),
        healthy=None,
        cohorts={"mslub": tumour},
    )
    assert one.roles == []
    message = next(line for line in one.missing() if "mslub" in line)
    assert "(155, 128, 128)" in message
    assert "--shape 155 128 128" in message
    small = replace(one, scale=SCALES["smoke"])
    assert small.roles == ["mslub"]
    # What learns nothing needs no healthy cohort.
    assert [e.name for e in small.experiments()] == ["HistEq"]
    assert small.fitted_on() is tumour
    assert small.evaluation().protocol == "bengs2021"
    assert small.evaluation().changes()["threshold_rule"] == "none"
    assert any("own grid" in line for line in small.caveats())


def test_it_is_said_where_the_data_is_not_theirs(tumour: Cohort) -> None:
    need = BENGS_2021.study("table-1").cohorts[0]
    caveats = " ".join(differences(need, tumour))
    assert "semi-synthetic lesions, no patients" in caveats
    assert "BraTS 2019" in caveats
    assert "5 subjects to fit the threshold and 7 to test; the paper has 133 and 202" in caveats
    assert "modality" not in caveats
    other = MEISSEN_2021.study("table-1").cohorts[1]
    assert "of modality T1w, not FLAIR" in " ".join(differences(other, tumour))

    class Phantoms:
        subjects = tumour.subjects.assign(
            source="phantom://stroke/1", notes="phantom, stroke", modality="T1w"
        )

    caveats = " ".join(differences(other, Phantoms()))  # type: ignore[arg-type]
    assert "invented brains" in caveats
    assert "look like T1, not like FLAIR" in caveats
    assert "stroke stand in for it" in caveats


def evaluated(one: Reproduction, name: str, cohort: Cohort, seed: int, dice: float) -> None:
    made = one.at_scale(experiment(name))
    made = replace(made, fit=replace(made.fit, seed=seed))
    run = Run.create(run_url(one.url, made), made, one.fitted_on())
    run.finish({"status": "finished"})
    record = {
        "cohort": {"name": cohort.name, "fingerprint": cohort.fingerprint},
        "metrics": {"dice_d": dice, "auprc": dice / 2, "dice_s_mean": None},
        "intervals": {"dice_d": [dice - 0.1, dice + 0.1]},
        "seconds_per_volume": 1.6,
    }
    place = Path(run.url) / "evaluation" / f"{cohort.name}.json"
    place.parent.mkdir()
    place.write_text(json.dumps(record))


def test_ours_stand_beside_theirs(healthy: Cohort, tumour: Cohort, tmp_path: Path) -> None:
    one = of("table-1", healthy, tmp_path, tumour=tumour)
    evaluated(one, "3D-Cube-n", tumour, 0, 0.4)
    rows = {(r["label"], r["metric"]): r for r in one.rows()}
    row = rows["3D-Cube-n", "dice_d"]
    assert (row["ours"], row["published"], row["interval"]) == (0.4, 0.301, [0.4 - 0.1, 0.5])
    assert rows["3D-Cube-n", "dice_s_mean"]["ours"] is None
    assert rows["3D-Cube-n", "dice_s_mean"]["published_deviation"] == 0.1374
    assert rows["3D-None", "dice_d"]["ours"] is None
    states = {e.name: state for e, _, state in one.states()}
    assert states["3D-Cube-n"] == "evaluated"
    assert states["3D-None"] == "missing"
    assert one.published()["mine", "3D-Cube-n"]["dice_d"].value == 0.301
    two = replace(one, seeds=(0, 1))
    evaluated(two, "3D-Cube-n", tumour, 1, 0.5)
    row = next(r for r in two.rows() if (r["label"], r["metric"]) == ("3D-Cube-n", "dice_d"))
    assert row["ours"] == pytest.approx(0.45)
    assert row["ours_each_seed"] == [0.4, 0.5]
    json.dumps(two.record(), allow_nan=False)
    assert to_json(two.record()["scale"])["name"] == "full"


def test_every_row_names_its_differences(healthy: Cohort, tumour: Cohort, tmp_path: Path) -> None:
    one = of("table-1", healthy, tmp_path, tumour=tumour)
    evaluated(one, "3D-Cube-n", tumour, 0, 0.4)
    caveats = one.caveats()
    rows = {r["label"]: [caveats[n - 1] for n in r["caveats"]] for r in one.rows()}

    def has(label: str, words: str) -> bool:
        return any(words in text for text in rows[label])

    assert all(has(label, "BraTS 2019") for label in rows)
    assert all(has(label, "names no norm, activation, weight") for label in rows)
    assert all(has(label, "number of epochs") for label in rows)
    clipped = {label for label in rows if has(label, "clipped at the border")}
    assert clipped == {n for n in rows if "Patch" in n or "Cube" in n}
    assert {label for label in rows if has(label, "image pixel")} == {
        n for n in rows if n.endswith("-n")
    }
    assert has("2D-None", "how the cohort was prepared is not recorded")
    on_the_page = {
        label: [text for text, pairs in one.rows_with().items() if (tumour.name, label) in pairs]
        for label in rows
    }
    assert on_the_page == rows
    text, page = caveats_text(one).plain, to_markdown(one)
    for number, line in enumerate(caveats, start=1):
        assert f"note {number}: {line}" in text
        assert f"{number}. {line}" in page
    assert figures_table(one).caption == caveats_text(one)
    assert "notes |" in page.replace("  ", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("paper", "config", "expected"),
    [
        ("bengs2021", {"shape": [32, 32, 32]}, ["64 x 64 x 64; here shape is [32, 32, 32]"]),
        ("bengs2021", {}, []),
        ("meissen2021", {"mask_threshold": 0.5}, ["cuts the registered masks at 0.9; here"]),
        ("meissen2021", {"skull_strip": "robex-if-needed"}, []),
        ("baur2018", {"register": "mni152"}, ["SRI24 atlas; here register is mni152"]),
    ],
)
def test_a_preparation_is_compared_with_the_papers(
    paper: str, config: dict[str, object], expected: list[str], tumour: Cohort
) -> None:
    papers = {name: value for name, (value, _) in PREPARATION[paper].items()}

    class Prepared:
        subjects, attributes = tumour.subjects, {"plan": {"config": papers | config}}

    found = preparation_differences(paper, "tumour", Prepared())  # type: ignore[arg-type]
    assert len(found) == len(expected)
    assert all(words in text for words, text in zip(expected, found, strict=True))


@pytest.mark.parametrize("paper", [BENGS_2021, BAUR_2018, MEISSEN_2021], ids=lambda one: one.key)
def test_methods_say_their_deviations(paper: Paper) -> None:
    for study in paper.studies:
        found = method_caveats(study, paper.key)
        for entry in study.entries:
            assert any(one.of(entry) for one in found)
            if paper is BAUR_2018:
                assert any("Larsen" in one.text for one in found if one.of(entry)) == (
                    entry.label != "AnoGAN"
                )


def test_slices_of_several_cohorts_are_pooled() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for n, z in ((3, 8), (4, 6)):
        score = rng.random((n, z)).astype(np.float32).round(2)
        counted = rng.random((n, z)) < 0.8
        lesion = (rng.random((n, z)) < 0.4) & counted
        names = tuple(f"{z}-{k}" for k in range(n))
        parts.append(Slices(subjects=names, score=score, lesion=lesion, counted=counted))
    scores = np.concatenate([p.score[p.counted] for p in parts])
    truth = np.concatenate([p.lesion[p.counted] for p in parts])
    found = pooled(parts, [part.subjects for part in parts])
    assert found.value == pytest.approx(average_precision_score(truth, scores))


def test_lesions_are_counted_without_a_run(tumour: Cohort) -> None:
    text = describe_lesions(tumour)
    assert text["num_subjects"] == text["num_components"] == 12
    assert text["mean_size_ml"] == pytest.approx(tumour.subjects["lesion_ml"].mean(), rel=1e-3)


def test_cohorts_that_are_tested_whole_take_thresholds_of_healthy_volumes(
    healthy: Cohort, tumour: Cohort, tmp_path: Path
) -> None:
    class Whole:
        subjects = tumour.subjects.assign(split="test")

    one = of("table-1", healthy, tmp_path, tumour=tumour)
    rule = EvaluateConfig.of("baur2018")
    none = EvaluateConfig.of("meissen2021-I")
    assert one._threshold_from(rule, [tumour]) is None
    assert one._threshold_from(rule, [tumour, Whole()]) is healthy  # type: ignore[list-item]
    assert one._threshold_from(none, [Whole()]) is None  # type: ignore[list-item]


def test_rows_of_meissen_s_competitors_have_their_study_s_protocol() -> None:
    protocols = {e.label: e.protocol for e in MEISSEN_2021.study("table-2").entries}
    assert protocols.pop("HistEq") == ""
    assert set(protocols.values()) == {"meissen2021-study"}
