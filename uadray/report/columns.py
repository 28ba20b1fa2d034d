"""The columns of the tables: page, CSV, Markdown and terminal show the same ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from uadray.html import ABSENT, NO_INTERVAL
from uadray.metrics.metric import Appearance
from uadray.report.rows import Row, metrics_of
from uadray.runs.evaluations import Evaluation
from uadray.runs.records import RunRecord

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Column(Generic[Item]):
    """One column: the figure itself, and how it reads."""

    key: str
    """Name in the CSV."""
    head: str
    """Name on the page."""
    value: Callable[[Item], float | str | None]
    """The figure, unrounded."""
    text: Callable[[Item], str]
    """The figure as shown."""
    detail: Callable[[Item], str] = lambda item: ""
    """What stands after or below it, such as its interval; empty for nothing."""
    note: str = ""
    """A second line of the head: a unit, or what a reader must know."""
    bounds: Callable[[Item], tuple[float, float] | None] | None = None
    """Ends of the interval, which the CSV adds as two columns; None for no such columns."""
    first: str = "descending"
    """Order of the first click: the best, or the first, on top."""

    def line(self, item: Item) -> str:
        """Text and detail in one line."""
        return f"{self.text(item)} {self.detail(item)}".rstrip()


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of digits, or `ABSENT`."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference with its sign, or `ABSENT`."""
    return ABSENT if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def short(value: float | None) -> str:
    """A figure with three significant digits, or `ABSENT`."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def brackets(
    bounds: tuple[float, float] | None, text: Callable[[float | None], str] = number
) -> str:
    """`[0.410, 0.540]`, or nothing."""
    return "" if bounds is None else f"[{text(bounds[0])}, {text(bounds[1])}]"


def ranges(numbers: Sequence[int]) -> str:
    """`1-3, 7`: ascending numbers in few words."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][-1] + 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    return ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)


def _printed(row: Row, key: str) -> str:
    """What a paper printed for this row, or nothing."""
    figure = row.published.get(key)
    if figure is None:
        return ""
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.3f}"
    spread += " over folds" if spread and figure.deviation_over == "folds" else ""
    about = "about " if figure.digitised else ""
    return f"published {about}{figure.value:.3f}{spread}"


def _metric(
    key: str,
    head: str,
    *,
    note: str = "",
    interval: bool = False,
    digits: int = 3,
    first: str = "descending",
    deviation: str = "",
) -> Column[Row]:
    def detail(row: Row) -> str:
        spread = row.evaluation.metric(deviation) if deviation else None
        parts = [
            "" if spread is None else f"± {spread:.3f}",
            interval_text(row, key, digits) if interval else "",
            _printed(row, key),
        ]
        return " ".join(part for part in parts if part)

    return Column(
        key=key,
        head=head,
        note=note or ("[95 %]" if interval else ""),
        value=lambda row: row.evaluation.metric(key),
        text=lambda row: number(row.evaluation.metric(key), digits),
        detail=detail,
        bounds=lambda row: row.evaluation.interval(key),
        first=first,
    )


def interval_text(row: Row, key: str, digits: int = 3) -> str:
    """The interval of a metric in brackets, or that it has none."""
    if row.evaluation.has_too_few_people and row.evaluation.metric(key) is not None:
        return NO_INTERVAL
    return brackets(row.evaluation.interval(key), lambda v: number(v, digits))


def ascending(
    key: str,
    head: str,
    get: Callable[[Item], Any],
    text: Callable[[Any], str] = str,
    note: str = "",
) -> Column[Item]:
    """A column of what is recorded, sorted upwards by the first click."""
    return Column(
        key=key,
        head=head,
        note=note,
        value=get,
        text=lambda item: text(get(item)),
        first="ascending",
    )


def _fit_minutes(row: Row) -> float | None:
    seconds = row.run.summary.get("fit_seconds")
    return None if seconds is None else seconds / 60


def _minutes(minutes: float | None) -> str:
    if minutes is None:
        return ABSENT
    return "< 0.1" if minutes < 0.1 else f"{minutes:.1f}"


def epochs_text(run: RunRecord) -> str:
    """`12 / 20`: the epoch that was kept, of all."""
    best, epochs = run.summary.get("best_epoch"), run.summary.get("epochs")
    return ABSENT if best is None else f"{best} / {epochs if epochs is not None else ABSENT}"


def _millions(count: int | None) -> str:
    if count is None:
        return ABSENT
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f} %"


METHOD: Column[Row] = ascending("method", "Method", lambda row: row.run.label)
"""The first column of every table of runs."""

_OF_THE_RUN: tuple[Column[Row], ...] = (
    Column(
        key="threshold",
        head="Threshold",
        note="value, rule",
        value=lambda row: row.evaluation.values["threshold"]["value"],
        text=lambda row: short(row.evaluation.values["threshold"]["value"]),
        detail=lambda row: str(row.evaluation.values["threshold"]["rule"]),
    ),
    Column(
        key="lesion_lost_to_erosion",
        head="Lost to erosion",
        note="of the lesion",
        value=lambda row: row.lost_share,
        text=lambda row: _percent(row.lost_share),
        detail=lambda row: "" if row.lost_ml is None else f"{short(row.lost_ml)} mL",
        first="ascending",
    ),
    ascending(
        "healthy_reconstruction",
        "Healthy L1",
        lambda row: row.evaluation.values.get("healthy_reconstruction"),
        lambda value: number(value, 4),
        "reconstruction, intensity",
    ),
    ascending(
        "seconds_per_volume",
        "Scoring",
        lambda row: row.evaluation.values.get("seconds_per_volume"),
        short,
        "seconds a volume",
    ),
    ascending("fit_minutes", "Fit", _fit_minutes, _minutes, "minutes"),
    Column(
        key="best_epoch",
        head="Best epoch",
        note="of all",
        value=lambda row: row.run.summary.get("best_epoch"),
        text=lambda row: epochs_text(row.run),
        first="ascending",
    ),
    ascending(
        "num_parameters",
        "Parameters",
        lambda row: row.run.summary.get("num_parameters"),
        _millions,
    ),
)


def _of_controls(
    key: str, head: str, note: str, *, digits: int = 3, first: str = "descending"
) -> Column[Row]:
    """A figure of healthy controls, with its interval."""

    def value(row: Row) -> float | None:
        found = (row.evaluation.controls or {}).get("metrics", {}).get(key)
        return None if found is None else float(found)

    def bounds(row: Row) -> tuple[float, float] | None:
        pair = (row.evaluation.controls or {}).get("intervals", {}).get(key)
        return None if pair is None else (float(pair[0]), float(pair[1]))

    def text(value: float | None) -> str:
        return number(value, digits)

    return Column(
        key=f"controls_{key}",
        head=head,
        note=note,
        value=value,
        text=lambda row: text(value(row)),
        detail=lambda row: brackets(bounds(row), text),
        bounds=bounds,
        first=first,
    )


SPECIFICITY = _of_controls(
    "specificity", "Specificity", "brain voxels of healthy controls [95 %]", digits=4
)
"""Stands beside Dice wherever there are healthy controls."""

CONTROL_COLUMNS: tuple[Column[Row], ...] = (
    METHOD,
    _of_controls(
        "false_ml_mean", "False volume", "mL a person, mean [95 %]", digits=1, first="ascending"
    ),
    _of_controls("false_ml_median", "median", "mL a person", digits=1, first="ascending"),
    _of_controls("false_ml_highest", "highest", "mL a person", digits=1, first="ascending"),
    _of_controls(
        "false_components_mean",
        "False components",
        "a person, mean [95 %]",
        digits=1,
        first="ascending",
    ),
    _of_controls("clean_share", "Without any", "share of people", digits=2),
    SPECIFICITY,
)
"""What is found in healthy people; for evaluations with controls."""


def main_columns(rows: Iterable[Row]) -> tuple[Column[Row], ...]:
    """The columns of the main table, in order."""
    rows = list(rows)
    controls = (SPECIFICITY,) if any(row.evaluation.controls for row in rows) else ()
    metrics = (_of_metric(one) for one in metrics_of(rows) if one.shown)
    return (METHOD, *metrics, *controls, *_OF_THE_RUN)


def _of_metric(metric: Appearance) -> Column[Row]:
    return _metric(
        metric.key,
        metric.head,
        note=metric.note,
        interval=metric.shows_interval and metric.has_interval,
        deviation=metric.deviation,
        first=first_order(metric),
    )


def first_order(metric: Appearance) -> str:
    """Order of the first click on a metric's head: the best on top."""
    return "descending" if metric.higher_is_better else "ascending"


CAVEATS: Column[Row] = ascending("caveats", "Notes", lambda row: ranges(row.caveats))
"""Numbers of a row's differences from a paper; for reproductions."""


def _found(row: Row) -> str:
    count, all_of_them = (
        row.evaluation.values["metrics"].get(key) for key in ("num_lesions_detected", "num_lesions")
    )
    return "" if count is None or all_of_them is None else f"{count} of {all_of_them}"


def _detection() -> Column[Row]:
    rate = _metric("lesion_detection_rate", "Lesions found", interval=True)
    return Column(
        key=rate.key,
        head=rate.head,
        note="share of components [95 %]",
        value=rate.value,
        text=rate.text,
        detail=lambda row: f"{_found(row)} {rate.detail(row)}".strip(),
        bounds=rate.bounds,
    )


LESION_COLUMNS: tuple[Column[Row], ...] = (
    METHOD,
    _detection(),
    _metric(
        "lesion_precision",
        "Lesion precision",
        note="predicted components that touch one [95 %]",
        interval=True,
    ),
    _metric(
        "false_components_per_volume",
        "False components",
        note="a volume [95 %]",
        interval=True,
        digits=1,
        first="ascending",
    ),
    _metric(
        "hd95_mm_mean",
        "HD95",
        note="mm, mean over subjects [95 %]",
        interval=True,
        digits=1,
        first="ascending",
    ),
    _metric(
        "surface_distance_mm_mean",
        "Surface distance",
        note="mm, mean over subjects [95 %]",
        interval=True,
        digits=1,
        first="ascending",
    ),
)
"""Lesions as objects; for evaluations that hold them."""


def has_lesions(rows: Sequence[Row]) -> bool:
    """Whether any row tells of lesions as objects."""
    return any(row.evaluation.metric("lesion_detection_rate") is not None for row in rows)


def _filtered(key: str, head: str) -> Column[Row]:
    def side(row: Row, which: str) -> Evaluation | None:
        values = row.evaluation.values.get(which)
        return None if values is None else row.evaluation.showing(values)

    def text(row: Row) -> str:
        before, after = side(row, "unfiltered"), side(row, "filtered")
        if before is None or after is None:
            return ABSENT
        return f"{number(before.metric(key))} \N{RIGHTWARDS ARROW} {number(after.metric(key))}"

    def bounds(row: Row) -> tuple[float, float] | None:
        after = side(row, "filtered")
        return None if after is None else after.interval(key)

    def value(row: Row) -> float | None:
        after = side(row, "filtered")
        return None if after is None else after.metric(key)

    return Column(
        key=f"filtered_{key}",
        head=head,
        note="before \N{RIGHTWARDS ARROW} after [95 %]",
        value=value,
        text=text,
        detail=lambda row: brackets(bounds(row)),
        bounds=bounds,
    )


BEST_OF_100 = "dice_best_of_100"
"""What Meissen 2021 reports, whose filter comes after the search."""


def filter_columns(rows: Iterable[Row]) -> tuple[Column[Row], ...]:
    """Figures before and after small components are dropped; for evaluations with that filter."""
    chosen = [one for one in metrics_of(rows) if one.brief or one.key == BEST_OF_100]
    return (METHOD, *(_filtered(one.key, one.head) for one in chosen))


def has_filter(rows: Sequence[Row]) -> bool:
    """Whether any row was evaluated with a component filter."""
    return any(row.evaluation.values.get("filtered") for row in rows)
