"""Frozen thresholds: fitted once, taken ever after, never mixed up."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from uadray.errors import EvaluationError
from uadray.metrics.counts import Threshold
from uadray.runs.frozen_thresholds import freeze

SETTINGS = {"rule": "best_dice", "cohort": "abc"}


class Fit:
    """Counts how often it is asked, and gives another level each time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[Threshold, list[Threshold]]:
        self.calls += 1
        level = 1000 * self.calls
        one = Threshold(level=level, value=level / 65535, rule="best_dice", fitted_on="c/threshold")
        return one, [replace(one, level=level + n, value=(level + n) / 65535) for n in (0, 7)]


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(url=str(tmp_path / "run"))


def file(run: SimpleNamespace) -> Path:
    return Path(run.url) / "evaluation" / "c-threshold.json"


def test_the_same_settings_take_the_same_threshold(run):
    fit = Fit()
    first = freeze(run, "c", SETTINGS, fit)
    written = file(run).read_bytes()
    assert freeze(run, "c", dict(reversed(SETTINGS.items())), fit) == first
    assert fit.calls == 1
    assert file(run).read_bytes() == written
    (entry,) = json.loads(written)["frozen"]
    assert (entry["fingerprint"], entry["level"]) == (first[2], 1000)
    assert entry["settings"] == SETTINGS


def test_other_settings_take_one_of_their_own_beside_it(run):
    fit = Fit()
    first = freeze(run, "c", SETTINGS, fit)
    second = freeze(run, "c", SETTINGS | {"rule": "percentile_98"}, fit)
    assert (first[0].level, second[0].level) == (1000, 2000)
    assert first[2] != second[2]
    assert [one.level for one in first[1]] == [1000, 1007]
    assert freeze(run, "c", SETTINGS, fit) == first
    assert freeze(run, "d", SETTINGS, fit)[0].level == 3000  # another cohort's file
    assert len(json.loads(file(run).read_text())["frozen"]) == 2


def test_a_fit_that_fails_freezes_nothing(run):
    def fails() -> Threshold:
        raise EvaluationError("no lesion voxel")

    with pytest.raises(EvaluationError, match="no lesion"):
        freeze(run, "c", SETTINGS, fails)
    assert not file(run).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"frozen": 3}', '{"frozen": [{"level": 3}]}'])
def test_a_damaged_file_is_named_and_never_fitted_over(run, content):
    file(run).parent.mkdir(parents=True)
    file(run).write_text(content)
    with pytest.raises(EvaluationError, match=r"c-threshold\.json is damaged.*restore it"):
        freeze(run, "c", SETTINGS, Fit())
    assert file(run).read_text() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"rule": "other"}}, "was edited"),
        ({"level": 0}, "level must lie"),
        ({"value": None}, "is damaged"),
    ],
)
def test_an_edited_threshold_is_refused(run, change, message):
    freeze(run, "c", SETTINGS, Fit())
    held = json.loads(file(run).read_text())
    held["frozen"][0] |= change
    file(run).write_text(json.dumps(held))
    with pytest.raises(EvaluationError, match=message):
        freeze(run, "c", SETTINGS, Fit())
