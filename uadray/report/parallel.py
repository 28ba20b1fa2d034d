"""Parallel coordinates: a line a trial, through its settings to its figures.

The drawing itself is still and whole; the page's script adds highlighting. Everything here is
places and texts, and the template escapes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from uadray.html import ABSENT
from uadray.report.columns import number
from uadray.report.effects import healthy_error
from uadray.report.words import Compared
from uadray.runs.records import RunRecord
from uadray.runs.settings import Setting, settings_of

WIDTH, HEIGHT = 158.0, 300.0
"""Between two axes, and of an axis; in the drawing's units, pixels at full size."""

TOP, LEFT, RIGHT, BOTTOM = 58.0, 150.0, 70.0, 22.0
"""Margins for heads and labels."""

CLASSES = 5
"""Colour classes: fifths of the trials by the last axis, the best one highest."""

MAX_COHORTS = 3
"""Maximum number of cohorts with an axis of their own."""

_SPREAD = 0.32
_TALL_ROW = 15.0


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A label of an axis; on an axis of a setting it can be chosen."""

    y: float
    """Place."""
    text: str
    """As shown."""
    key: str
    """What trials refer to it by; empty on an axis of figures."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis."""

    x: float
    """Place."""
    head: str
    """What it shows."""
    note: str
    """A second line: direction, or whether labels are used."""
    ticks: tuple[Tick, ...]
    """From the bottom up."""
    is_setting: bool
    """Whether it holds a setting; else a figure."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line."""

    label: str
    """Of the run."""
    points: str
    """`x,y` pairs of an SVG polyline; it ends early where figures are missing."""
    keys: str
    """Tick of each axis, parted by spaces; `-` where it is on none."""
    text: str
    """All its figures in words."""
    rank: str
    """Colour class, `0` to `4`, or `none`."""
    ended: str
    """How the fit ended."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """The whole drawing."""

    axes: tuple[Axis, ...]
    """From left to right."""
    trials: tuple[Trial, ...]
    """The worst first, so that the best is drawn on top."""
    ranked_by: str
    """What the colours follow."""
    width: float
    """Of the drawing."""
    height: float
    """Of the drawing."""


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """What an axis of figures shows."""

    head: str
    note: str
    digits: int
    low_is_best: bool
    of: Callable[[RunRecord], float | None]


def parallel(
    runs: Sequence[RunRecord], settings: Sequence[Setting], cohorts: Sequence[Compared]
) -> Parallel | None:
    """Lay out the trials of a sweep; None where there is nothing to draw.

    Args:
        runs: Every run; plain baselines too, since they have figures to stand against.
        settings: What varies: the axes on the left.
        cohorts: Dice_D on the first `MAX_COHORTS` of them: the axes on the right.
    """
    figures = [*_healthy(runs), *(_dice(cohort) for cohort in cohorts[:MAX_COHORTS])]
    if not settings or not figures or len(runs) < 2:
        return None
    tall = max(HEIGHT, *(_TALL_ROW * (len(one.values) + 1) for one in settings))
    known = {run.url: [one.of(run) for one in figures] for run in runs}
    ranks = _ranks([known[run.url][-1] for run in runs], figures[-1].low_is_best)
    places = [_setting_places(one, runs, tall, ranks) for one in settings]
    scales = [_scale([known[r.url][n] for r in runs], one, tall) for n, one in enumerate(figures)]
    axes = [
        Axis(x=LEFT + n * WIDTH, head=one.label, note="", ticks=ticks, is_setting=True)
        for n, (one, (ticks, _)) in enumerate(zip(settings, places, strict=True))
    ]
    axes += [
        Axis(x=LEFT + n * WIDTH, head=one.head, note=one.note, ticks=ticks, is_setting=False)
        for n, (one, (ticks, _)) in enumerate(zip(figures, scales, strict=True), start=len(axes))
    ]
    trials = []
    for k, run in enumerate(runs):
        heights = [at[k] for _, at in places]
        heights += [
            None if value is None else place(value)
            for value, (_, place) in zip(known[run.url], scales, strict=True)
        ]
        trials.append((ranks[k], _trial(run, settings, figures, known[run.url], heights, ranks[k])))
    trials.sort(key=lambda pair: -1 if pair[0] is None else pair[0])
    return Parallel(
        axes=tuple(axes),
        trials=tuple(trial for _, trial in trials),
        ranked_by=figures[-1].head,
        width=LEFT + (len(axes) - 1) * WIDTH + RIGHT,
        height=TOP + tall + BOTTOM,
    )


def _healthy(runs: Sequence[RunRecord]) -> list[_Figures]:
    if all(healthy_error(run) is None for run in runs):
        return []
    return [
        _Figures(
            head="healthy L1",
            note="no labels; low is on top",
            digits=4,
            low_is_best=True,
            of=healthy_error,
        )
    ]


def _dice(cohort: Compared) -> _Figures:
    values = {row.run.url: row.evaluation.metric("dice_d") for row in cohort.group.rows}
    return _Figures(
        head=f"Dice_D {cohort.group.name}",
        note="uses labels",
        digits=3,
        low_is_best=False,
        of=lambda run: values.get(run.url),
    )


def _ranks(values: Sequence[float | None], low_is_best: bool) -> list[float | None]:
    """Place of each value among those known, 0 for the worst and 1 for the best."""
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return [None for _ in values]
    signed = -known if low_is_best else known

    def rank(value: float) -> float:
        own = -value if low_is_best else value
        return float((signed < own).sum() + ((signed == own).sum() - 1) / 2) / max(
            len(known) - 1, 1
        )

    return [None if value is None else rank(value) for value in values]


def _setting_places(
    setting: Setting, runs: Sequence[RunRecord], tall: float, ranks: Sequence[float | None]
) -> tuple[tuple[Tick, ...], list[float | None]]:
    """Ticks at equal distances; trials on one tick are spread a little, the better ones higher."""
    values = list(setting.values)
    step = tall / max(len(values), 1)
    middle = {value: TOP + tall - (n + 0.5) * step for n, value in enumerate(values)}
    spread = min(_SPREAD * step, 16.0)
    heights: list[float | None] = []
    for run, rank in zip(runs, ranks, strict=True):
        held = settings_of(run.config)
        if setting.path not in held:
            heights.append(None)
        else:
            own = 0.0 if rank is None else rank
            heights.append(middle[held[setting.path]] - spread * (2 * own - 1))
    ticks = tuple(
        Tick(y=middle[value], text=setting.text(value), key=str(n))
        for n, value in enumerate(values)
    )
    return ticks, heights


def _scale(
    values: Sequence[float | None], one: _Figures, tall: float
) -> tuple[tuple[Tick, ...], Callable[[float], float]]:
    known = [value for value in values if value is not None]
    if not known:
        return (), lambda value: TOP + tall
    low, high = min(known), max(known)
    if high == low:
        low, high = low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6

    def place(value: float) -> float:
        share = (value - low) / (high - low)
        return TOP + tall * (share if one.low_is_best else 1 - share)

    inside = [v for v in MaxNLocator(5).tick_values(low, high) if low <= v <= high]
    ticks = tuple(Tick(y=place(v), text=f"{v:.4g}", key="") for v in inside)
    return ticks, place


def _trial(
    run: RunRecord,
    settings: Sequence[Setting],
    of_figures: Sequence[_Figures],
    figures: Sequence[float | None],
    heights: Sequence[float | None],
    rank: float | None,
) -> Trial:
    held: dict[str, Any] = settings_of(run.config)
    places = [f"{LEFT + n * WIDTH:.1f},{y:.1f}" for n, y in enumerate(heights) if y is not None]
    keys = [str(one.values.index(held[one.path])) if one.path in held else "-" for one in settings]
    parts = [f"{one.label} {one.text(held[one.path])}" for one in settings if one.path in held]
    parts += [f"seed {run.seed if run.seed is not None else ABSENT}"]
    parts += [
        f"{one.head} {number(value, one.digits)}"
        for one, value in zip(of_figures, figures, strict=True)
    ]
    status = str(run.summary["status"])
    return Trial(
        label=run.label,
        points=" ".join(places),
        keys=" ".join(keys),
        text=f"{', '.join(parts)}; {status}",
        rank="none" if rank is None else str(min(int(rank * CLASSES), CLASSES - 1)),
        ended=status,
    )
