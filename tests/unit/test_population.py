"""Populations: who takes over from whom, under which knobs, and what the folders say of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_cohorts import tiny_vae, write_healthy

from uadray import files
from uadray.config import FitConfig
from uadray.errors import ConfigError
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.tune.population import (
    FACTORS,
    Member,
    Population,
    advance,
    begin,
    experiment_of,
    folder_of,
    forget,
    lay,
    populations,
)
from uadray.tune.settings import SweepConfig
from uadray.tune.space import Space

CONFIG = SweepConfig(scheduler="pbt", population=4, interval=2, quantile=0.25)
LOW, HIGH = 1e-4, 1e-2
BASE = tiny_vae(3, epochs=5)
POPULATION = Population(base=BASE, ranges={"fit.learning_rate": (LOW, HIGH)}, config=CONFIG)


def test_a_population_for_each_setting_that_stays() -> None:
    space = Space(
        experiments=("3D-None", "3D-Cube-n", "PCA-4"),
        latent_size=(8, 16),
        learning_rate=(1e-4, 1e-2),
        max_share=(0.1, 0.3),
        seeds=(0, 1),
    )
    groups = populations(space, CONFIG)
    assert len(groups) == 2 * 2 * 2
    assert len({p.name for p in groups}) == len(groups)
    for one in groups:
        wanted = {"fit.learning_rate": (1e-4, 1e-2)}
        if one.base.name == "3D-Cube-n":
            wanted["erasing.max_share"] = (0.1, 0.3)
        assert one.ranges == wanted
    by_vary = replace(
        space,
        learning_rate=(),
        vary={"learning_rate": (1e-4, 1e-2), "batch_size": (4, 8)},
    )
    assert len({p.name for p in populations(by_vary, CONFIG)}) == 2 * len(groups)
    same = populations(replace(by_vary, vary={"learning_rate": (1e-4, 1e-2)}), CONFIG)
    assert same == groups
    with pytest.raises(ConfigError, match=r"--space\.learning-rate"):
        populations(Space(learning_rate=(1e-3,)), CONFIG)
    with pytest.raises(ConfigError, match="one of its knobs"):
        populations(Space(experiments=("PCA-4",), learning_rate=(1e-3, 1e-2)), CONFIG)


def test_generations_end_with_the_fit() -> None:
    assert POPULATION.num_generations == 3
    assert [POPULATION.end_of(g) for g in range(3)] == [2, 4, 5]
    member = begin(POPULATION)[1]
    made = experiment_of(POPULATION, member)
    assert made.fit.epochs == 2
    assert made.fit.learning_rate == member.knobs["fit.learning_rate"]
    wanted = replace(made, fit=replace(made.fit, epochs=5, learning_rate=1e-3))
    assert wanted == replace(BASE, fit=replace(BASE.fit, learning_rate=1e-3))


losses = st.lists(
    st.one_of(st.none(), st.floats(0, 1, allow_nan=False)), min_size=4, max_size=4
).filter(lambda values: any(v is not None for v in values))


@given(losses=losses, generation=st.integers(0, 5))
def test_the_last_take_over_from_the_first(losses: list[float | None], generation: int) -> None:
    members = [replace(m, generation=generation) for m in begin(POPULATION)]
    after = advance(POPULATION, members, losses)
    assert after == advance(POPULATION, members, losses)
    assert [m.number for m in after] == [0, 1, 2, 3]
    alive = [n for n in range(4) if losses[n] is not None]
    best = min(alive, key=lambda n: (losses[n], n))
    for old, new in zip(members, after, strict=True):
        assert new.generation == generation + 1
        assert LOW <= new.knobs["fit.learning_rate"] <= HIGH
        if new.parent == new.number:
            assert losses[new.number] is not None
            assert new.knobs == old.knobs
        else:
            assert new.parent == best
    assert all(after[n].parent == best for n in range(4) if losses[n] is None)
    if len(alive) == 4:
        assert sum(m.parent != m.number for m in after) == 1


def test_a_taken_over_knob_is_perturbed_or_drawn_anew() -> None:
    members = begin(POPULATION)
    ratios = set()
    for generation in range(40):
        at = [replace(m, generation=generation) for m in members]
        new = advance(POPULATION, at, [0.1, 0.2, 0.3, 0.4])[3]
        ratios.add(round(new.knobs["fit.learning_rate"] / at[0].knobs["fit.learning_rate"], 2))
    assert {round(f, 2) for f in FACTORS} < ratios


def test_nobody_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="every member has failed"):
        advance(POPULATION, begin(POPULATION), [None] * 4)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def fitted(url: str, member: Member, cohort: Cohort, value: float) -> Run:
    """A generation as a fit leaves it, with weights that tell whose they are."""
    folder = lay(url, POPULATION, member, cohort)
    run = Run.open(folder)
    detector = build_detector(run.experiment, run.shape)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.fill_(member.number + 10 * member.generation)
    optimizer = torch.optim.Adam(detector.parameters())
    first = len(run.metrics())
    for epoch in range(first + 1, run.experiment.fit.epochs + 1):
        record = {"epoch": epoch, "validation/reconstruction": value}
        run.write_metrics([*run.metrics(), record])
        CheckpointStore.of(run).save(epoch, detector, optimizer, value)
    run.finish({"status": "finished"})
    return run


def test_a_generation_begins_with_its_parent_s_state_and_says_so(
    cohort: Cohort, tmp_path: Path
) -> None:
    url = str(tmp_path)
    members = begin(POPULATION)
    for member in members:
        fitted(url, member, cohort, 0.1 * (1 + member.number))
    after = advance(POPULATION, members, [0.1, 0.2, 0.3, 0.4])
    folders = [lay(url, POPULATION, member, cohort) for member in after]
    taken = Run.open(folders[3])
    assert after[3].parent == 0
    assert taken.experiment == experiment_of(POPULATION, after[3])
    assert [r["epoch"] for r in taken.metrics()] == [1, 2]
    assert taken.metrics()[-1]["validation/reconstruction"] == pytest.approx(0.1)
    store = CheckpointStore.of(taken)
    state = store.state()
    assert state is not None
    assert (state.last, state.best_value) == (2, pytest.approx(0.1))
    detector = build_detector(taken.experiment, taken.shape)
    store.load_model(detector, state.last)
    assert all((p == 0).all() for p in detector.parameters())
    config = json.loads((Path(folders[3]) / "config.json").read_text())
    assert config["name"] == f"{BASE.name}-PBT"
    first, second = config["lineage"]
    assert first["epochs"] == [1, 2]
    assert second["epochs"] == [3, 4]
    assert (first["member"], second["member"], second["from_member"]) == (0, 3, 0)
    assert first["settings"] == members[0].knobs
    assert second["settings"] == after[3].knobs
    assert config["population"]["ranges"] == {"fit.learning_rate": [LOW, HIGH]}
    # Cut short behind any of its files, it is laid again; begun, it is left as it is.
    before = {p: p.read_bytes() for p in Path(folders[3]).rglob("*") if p.is_file()}
    (Path(folders[3]) / "checkpoint" / "state.json").unlink()
    assert lay(url, POPULATION, after[3], cohort) == folders[3]
    assert {p: p.read_bytes() for p in Path(folders[3]).rglob("*") if p.is_file()} == before
    forget(url, POPULATION, 0)
    assert not files.exists(f"{folder_of(url, POPULATION, 0, 0)}/checkpoint")
    assert lay(url, POPULATION, after[3], cohort) == folders[3]
    assert lay(url, POPULATION, members[0], cohort) == folder_of(url, POPULATION, 0, 0)


def test_the_last_generation_lies_among_the_runs(tmp_path: Path) -> None:
    assert folder_of("s", POPULATION, 2, 1).startswith("s/runs/3D-None-PBT-")
    assert folder_of("s", POPULATION, 1, 1).startswith("s/population/3D-None-PBT-")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scheduler": "pbt", "search": "random", "max_trials": 3}, "draws its own"),
        ({"population": 1}, "population"),
        ({"quantile": 0.6}, "quantile"),
        ({"interval": 0}, "interval"),
        ({"objective": "dice"}, "needs --sweep.labelled"),
        ({"labelled": "x.zarr"}, "uses no label"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SweepConfig(**settings)  # type: ignore[arg-type]


def test_what_is_fitted_first_differs_in_its_knobs_alone() -> None:
    made = [experiment_of(POPULATION, m) for m in begin(POPULATION)]
    assert len({m.fit.learning_rate for m in made}) == 4
    assert {replace(m, fit=FitConfig()) for m in made} == {replace(BASE, fit=FitConfig())}
