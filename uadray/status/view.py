"""How a run or a sweep stands, for a terminal and for a log."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from uadray import files
from uadray.progress import clock
from uadray.status.state import RunState, State, SweepState, lasting

MAX_LISTED = 20
"""Trials in the table, and failures in the list, at most; the rest is counted."""

_LOSSES = {"train/reconstruction": "train L1", "validation/reconstruction": "validation L1"}
_METRICS = {"dice_d": "Dice_D", "auprc": "AUPRC"}


def view(state: State) -> RenderableType:
    """All of it, for a terminal."""
    return _run(state) if isinstance(state, RunState) else _sweep(state)


def line(state: State) -> str:
    """The same in one line, for a log."""
    head = _run_head(state) if isinstance(state, RunState) else _sweep_head(state)
    if isinstance(state, RunState):
        parts = [head, losses(state.records[-1]) if state.records else ""]
    else:
        parts = [head, _best(state)]
    parts += [_left(state), state.quiet]
    return "; ".join(part for part in parts if part)


def change_of(state: State) -> object:
    """What makes a new line of a log: it stays the same while there is nothing to say."""
    if isinstance(state, RunState):
        return state.status, state.epoch, bool(state.quiet), len(state.evaluations)
    ended = [(trial.url, trial.status) for trial in state.trials if trial.has_ended]
    going = [len(state.having(status)) for status in ("running", "unfinished", "waiting")]
    return state.has_ended, tuple(ended), tuple(going), bool(state.quiet)


def losses(record: Mapping[str, Any]) -> str:
    """Those of an epoch: of reconstruction, or of each player where there is none."""
    known = [(name, key) for key, name in _LOSSES.items() if key in record]
    if not known:
        known = [
            (key.split("/")[1], key)
            for key in record
            if key.startswith("train/") and key.endswith("/loss")
        ]
    return ", ".join(f"{name} {record[key]:.4f}" for name, key in known)


def _run(state: RunState) -> RenderableType:
    rows = [("status", _run_head(state))]
    if state.error:
        rows.append(("error", files.without_secrets(state.error)))
    if state.records:
        rows.append(("last epoch", losses(state.records[-1])))
    if state.best:
        rows.append(("best", f"epoch {state.best[0] or '-'}, validation L1 {state.best[1]:.4f}"))
    if state.seconds_per_epoch is not None:
        waited = state.records[-1].get("seconds/data")
        share = f", {waited:.1f} s of the last one waiting for data" if waited is not None else ""
        rows.append(("an epoch takes", f"{state.seconds_per_epoch:.1f} s{share}"))
    rows += [("time left", left)] if (left := _left(state)) else []
    if state.age is not None:
        rows.append(("last written", f"{lasting(state.age)} ago{_by(state)}"))
    if state.quiet:
        rows.append(("note", state.quiet))
    rows += [("evaluated on", f"{name}: {_figures(m)}") for name, m in state.evaluations]
    rows += [("warning", str(warning)) for warning in state.summary.get("warnings") or ()]
    rows.append(("folder", state.url))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table


def _run_head(state: RunState) -> str:
    cohort = f" on {state.cohort}" if state.cohort else ""
    head = f"{state.name}{cohort}: {state.status}"
    return head if state.epochs is None else f"{head}, epoch {state.epoch} of {state.epochs}"


def _by(state: RunState) -> str:
    if state.job is None or state.has_ended:
        return ""
    holder = state.job.holder
    return f", by process {holder.pid} on {holder.host}, since {holder.since}"


def _figures(metrics: Mapping[str, Any]) -> str:
    values = [
        f"{head} {metrics[key]:.3f}"
        for key, head in _METRICS.items()
        if isinstance(metrics.get(key), (int, float))
    ]
    return ", ".join(values) or "no figures"


def _left(state: State) -> str:
    seconds = state.seconds_left
    if not seconds:
        return ""
    most = " at most" if isinstance(state, SweepState) else ""
    return f"about {clock(seconds)} left{most}"


def _sweep(state: SweepState) -> RenderableType:
    parts: list[RenderableType] = [
        Text("; ".join(part for part in (_sweep_head(state), _left(state)) if part))
    ]
    parts += [Text(text) for text in (_best(state), state.quiet) if text]
    going = state.having("running", "unfinished")
    if going:
        parts.append(_running(going, state))
    failed = state.having("failed", "damaged")
    for trial in failed[:MAX_LISTED]:
        reason = files.without_secrets(trial.error).splitlines() or ["no reason is recorded"]
        parts.append(Text(f"{trial.status}: {trial.name}: {reason[0]}"))
    parts += [Text(_more(failed))] if len(failed) > MAX_LISTED else []
    return Group(*parts, Text(f"folder: {state.url}", style="dim"))


def _running(trials: Sequence[RunState], state: SweepState) -> Table:
    table = Table(caption=_more(trials) if len(trials) > MAX_LISTED else None)
    heads = ("trial", "epoch", "validation L1", "best", "s an epoch", "left", "last written")
    for head in heads:
        justify: Any = "left" if head in ("trial", "last written") else "right"
        table.add_column(head, justify=justify, min_width=12 if head == "trial" else None)
    for trial in trials[:MAX_LISTED]:
        last = trial.records[-1].get("validation/reconstruction") if trial.records else None
        each, left = trial.seconds_per_epoch, trial.seconds_left
        age = "" if trial.age is None else f"{lasting(trial.age)} ago"
        cells = (
            trial.name,
            str(trial.epoch) if trial.epochs is None else f"{trial.epoch}/{trial.epochs}",
            "" if last is None else f"{last:.4f}",
            f"{trial.best[1]:.4f}" if trial.best else "",
            "" if each is None else f"{each:.1f}",
            "" if left is None else clock(left),
            f"{age}, not running" if trial.status == "unfinished" else trial.quiet or age,
        )
        table.add_row(*map(Text, cells))
    return table


def _more(trials: Sequence[RunState]) -> str:
    return f"and {len(trials) - MAX_LISTED} more"


def _sweep_head(state: SweepState) -> str:
    counts = [
        f"{len(having)} {status}"
        for status in ("finished", "stopped", "failed", "damaged", "running", "unfinished")
        if (having := state.having(status))
    ]
    if state.waiting:
        counts.append(f"{state.waiting} {'not started' if state.has_ended else 'waiting'}")
    total = f"{state.total} trials" if state.total is not None else "trials"
    name = state.url.rpartition("/")[2]
    ended = ", ended" if state.has_ended else ""
    return f"{name}{ended}: {total}: {', '.join(counts) or 'none started'}"


def _best(state: SweepState) -> str:
    if (best := state.best) is None:
        return ""
    return f"best {state.head} {state.objective(best):.4f}: {best.name}"
