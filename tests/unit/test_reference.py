"""Where a scan's person stands among healthy people that a model knows, without their names."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import finished_run, freeze_threshold, healthy_cohort, scan_of, write_head

import uadray
from uadray import files
from uadray.errors import ConfigError, ModelError, NoScanFoundError, PredictError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.settings import ComponentConfig, PostprocessConfig
from uadray.prediction.model import Model
from uadray.prediction.model_folder import export_model, open_model
from uadray.prediction.reference import sentence
from uadray.prediction.scan import predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.covariates import age_of, with_age
from uadray.runs.folder import Run

AGES = [20.0 + 2 * n for n in range(24)]
"""Of the healthy people: 18 that the model learns from, then 6 of 56 to 66 years."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("reference")
    cohort = healthy_cohort(home, 24)
    cohort.add_covariates({"age": AGES, "sex": ["F", "M"] * 12})
    made = finished_run(home / "run", cohort, "MeanImage")
    freeze_threshold(made, 0.2, config=EvaluateConfig(components=ComponentConfig(max_size=4)))
    return made


def add_controls(run: Run, people: list[dict[str, Any]], cohort: str = "stroke") -> None:
    """As an evaluation with controls leaves them."""
    place = files.join(run.url, "evaluation", f"{cohort}.json")
    record = files.read_json(place)
    record["controls"] = {
        "cohort": {"name": "others", "url": "/somewhere/others.zarr", "fingerprint": "1" * 16},
        "num_people": len(people),
        "subjects": [{"id": "secret-name", "false_ml": 1.0, "false_components": 1}],
        "people": people,
        "strata": {},
        "detection": {},
    }
    files.write_json(place, record)


def person(age: float | None, score: float) -> dict[str, Any]:
    names = ("volume", "maximum", "percentile", "top_mean")
    return {"scores": dict.fromkeys(names, score), "age": age, "sex": "M"}


@pytest.fixture
def tested(run: Run, tmp_path: Path) -> Run:
    """The run with 40 controls of 20 to 59 years, whose scores rise with age."""
    mine = Run.open(shutil.copytree(run.url, str(tmp_path / "tested")))
    add_controls(mine, [person(20.0 + n, 0.001 * n) for n in range(40)])
    return mine


def standing_of(model: Model, path: str, age: float | None = None, **config: Any) -> dict[str, Any]:
    scan = scan_of(path) if age is None else with_age(scan_of(path), age)
    found: dict[str, Any] = predict_scan(model, scan, PredictConfig(**config)).summary["standing"]
    return found


class TestValidation:
    def test_its_scores_are_those_that_prediction_has_of_the_same_scans(self, run: Run) -> None:
        model = open_model(run.url)
        (reference,) = model.references
        assert (reference.source, reference.cohort) == ("validation", "healthy")
        assert sorted(one.age for one in reference.people) == AGES[18:]
        by_age = {one.age: one for one in reference.people}
        folder = Path(run.cohort_url).parent / "scans"
        for n in (18, 21, 23):
            mine = standing_of(model, str(folder / f"h{n:02d}_T1w.nii.gz"), AGES[n])
            values = {name: one["value"] for name, one in mine["scores"].items()}
            assert values == pytest.approx(by_age[AGES[n]].scores, abs=1e-5)
            # As often among the others as its score is there.
            every = sorted(one.scores["top_mean"] for one in reference.people)
            rank = np.searchsorted(every, values["top_mean"] + 1e-9)
            assert mine["scores"]["top_mean"]["all"]["num_lower"] == pytest.approx(rank - 0.5)

    def test_says_that_they_chose_the_epoch(self, run: Run, tmp_path: Path) -> None:
        path = write_head(tmp_path / "p_T1w.nii.gz", 40)
        remarks = standing_of(open_model(run.url), path, 60)["remarks"]
        assert any("may have chosen its epoch by them" in one for one in remarks)

    def test_is_made_once_and_the_cohort_may_go(self, run: Run, tmp_path: Path) -> None:
        open_model(run.url)
        alone = Run.open(shutil.copytree(run.url, str(tmp_path / "run")))
        config = files.read_json(files.join(alone.url, "config.json"))
        config["cohort"]["url"] = str(tmp_path / "gone.zarr")
        files.write_json(files.join(alone.url, "config.json"), config)
        assert open_model(alone.url).references == open_model(run.url).references
        # What an earlier version kept has none: without the cohort nobody is compared with.
        kept = files.read_json(files.join(alone.url, "predict.json"))
        del kept["references"]
        files.write_json(files.join(alone.url, "predict.json"), kept)
        model = open_model(alone.url)
        assert model.references == ()
        found = standing_of(model, write_head(tmp_path / "p_T1w.nii.gz", 40), 60)
        assert found["reference"] is None
        assert found["scores"]["maximum"]["value"] > 0
        assert "--controls HEALTHY.zarr" in found["remarks"][0]
        assert sentence(found) == ""

    def test_of_another_threshold_is_another(self, run: Run, tmp_path: Path) -> None:
        mine = Run.open(shutil.copytree(run.url, str(tmp_path / "run")))
        (before,) = open_model(mine.url).references
        freeze_threshold(mine, 0.1)
        (now,) = open_model(mine.url).references
        assert now.threshold != before.threshold
        assert max(now.values("volume")) > max(before.values("volume"))

    def test_their_volumes_are_without_the_components_that_are_dropped(self, run, tmp_path) -> None:
        mine = Run.open(shutil.copytree(run.url, str(tmp_path / "run")))
        freeze_threshold(mine, 0.1)
        (before,) = open_model(mine.url).references
        assert before.values("volume").max() > 0
        every = EvaluateConfig(components=ComponentConfig(max_size=16**3))
        freeze_threshold(mine, 0.1, config=every)
        (now,) = open_model(mine.url).references
        assert now.values("volume").max() == 0
        assert np.array_equal(now.values("maximum"), before.values("maximum"))


class TestControls:
    def test_come_before_the_validation_part(self, tested: Run, tmp_path: Path) -> None:
        model = open_model(tested.url)
        (reference,) = model.references
        assert (reference.source, reference.cohort) == ("controls", "others")
        assert reference.describe() == "40 healthy people of cohort others (40 men; 20 to 59 years)"
        path = write_head(tmp_path / "p_T1w.nii.gz", 40, lesion=True)
        found = standing_of(model, path, 50)
        assert (found["num_similar"], found["remarks"]) == (20, [])
        one = found["scores"]["top_mean"]
        assert one["similar_age"]["percentile"] == one["all"]["percentile"] == 100
        assert one["similar_age"]["interval"][0] == pytest.approx(100 * 0.025 ** (1 / 20))
        assert sentence(found) == (
            "mean of the 100 highest scores of the brain: percentile 100 [83, 100] among 20 "
            "healthy people within 10 years of age"
        )

    @pytest.mark.parametrize(
        ("age", "remark"),
        [
            (None, "the age is not known"),
            (75.0, "nobody among the healthy people is as old as 75 years: they are 20 to 59"),
            (9.0, "is as young as 9 years"),
        ],
    )
    def test_never_goes_beyond_their_ages_unsaid(self, tested, tmp_path, age, remark) -> None:
        path = write_head(tmp_path / "p_T1w.nii.gz", 40)
        found = standing_of(open_model(tested.url), path, age)
        assert remark in found["remarks"][0]
        for one in found["scores"].values():
            assert one["similar_age"] is None
            assert one["all"]["num_people"] == 40
        assert "among all 40 healthy people" in sentence(found)

    def test_few_and_unknown_ages_are_said(self, run: Run, tmp_path: Path) -> None:
        mine = Run.open(shutil.copytree(run.url, str(tmp_path / "run")))
        path = write_head(tmp_path / "p_T1w.nii.gz", 40)
        add_controls(mine, [person(20.0 + 20 * (n > 6), 0.1) for n in range(10)])
        found = standing_of(open_model(mine.url), path, 38)
        assert "3 of the healthy people are within 10 years of 38: too few" in found["remarks"][0]
        add_controls(mine, [person(None, 0.1) for n in range(10)])
        found = standing_of(open_model(mine.url), path, 38)
        assert "ages of the healthy people are not known" in found["remarks"][0]
        add_controls(mine, [person(30.0, 0.1) for n in range(3)])
        found = standing_of(open_model(mine.url), path, 30)
        assert found["remarks"] == ["3 healthy people are too few for a percentile"]
        assert found["scores"]["maximum"]["all"] is None

    def test_their_volume_is_of_one_threshold(self, tested: Run, tmp_path: Path) -> None:
        model, path = open_model(tested.url), write_head(tmp_path / "p_T1w.nii.gz", 40)
        found = standing_of(model, path, 50, threshold=0.15)
        assert "similar_age" not in found["scores"]["volume"]
        assert "volume is at another threshold" in found["remarks"][-1]
        assert found["scores"]["maximum"]["similar_age"]
        assert "volume" not in standing_of(model, path, 50, map_only=True)["scores"]

    def test_of_another_evaluation_are_taken_without_their_volume(self, tested, tmp_path) -> None:
        config = EvaluateConfig(components=ComponentConfig(max_size=4))
        freeze_threshold(tested, 0.25, cohort="tumour", config=config)
        model = open_model(tested.url)
        assert [one.source for one in model.references] == ["controls"]
        path = write_head(tmp_path / "p_T1w.nii.gz", 40)
        found = standing_of(model, path, 50, threshold_from="tumour")
        assert found["reference"]["evaluated_on"] == "stroke"
        assert "similar_age" not in found["scores"]["volume"]
        # Its own come before more of another threshold.
        add_controls(tested, [person(20.0 + n, 0.1) for n in range(12)], cohort="tumour")
        model = open_model(tested.url)
        found = standing_of(model, path, 25, threshold_from="tumour")
        assert found["reference"]["evaluated_on"] == "tumour"
        assert found["scores"]["volume"]["similar_age"]["num_people"] == 12
        # What is scored otherwise is of others.
        other = EvaluateConfig(postprocess=PostprocessConfig(median_size=3))
        freeze_threshold(tested, 0.25, cohort="other", config=other)
        sources = {one.evaluation: one.source for one in open_model(tested.url).references}
        assert sources == {"stroke": "controls", "tumour": "controls", "other": "validation"}

    def test_of_an_earlier_version_are_none(self, tested: Run) -> None:
        place = files.join(tested.url, "evaluation", "stroke.json")
        record = files.read_json(place)
        del record["controls"]["people"]
        files.write_json(place, record)
        assert [one.source for one in open_model(tested.url).references] == ["validation"]


class TestModelFolder:
    def test_has_them_without_names(self, tested: Run, tmp_path: Path) -> None:
        exported, _ = export_model(tested.url, str(tmp_path / "model"), onnx=False)
        assert exported.references == open_model(tested.url).references
        for path in (tmp_path / "model").iterdir():
            assert b"secret-name" not in path.read_bytes(), path.name
            assert b"/somewhere" not in path.read_bytes(), path.name
        held = json.loads((tmp_path / "model/reference.json").read_text())
        assert set(held[0]["people"][0]) == {"scores", "age", "sex"}
        assert (
            "people"
            not in json.loads((tmp_path / "model/evaluations.json").read_text())[0]["controls"]
        )
        card = (tmp_path / "model/MODEL_CARD.md").read_text()
        assert (
            "40 healthy people of cohort others (40 men; 20 to 59 years), of whom nothing was"
            in card
        )

    def test_of_an_earlier_version_predicts(self, tested: Run, tmp_path: Path) -> None:
        export_model(tested.url, str(tmp_path / "model"), onnx=False)
        (tmp_path / "model/reference.json").unlink()
        manifest = json.loads((tmp_path / "model/manifest.json").read_text())
        del manifest["files"]["reference.json"]
        (tmp_path / "model/manifest.json").write_text(json.dumps(manifest))
        model = open_model(str(tmp_path / "model"))
        assert model.references == ()
        found = standing_of(model, write_head(tmp_path / "p_T1w.nii.gz", 40), 50)
        assert found["reference"] is None

    @pytest.mark.parametrize("wrong", ['[{"cohort": 3}]', "[1]", '{"a": 1}'])
    def test_that_is_damaged_is_refused(self, tested: Run, tmp_path: Path, wrong: str) -> None:
        import hashlib

        export_model(tested.url, str(tmp_path / "model"), onnx=False)
        (tmp_path / "model/reference.json").write_text(wrong)
        manifest = json.loads((tmp_path / "model/manifest.json").read_text())
        manifest["files"]["reference.json"] = hashlib.sha256(wrong.encode()).hexdigest()
        (tmp_path / "model/manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ModelError, match=r"reference\.json: cannot build a model of it"):
            open_model(str(tmp_path / "model"))


class TestAges:
    def test_of_a_table_for_a_folder(self, tested: Run, tmp_path: Path) -> None:
        for name, seed in (("anna", 40), ("bert", 41)):
            write_head(tmp_path / f"scans/{name}_T1w.nii.gz", seed)
        table = tmp_path / "people.tsv"
        table.write_text("participant_id\tAge\nanna_T1w\t33\nbert_T1w\tn/a\n")
        done = uadray.predict_folder(
            tested.url, tmp_path / "scans", tmp_path / "out", covariates=table, workers=1
        )
        found = {one["name"]: one["standing"] for one in done.summaries}
        assert {name: one["age"] for name, one in found.items()} == {
            "anna_T1w": 33.0,
            "bert_T1w": None,
        }
        lines = (tmp_path / "out/predictions.tsv").read_text().splitlines()
        rows = {row["name"]: row for row in csv.DictReader(lines, delimiter="\t")}
        assert rows["anna_T1w"]["age"] == "33"
        anna = found["anna_T1w"]["scores"]["top_mean"]["similar_age"]
        assert float(rows["anna_T1w"]["percentile"]) == pytest.approx(anna["percentile"])
        page = (tmp_path / "out/anna_T1w/viewer.html").read_text()
        assert "40 healthy people of cohort others" in page
        # Another age is another result; the same one is not made again.
        table.write_text("participant_id\tAge\nanna_T1w\t53\nbert_T1w\tn/a\n")
        again = uadray.predict_folder(
            tested.url, tmp_path / "scans", tmp_path / "out", covariates=table, workers=1
        )
        assert again.num_kept == 1
        assert again.summaries[0]["standing"]["age"] == 53
        with pytest.raises(PredictError, match="--age is of one person, but 2 scans"):
            uadray.predict_folder(tested.url, tmp_path / "scans", tmp_path / "out", age=40)

    def test_a_reference_that_has_come_since_is_another_request(self, tested, tmp_path) -> None:
        path = write_head(tmp_path / "p_T1w.nii.gz", 40)
        uadray.predict(tested.url, path, out=tmp_path / "out", age=30)
        add_controls(tested, [person(20.0 + n, 0.5) for n in range(30)])
        with pytest.raises(PredictError, match=r"under other settings \(reference: "):
            uadray.predict(tested.url, path, out=tmp_path / "out", age=30)

    @pytest.mark.parametrize("age", [-1.0, 200.0, float("nan"), "63"])
    def test_that_nobody_has_is_refused(self, tested: Run, tmp_path: Path, age: Any) -> None:
        with pytest.raises(ConfigError, match="age must be in years"):
            uadray.predict(tested.url, write_head(tmp_path / "p_T1w.nii.gz"), age=age)

    def test_given_comes_before_the_table_s(self) -> None:
        scan = replace(scan_of("/data/p_T1w.nii.gz"), covariates=(("Age", "71"), ("sex", "m")))
        assert age_of(scan) == 71
        assert age_of(with_age(scan, 44.5)) == 44.5
        assert dict(with_age(scan, 44.5).covariates)["sex"] == "m"
        assert age_of(replace(scan, covariates=(("age", "adult"),))) is None
        assert age_of(scan_of("/data/p_T1w.nii.gz")) is None

    def test_of_a_table_that_is_none_is_said(self, tested: Run, tmp_path: Path) -> None:
        scan = scan_of(write_head(tmp_path / "p_T1w.nii.gz", 40))
        wrong = replace(scan, covariates=(("age", "-9"),))
        standing = predict_scan(open_model(tested.url), wrong, PredictConfig()).summary["standing"]
        assert standing["age"] is None
        assert "'-9' of p_T1w is none in years" in standing["remarks"][0]

    def test_a_table_of_other_people_is_refused(self, tested: Run, tmp_path: Path) -> None:
        write_head(tmp_path / "scans/anna_T1w.nii.gz", 40)
        (tmp_path / "people.csv").write_text("participant_id,age\nzoe,33\n")
        with pytest.raises(NoScanFoundError, match="names any of the 1 scans"):
            uadray.predict_folder(
                tested.url,
                tmp_path / "scans",
                tmp_path / "out",
                covariates=tmp_path / "people.csv",
            )
