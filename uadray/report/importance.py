"""How much each setting of a sweep decides a figure: permutation importance of a random forest.

The trials are drawn with replacement; a forest that is fitted to a draw predicts the trials left
out of it, once as they are and once with one setting shuffled among them. What the shuffling adds
to the squared error, in units of the figure's variance over all trials, is the importance. Its
median and 95 % range are over the draws, so that few trials show as wide ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from uadray.report.trials import Trial
from uadray.runs.settings import Setting, settings_of

MIN_TRIALS, MIN_EACH = 12, 3
"""Fewest trials, in all and for each setting; below, nothing is estimated."""

DRAWS, TREES, SHUFFLES = 24, 24, 3

METHOD = (
    f"Permutation importance of a random forest (scikit-learn, {TREES} trees): how much the "
    "squared error on left-out trials grows when a setting is shuffled, in units of the variance "
    f"over all trials. Median and 95 % range over {DRAWS} bootstrap draws."
)
"""In a line, how the figures are made."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One setting."""

    setting: Setting
    """The setting."""
    value: float
    """Median over the draws."""
    low: float
    """2.5th percentile of the draws."""
    high: float
    """97.5th percentile of the draws."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """All settings, for one figure."""

    head: str
    """The figure."""
    num_trials: int
    """Trials that have it."""
    weights: tuple[Weight, ...]
    """The highest first; empty where there is a `reason`."""
    explained: float | None
    """Share of the variance of left-out trials that the forest predicts: median over the draws."""
    reason: str
    """Why there are none."""


def importance(
    head: str,
    trials: Sequence[Trial],
    values: Sequence[float | None],
    settings: Sequence[Setting],
) -> Importance:
    """Estimate the importance of each setting for a figure.

    Args:
        head: The figure's name.
        trials: Those of the sweep; only ranked ones with a figure count.
        values: Figure of each.
        settings: What varies; one that does not among the trials that count is left out.
    """
    known = [
        (settings_of(trial.run.config), value)
        for trial, value in zip(trials, values, strict=True)
        if trial.rank is not None and value is not None
    ]
    varied = [one for one in settings if len({held.get(one.path) for held, _ in known}) > 1]
    reason = _too_few(len(known), len(varied))
    target = np.array([value for _, value in known])
    if not reason and not np.ptp(target):
        reason = "It is the same for all trials."
    if reason:
        return Importance(
            head=head, num_trials=len(known), weights=(), explained=None, reason=reason
        )
    codes = np.array([[_code(one, held) for one in varied] for held, _ in known], float)
    explained, draws = _draws(codes, target)
    low, middle, high = np.percentile(draws, (2.5, 50, 97.5), axis=0)
    weights = [
        Weight(setting=one, value=float(middle[k]), low=float(low[k]), high=float(high[k]))
        for k, one in enumerate(varied)
    ]
    share = float(np.median(explained))
    if share <= 0:
        reason = "The settings do not predict it on left-out trials, so no importance is shown."
    return Importance(
        head=head,
        num_trials=len(known),
        weights=() if reason else tuple(sorted(weights, key=lambda one: -one.value)),
        explained=share,
        reason=reason,
    )


def _too_few(num: int, num_settings: int) -> str:
    needed = max(MIN_TRIALS, MIN_EACH * num_settings)
    if not num_settings:
        return "No setting varies among these trials."
    if num < needed:
        settings = f"{num_settings} setting{' needs' if num_settings == 1 else 's need'}"
        return f"Too few trials: {num} have a figure; {settings} {needed}."
    return ""


def _code(setting: Setting, held: dict[str, Any]) -> int:
    """Place of the value among all, which is all that a tree sees of it; -1 where there is none."""
    return setting.values.index(held[setting.path]) if setting.path in held else -1


def _draws(codes: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Explained shares (draws,) and importances (draws, settings)."""
    random = np.random.default_rng(0)
    variance = target.var()
    explained, draws = [], []
    for seed in range(DRAWS):
        drawn = random.integers(len(target), size=len(target))
        out = np.setdiff1d(np.arange(len(target)), drawn)
        forest = RandomForestRegressor(TREES, random_state=seed).fit(codes[drawn], target[drawn])
        errors = np.square(forest.predict(codes[out]) - target[out])
        explained.append(1 - errors.mean() / variance)
        made = permutation_importance(
            forest,
            codes[out],
            target[out],
            scoring="neg_mean_squared_error",
            n_repeats=SHUFFLES,
            random_state=seed,
        )
        draws.append(made.importances_mean / variance)
    return np.array(explained), np.array(draws)
