"""The table of erasing strategies: one entry gives names, settings, drawing, pages and docs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from uadray import strategies
from uadray.config import BENGS_TABLE_1, Experiment, experiment, from_json, to_json
from uadray.data.erasing import erased_mask, sample_erasing
from uadray.errors import ConfigError
from uadray.strategies import STRATEGIES, ErasingConfig, Regions, Strategy
from uadray.tune.vary import settings_of

DOCS = Path(__file__).parents[2] / "docs"


def draw_column(
    config: ErasingConfig, spatial: tuple[int, ...], uniform: strategies.Uniform
) -> Regions:
    u = uniform(1)
    boxes = np.zeros((len(u), 1, len(spatial), 2), np.int64)
    boxes[:, 0, :, 1] = spatial
    start = np.floor(u[:, 0] * spatial[-1]).astype(np.int64)
    boxes[:, 0, -1] = np.stack([start, start + 1], 1)
    return Regions(boxes_BRD2=boxes)


COLUMN = Strategy(
    key="column",
    names={2: "Column", 3: "Slab"},
    erases="one column of voxels, in 3D a sagittal plane",
    settings=("max_share",),
    draw=draw_column,
    nominal=lambda config, spatial: 1 / spatial[-1],
    source="nowhere",
)


@pytest.fixture
def column() -> Iterator[Strategy]:
    STRATEGIES["column"] = COLUMN
    yield COLUMN
    del STRATEGIES["column"]


def test_a_new_strategy_is_one_entry(column: Strategy) -> None:
    one = experiment("3D-sVAE-Slab-n")
    assert one.erasing.strategy == "column"
    assert experiment("2D-Column-0").name == "2D-Column-0"
    assert from_json(Experiment, to_json(one)) == one
    assert "erasing.max_share" in settings_of(one)
    shape = (6, 8, 10)
    x = torch.ones(20, *shape)
    where = sample_erasing(one.erasing, torch.arange(20), seed=0, epoch=0, spatial=shape)
    assert where.erased.any()
    share = erased_mask(x, where)[where.erased].mean()
    assert share == column.nominal(one.erasing, shape)


def test_the_papers_table_has_the_papers_strategies_alone(column: Strategy) -> None:
    assert len(BENGS_TABLE_1) == 14
    assert not any("Slab" in name or "Column" in name for name in BENGS_TABLE_1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "slab"}, "its key is 'slab'"),
        ({"names": {2: "cube", 3: "Slab"}}, "'cube' is taken"),
        ({"names": {2: "a/b", 3: "Slab"}}, "a name is a letter"),
        ({"names": {2: "Patch", 3: "Slab"}}, "'Patch' is taken"),
        ({"names": {2: "None", 3: "Slab"}}, "'None' is taken"),
        ({"names": {3: "Slab"}}, "one in 3D"),
        ({"settings": ("sides",)}, "names no setting: 'sides'"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    before = dict(STRATEGIES)
    with pytest.raises(ConfigError, match=message):
        STRATEGIES["column"] = replace(COLUMN, **change)  # type: ignore[arg-type]
    assert before == STRATEGIES


def test_an_unknown_strategy_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="one of none, cube, multi-cube, half-volume, cells, was 'slab'"
    ):
        ErasingConfig(strategy="slab")
    value = to_json(experiment("3D-Cube-n"))
    value["erasing"]["strategy"] = None
    with pytest.raises(ConfigError, match="strategy"):
        from_json(Experiment, value)


def test_a_field_that_came_later_is_left_out_at_its_default() -> None:
    one = experiment("3D-Cube-n")
    assert "border" not in to_json(one)["erasing"]
    moved = replace(one, erasing=replace(one.erasing, border="shift"))
    assert to_json(moved)["erasing"]["border"] == "shift"
    assert moved.fingerprint != one.fingerprint
    assert from_json(Experiment, to_json(moved)) == moved
    with pytest.raises(ConfigError, match="border"):
        from_json(Experiment, to_json(one) | {"erasing": {"border": "grow"}})


@pytest.mark.parametrize("one", STRATEGIES.values(), ids=lambda one: one.key)
def test_the_documentation_has_its_names_and_words(one: Strategy) -> None:
    row = (
        f"| `3D-{one.names[3]}-0`, `3D-{one.names[3]}-n` "
        f"| `2D-{one.names[2]}-0`, `2D-{one.names[2]}-n` | {one.erases} |"
    )
    assert row in (DOCS / "howto" / "erasing.md").read_text()
    explained = (DOCS / "explain" / "erasing.md").read_text().lower()
    assert all(name.lower() in explained for name in one.names.values())


@pytest.mark.parametrize("shape", [(64, 64), (20, 30), (6, 16, 20)])
def test_cells_are_hidden_once_and_as_many_as_were_drawn(shape: tuple[int, ...]) -> None:
    config = ErasingConfig(strategy="cells", fill="zero", probability=1.0)
    x = torch.ones(200, *shape)
    where = sample_erasing(config, torch.arange(200), seed=0, epoch=0, spatial=shape)
    mask = erased_mask(x, where)
    counted = (where.regions_BRD2[..., 1] - where.regions_BRD2[..., 0]).prod(-1).sum(1)
    assert np.array_equal(mask.reshape(200, -1).sum(1), counted), "no cell twice"
    shares = mask.reshape(200, -1).mean(1)
    assert shares.min() > 0
    assert shares.max() < 0.32
    assert abs(shares.mean() - STRATEGIES["cells"].nominal(config, shape)) < 0.02
