"""The study is fitted as its page lays it down."""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_cohorts import write_healthy

from benchmarks import study
from benchmarks.harness import DOCS
from benchmarks.study import BATCH, CONTRASTS, NETWORKS, STEPS, Study, designed, num_steps, tune
from uadray.config import BASELINES, experiment
from uadray.methods import Learned
from uadray.store import Cohort

PAGE = (DOCS / "study.md").read_text()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"), shape=(32, 32, 32))


def test_the_page_names_what_is_fitted_and_compared() -> None:
    fits = PAGE.partition("## Fits")[2].partition("## Contrasts")[0]
    assert set(NETWORKS) <= set(re.findall(r"`([\w-]+)`", fits))
    rows = re.findall(r"^\| [\d, to]+ \| ([^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    pairs = [(of, against.strip()) for names, against in rows for of in names.strip().split(", ")]
    assert pairs == list(CONTRASTS)
    assert f"{STEPS} steps" in PAGE
    assert f"{BATCH[2]} slices or of {BATCH[3]} volumes" in PAGE


@pytest.mark.parametrize("name", [*NETWORKS, *BASELINES])
def test_each_fit_is_as_laid_down(name: str, healthy: Cohort) -> None:
    tuned = {"2D": {"kl_weight": 0.1}, "3D": {"kl_weight": 10.0, "output": "sigmoid"}}
    made = designed(name, 3, STEPS, healthy, tuned)
    plain: Any = experiment(name)
    if not isinstance(made.method, Learned):
        assert made == plain
        return
    method: Any = made.method
    each = num_steps(healthy, method.ndim, BATCH[method.ndim])
    assert abs(made.fit.epochs * each - STEPS) <= each / 2
    assert (made.fit.seed, made.fit.batch_size) == (3, BATCH[method.ndim])
    assert made.name == name
    is_cube = plain.erasing.strategy in ("cube", "multi-cube")
    assert made.erasing == replace(plain.erasing, border="shift" if is_cube else "clip")
    is_vae = name[:2] in ("2D", "3D") and name != "3D-sVAE"
    if is_vae:
        assert replace(method, kl_weight=1.0, output="linear") == plain.method
        assert method.kl_weight == tuned[name[:2]]["kl_weight"]
    else:
        assert replace(method, widths=plain.method.widths) == plain.method
        assert tuple(2 * width for width in method.widths) == plain.method.widths


def test_settings_are_chosen_by_labels_that_are_not_reported(
    healthy: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []

    def fit(what: Any, cohort: Cohort, folder: str) -> Any:
        fitted.append(what)
        return SimpleNamespace(what=what, summary={"best_epoch": 1})

    def measure_run(run: Any, labelled: Cohort, epoch: int) -> dict[str, float]:
        method = run.what.method
        is_best = method.kl_weight == {2: 10.0, 3: 0.1}[method.ndim]
        return {"auprc": 0.3 + 0.2 * is_best + 0.1 * (method.output == "sigmoid")}

    monkeypatch.setattr(study, "fit", fit)
    monkeypatch.setattr(study, "measure_run", measure_run)
    asked = Study(out=str(tmp_path), kept=str(tmp_path / "kept"))
    assert tune(asked, healthy, healthy, stop=-math.inf) is None
    assert fitted == []
    chosen = tune(asked, healthy, healthy, stop=math.inf)
    assert chosen == {
        "2D": {"kl_weight": 10.0, "output": "sigmoid"},
        "3D": {"kl_weight": 0.1, "output": "sigmoid"},
    }
    assert len(fitted) == 8  # the weight that was chosen is not fitted twice
    assert {what.fit.seed for what in fitted} == {study.TUNING_SEED}
    assert {what.name for what in fitted} == {"2D-None", "3D-None"}
    assert tune(asked, healthy, healthy, stop=-math.inf) == chosen
    assert len(fitted) == 8
