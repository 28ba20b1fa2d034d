"""Groups that an evaluation was not asked for: what is missing is said with what makes it.

That they are those of an evaluation with `--by` is tested where volumes are scored
(tests/ray/test_evaluate.py).
"""

from importlib import import_module
from pathlib import Path

import pytest
from fake_runs import write_run
from tiny_cohorts import write_lesioned

from uadray import files
from uadray.config import to_json
from uadray.errors import ConfigError, EvaluationError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.report import write_report
from uadray.runs.records import Broken, load_runs


def recorded_on(run: Path, url: str, fingerprint: str) -> None:
    """Let a made evaluation be one of a cohort that is there."""
    place = str(run / "evaluation/stroke.json")
    values = files.read_json(place)
    values["cohort"] |= {"url": url, "fingerprint": fingerprint}
    values["settings"] = to_json(EvaluateConfig()) | {"cohort": fingerprint}
    values["controls"] = None
    values["weights"] = "0" * 16
    values["score_range"] = [0.0, 1.0]
    values["threshold"]["fingerprint"] = "e" * 16
    files.write_json(place, values)


@pytest.fixture
def lesioned(tmp_path: Path):
    cohort = write_lesioned(tmp_path, name="stroke")
    cohort.add_covariates({"age": [30.0 + n for n in range(len(cohort.subjects))]})
    return cohort


class TestWhatDoesNotSuffice:
    def test_is_named_and_the_page_is_made_without(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        left_out: list[Broken] = []
        out = str(tmp_path / "report.html")
        write_report([str(run)], out, by=["age:40"], left_out=left_out)
        (one,) = left_out
        assert "stroke: figures by age:40 cannot be made from what is kept" in str(one)
        assert f"python jobs/evaluate.py {run} --cohort " in str(one)
        assert "--by age:40 makes them, from kept scores" in str(one)
        page = Path(out).read_text()
        assert "cannot be made from what is kept" in page
        assert "3D-Cube-n" in page
        with pytest.raises(EvaluationError, match=r"jobs/evaluate\.py"):
            write_report([str(run)], out, by=["age:40"])

    def test_a_cohort_that_is_another_by_now(self, tmp_path: Path, lesioned, monkeypatch) -> None:
        run = write_run(tmp_path / "run")
        recorded_on(run, lesioned.url, "f" * 16)
        monkeypatch.setattr("uadray.runs.evaluations._weights", lambda *_: "0" * 16)
        with pytest.raises(EvaluationError, match=r"is cohort \w{16} by now, not ffff"):
            write_report([str(run)], str(tmp_path / "report.html"), by=["age:40"])

    def test_a_column_that_nobody_has(self, tmp_path: Path, lesioned, monkeypatch) -> None:
        run = write_run(tmp_path / "run")
        recorded_on(run, lesioned.url, lesioned.fingerprint)
        monkeypatch.setattr("uadray.runs.evaluations._weights", lambda *_: "0" * 16)
        with pytest.raises(EvaluationError, match="knows nobody's sex; it knows scanner"):
            write_report([str(run)], str(tmp_path / "report.html"), by=["sex"])

    def test_kept_scores_that_are_gone(self, tmp_path: Path, lesioned, monkeypatch) -> None:
        run = write_run(tmp_path / "run")
        recorded_on(run, lesioned.url, lesioned.fingerprint)
        entry = {"fingerprint": "e" * 16, "settings": {}, "level": 9, "value": 0.1, "rule": "x"}
        place = str(run / "evaluation/stroke-threshold.json")
        files.write_json(place, {"frozen": [entry | {"fitted_on": "a"}]})
        monkeypatch.setattr("uadray.runs.evaluations._weights", lambda *_: "0" * 16)
        with pytest.raises(EvaluationError, match=r"the kept scores in .*stroke\.zarr are gone"):
            write_report([str(run)], str(tmp_path / "report.html"), by=["age:40"])

    def test_without_groups_asked_for_nothing_is_opened(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run")
        write_report([str(run)], str(tmp_path / "report.html"))
        assert load_runs([str(run)])[0].evaluations[0].values.get("strata") is None


def test_ranges_that_do_not_ascend_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="where its ranges end, ascending"):
        import_module("uadray.jobs.report").Report(by=("age:60:40",))
