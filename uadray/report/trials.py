"""The trials of a sweep as a leaderboard: ranked by one objective, the best of a column marked."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uadray import config, files
from uadray.errors import ConfigError
from uadray.html import ABSENT
from uadray.metrics.metric import Appearance
from uadray.metrics.table import OWN
from uadray.report.columns import (
    Column,
    ascending,
    epochs_text,
    first_order,
    interval_text,
    number,
)
from uadray.report.effects import healthy_error
from uadray.report.rows import Row, metrics_of
from uadray.report.words import Compared
from uadray.runs.records import RunRecord
from uadray.runs.settings import EXPERIMENT, Setting, settings_of

CLASSES = 5
"""Colour classes: fifths of the ranked trials, 4 for the best."""

MAX_SIDE_BY_SIDE = 11
"""Columns of settings and of figures at most, for the cohorts to stand side by side."""

_RANKED = ("finished", "stopped")
_METRICS = {"dice": "dice_d", "auprc": "auprc"}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the trials of a sweep are ranked by."""

    head: str
    """Name, such as `healthy L1`."""
    source: str
    """Whether it uses labels, and which."""
    digits: int
    """As shown."""
    low_is_best: bool
    """Whether less is better."""
    uses_labels: bool
    """Whether lesion masks decide."""
    of: Callable[[RunRecord], float | None]
    """Of a run; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the sweep."""

    number: int
    """By which the page's charts and its table refer to it."""
    run: RunRecord
    """The run."""
    rows: tuple[Row | None, ...]
    """Its evaluation on each cohort."""
    objective: float | None
    """What it is ranked by; plain baselines that have none are not ranked."""
    rank: int | None
    """1 is the best; None for plain baselines, and for trials that failed or did not end."""
    fifth: int | None
    """Colour class."""

    @property
    def is_plain(self) -> bool:
        """Whether the method is a plain baseline."""
        return self.run.is_plain

    @property
    def status(self) -> str:
        """How the fit ended."""
        return str(self.run.summary["status"])

    def figure(self, metric: str, place: int) -> float | None:
        """A metric on one of the cohorts; None where it was not evaluated there."""
        row = self.rows[place]
        return None if row is None else finite(row.evaluation.metric(metric))


def objective_of(runs: Sequence[RunRecord]) -> Objective:
    """What a sweep compared its trials by: healthy error, or a figure that used labels."""
    named = {
        str(one["name"])
        for run in runs
        if (one := run.summary.get("objective") or {}).get("uses_labels") and one.get("name")
    }
    if len(named) != 1:
        return Objective(
            head="healthy L1",
            source="no labels",
            digits=4,
            low_is_best=True,
            uses_labels=False,
            of=lambda run: finite(healthy_error(run)),
        )
    (name,) = named
    heads = {metric.key: metric.head for metric in OWN}
    head = heads.get(_METRICS.get(name, name), name)

    def value(run: RunRecord) -> float | None:
        one = run.summary.get("objective") or {}
        return finite(one.get("value")) if one.get("name") == name else None

    return Objective(
        head=f"{head}, threshold part",
        source="uses labels",
        digits=3,
        low_is_best=False,
        uses_labels=True,
        of=value,
    )


def finite(value: Any) -> float | None:
    """A figure that can be drawn, or None."""
    is_figure = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_figure and math.isfinite(value) else None


def trials_of(
    runs: Sequence[RunRecord], cohorts: Sequence[Compared], objective: Objective
) -> list[Trial]:
    """Every run as a trial: the ranked ones first, then plain baselines, then what did not end."""
    places = [{row.run.url: row for row in cohort.group.rows} for cohort in cohorts]
    values = {run.url: objective.of(run) for run in runs}
    sign = 1 if objective.low_is_best else -1

    def is_ranked(run: RunRecord) -> bool:
        ended = str(run.summary["status"]) in _RANKED
        return ended and not run.is_plain and values[run.url] is not None

    def order(run: RunRecord) -> tuple[float, str]:
        value = values[run.url]
        return (math.inf if value is None else sign * value, run.label)

    ranked = sorted(filter(is_ranked, runs), key=order)
    plain = sorted((run for run in runs if run.is_plain), key=order)
    rest = [run for run in runs if not run.is_plain and not is_ranked(run)]
    return [
        Trial(
            number=n,
            run=run,
            rows=tuple(place.get(run.url) for place in places),
            objective=values[run.url],
            rank=n + 1 if n < len(ranked) else None,
            fifth=CLASSES - 1 - CLASSES * n // len(ranked) if n < len(ranked) else None,
        )
        for n, run in enumerate([*ranked, *plain, *rest])
    ]


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The first of those ranked that finished; a stopped one where none did."""
    ranked = [trial for trial in trials if trial.rank is not None]
    return next((trial for trial in ranked if trial.status == "finished"), next(iter(ranked), None))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The table of all trials."""

    columns: tuple[Column[Trial], ...]
    """Those in which the trials differ."""
    figures: tuple[tuple[Column[Trial], ...], ...]
    """The columns of metrics on each cohort."""
    best: dict[str, float]
    """Best figure of each column that has one, by its key."""
    cohort_of: dict[str, int]
    """Cohort of a column, by its key, where cohorts are shown one at a time."""
    constants: tuple[str, ...]
    """What all trials share, in words; it has no column."""

    def has(self, key: str) -> bool:
        """Whether there is a column of that key."""
        return any(column.key == key for column in self.columns)

    @property
    def header(self) -> str:
        """Key of the column that names a row."""
        return "name" if self.has("name") else "rank"

    def is_best(self, column: Column[Trial], trial: Trial) -> bool:
        """Whether the trial has the best figure of a column."""
        return column.key in self.best and column.value(trial) == self.best[column.key]


def leaderboard(
    trials: Sequence[Trial],
    settings: Sequence[Setting],
    objective: Objective,
    cohorts: Sequence[Compared],
) -> Leaderboard:
    """The columns of the table; those in which no two trials differ are left out."""
    varied = [one for one in settings if one.path != EXPERIMENT]
    metrics = sweep_metrics(cohorts)
    figures = [_figure(one, n, cohort) for n, cohort in enumerate(cohorts) for one in metrics]
    judged = [_objective(objective)] if objective.uses_labels else []
    judged += [_healthy(), *figures]
    candidates: list[Column[Trial]] = [
        ascending("rank", "Rank", lambda t: t.rank, _text),
        ascending("name", "Trial", lambda t: str(t.run.config["name"])),
        *map(_setting, varied),
        ascending("seed", "Seed", lambda t: t.run.seed, _text),
        *judged,
        Column(
            key="epochs",
            head="Best epoch",
            note="of all",
            value=lambda trial: finite(trial.run.summary.get("best_epoch")),
            text=lambda trial: epochs_text(trial.run),
            first="ascending",
        ),
        ascending("minutes", "Fit", minutes, lambda v: number(v, 1), "minutes"),
        ascending("memory", "Memory", memory, lambda v: number(v, 2), "GiB at peak"),
        ascending("status", "Status", lambda t: t.status),
    ]
    kept = {"rank", *(column.key for column in judged)}
    columns, constants = [], []
    for column in candidates:
        texts = {column.text(t) for t in trials if column.value(t) is not None}
        if column.key in kept or len(texts) > 1:
            columns.append(column)
        elif texts:
            constants.append(f"{column.head.lower()} {texts.pop()}")
    beside = len(varied) + len(figures) <= MAX_SIDE_BY_SIDE or len(cohorts) < 2
    return Leaderboard(
        columns=tuple(columns),
        figures=tuple(
            tuple(figures[n : n + len(metrics)]) for n in range(0, len(figures), len(metrics))
        ),
        best=_best(columns, judged, trials),
        cohort_of={} if beside else {o.key: n // len(metrics) for n, o in enumerate(figures)},
        constants=tuple(constants),
    )


def _best(
    columns: Sequence[Column[Trial]], judged: Sequence[Column[Trial]], trials: Sequence[Trial]
) -> dict[str, float]:
    """Of figures over all trials and baselines; of time and memory over the ranked trials."""
    best: dict[str, float] = {}
    for column in columns:
        if column in judged:
            among = trials
        elif column.key in ("minutes", "memory"):
            among = [t for t in trials if t.rank is not None and t.status == "finished"]
        else:
            continue
        values = [v for t in among if isinstance(v := column.value(t), float)]
        if len(values) > 1:
            best[column.key] = (min if column.first == "ascending" else max)(values)
    return best


def _setting(setting: Setting) -> Column[Trial]:
    held = settings_of

    def value(trial: Trial) -> Any:
        own = held(trial.run.config).get(setting.path)
        return own if own is None or setting.is_numeric else setting.text(own)

    def text(trial: Trial) -> str:
        own = held(trial.run.config)
        return setting.text(own[setting.path]) if setting.path in own else ABSENT

    head = setting.label[0].upper() + setting.label[1:]
    return Column(key=setting.path, head=head, value=value, text=text, first="ascending")


def _objective(objective: Objective) -> Column[Trial]:
    return Column(
        key="objective",
        head=objective.head,
        note=objective.source,
        value=lambda trial: trial.objective,
        text=lambda trial: number(trial.objective, objective.digits),
        first="ascending" if objective.low_is_best else "descending",
    )


def _healthy() -> Column[Trial]:
    return ascending(
        "healthy_l1",
        "Healthy L1",
        lambda trial: finite(healthy_error(trial.run)),
        lambda value: number(value, 4),
        "no labels",
    )


def sweep_metrics(cohorts: Sequence[Compared]) -> list[Appearance]:
    """Metrics of each cohort that have a column."""
    rows = [row for cohort in cohorts for row in cohort.group.rows]
    return [metric for metric in metrics_of(rows) if metric.in_sweeps]


def _figure(metric: Appearance, place: int, cohort: Compared) -> Column[Trial]:
    """A metric on one cohort, with its interval over people."""

    def detail(trial: Trial) -> str:
        row = trial.rows[place]
        return "" if row is None or not metric.has_interval else interval_text(row, metric.key)

    return Column(
        key=f"{metric.key}_{place}",
        head=metric.head,
        note=f"{cohort.group.name}{' [95 %]' if metric.has_interval else ''}",
        value=lambda trial: trial.figure(metric.key, place),
        text=lambda trial: number(trial.figure(metric.key, place)),
        detail=detail,
        first=first_order(metric),
    )


def _text(value: object) -> str:
    return ABSENT if value is None else str(value)


def minutes(trial: Trial) -> float | None:
    """What the fit took."""
    seconds = finite(trial.run.summary.get("fit_seconds"))
    return None if seconds is None else seconds / 60


def memory(trial: Trial) -> float | None:
    """Peak memory of the fit in GiB; None where it was not recorded."""
    return finite(trial.run.summary.get("peak_memory_gib"))


def repeat(run: RunRecord) -> str | None:
    """The command that fits a trial again; None for what no one command fits.

    That is a member of a population, whose settings changed on the way, or an experiment that this
    version does not know.
    """
    own = config.flat(run.config["experiment"])
    if run.config.get("lineage"):
        return None
    try:
        base = config.flat(config.to_json(config.experiment(str(run.config["name"]))))
    except ConfigError:
        return None
    changed = {path: value for path, value in own.items() if base.get(path, ...) != value}
    if any(path.endswith(".type") or ".package." in path for path in changed):
        return None
    cohort = str((run.config.get("cohort") or {}).get("url") or "HEALTHY.zarr")
    words = ["python", "jobs/train.py", str(run.config["name"])]
    words += [
        "--cohort",
        files.without_secrets(cohort),
        "--out",
        f"runs/{run.config['name']}-again",
    ]
    for path, value in changed.items():
        words += _flag(path, value)
    for name in ("num_workers", "micro_batch"):
        if (run.summary.get(name) or 0) > (name == "num_workers"):
            words += _flag(f"scale.{name}", run.summary[name])
    return shlex.join(words)


def _flag(path: str, value: Any) -> list[str]:
    """A setting as a flag of the jobs."""
    *parents, name = path.replace("_", "-").split(".")
    if isinstance(value, bool):
        return ["--" + ".".join([*parents, name if value else f"no-{name}"])]
    values = value if isinstance(value, list) else [value]
    return ["--" + ".".join([*parents, name]), *(f"{one}" for one in values)]
