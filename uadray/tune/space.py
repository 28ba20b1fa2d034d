"""Which experiments a sweep compares: values for settings, their combinations, and presets."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from uadray.config import (
    BASELINES,
    BENGS_TABLE_1,
    Experiment,
    FitConfig,
    experiment,
    flat,
    from_json,
    learns,
    to_json,
)
from uadray.errors import ConfigError
from uadray.strategies import strategy


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every combination of the values given; an empty tuple keeps what the experiment has.

    Settings that a method does not have are left out for it, and what comes out twice is fitted
    once: PCA has no latent size, so that a sweep over five sizes fits it once a seed.
    """

    experiments: tuple[str, ...] = ("2D-None", "3D-None", "3D-Cube-n")
    """Names: method, erasing strategy and fill in one, such as `3D-Cube-n`."""
    latent_size: tuple[int, ...] = ()
    """Lengths of z."""
    kl_weight: tuple[float, ...] = ()
    """Weights of the KL term."""
    learning_rate: tuple[float, ...] = ()
    """Of Adam."""
    epochs: tuple[int, ...] = ()
    """Passes over the training part."""
    max_share: tuple[float, ...] = ()
    """Largest erased share of the input, for strategies that have one (cube and multi-cube)."""
    data_share: tuple[float, ...] = ()
    """Shares of the training subjects."""
    method: tuple[str, ...] = ()
    """Values of any other setting of a method, such as `width=4,8`."""
    seeds: tuple[int, ...] = (0,)
    """Of the fit: weights, order, erasing, noise."""
    baselines: bool = True
    """Also fit the plain baselines, once each, so that every table has them."""
    fit: FitConfig = field(default_factory=FitConfig)
    """What all trials share; the settings above replace their fields of it."""

    def __post_init__(self) -> None:
        if not self.experiments:
            raise ConfigError(
                f"space.experiments must name at least one of {', '.join(BENGS_TABLE_1)}"
            )
        if not self.seeds:
            raise ConfigError("space.seeds must hold at least one seed")
        if clash := self._others().keys() & {"method.latent_size", "method.kl_weight"}:
            raise ConfigError(f"space.method: {min(clash)} has a flag of its own")

    def trials(self) -> list[Experiment]:
        """The distinct experiments, in order: by name, then by setting, then by seed.

        Raises:
            ConfigError: a name or a value is not known or not possible.
        """
        known = {path for name in self.experiments for path in settings_of(experiment(name))}
        if unknown := self._others().keys() - known:
            raise ConfigError(f"space.method: no experiment has a setting {min(unknown)!r}")
        trials = [trial for name in self.experiments for trial in self._variants(name)]
        if self.baselines:
            trials += [self.build({"experiment": name}) for name in BASELINES]
        return list(dict.fromkeys(trials))

    def _variants(self, name: str) -> Iterator[Experiment]:
        axes = self.axes()
        del axes["experiment"]
        for values in itertools.product(*axes.values()):
            yield self.build({"experiment": name, **dict(zip(axes, values, strict=True))})

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The values of each setting, by path into the experiment."""
        axes = {
            "experiment": self.experiments,
            "method.latent_size": self.latent_size,
            "method.kl_weight": self.kl_weight,
            **self._others(),
            "erasing.max_share": self.max_share,
            "fit.learning_rate": self.learning_rate,
            "fit.epochs": self.epochs,
            "fit.data_share": self.data_share,
            "fit.seed": self.seeds,
        }
        return {path: values for path, values in axes.items() if values}

    def _others(self) -> dict[str, tuple[Any, ...]]:
        """What `method` gives, by path."""
        others: dict[str, tuple[Any, ...]] = {}
        for one in self.method:
            name, _, values = one.partition("=")
            if not (name.strip() and values.strip()):
                raise ConfigError(f"space.method must be as in width=4,8, was {one!r}")
            path = f"method.{name.strip().replace('-', '_')}"
            others[path] = tuple(_parsed(value.strip()) for value in values.split(","))
        return others

    def build(self, point: dict[str, Any]) -> Experiment:
        """The experiment at one point; settings that its method lacks are left out."""
        base = replace(experiment(point["experiment"]), fit=self.fit)
        has = set(settings_of(base)) | {"fit.seed"}
        given = {path: point[path] for path in point if path in has - {"experiment"}}
        own = {path: given.pop(path) for path in self._others() if path in given}
        made = with_settings(base, given)
        if own:
            # Values that were given as text: their types are looked at as those in a file are.
            kept = to_json(made)
            kept["method"] |= {path.removeprefix("method."): v for path, v in own.items()}
            made = from_json(Experiment, kept)
        return _plain_fit(made)

    @property
    def varied(self) -> tuple[str, ...]:
        """What is compared, as paths into the experiment: settings with several values.

        A setting counts where one experiment has several values of it; that 2D and 3D have latent
        sizes of their own is no comparison.
        """
        groups: dict[str, list[dict[str, Any]]] = {}
        for trial in self.trials():
            groups.setdefault(trial.name, []).append(settings_of(trial))
        paths = [
            path
            for trials in groups.values()
            for path in trials[0]
            if len({t[path] for t in trials}) > 1
        ]
        several = ["experiment"] if len(groups) > 1 else []
        return tuple(dict.fromkeys([*several, *paths]))


def _parsed(value: str) -> Any:
    """A number or a switch as such, all else as text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _plain_fit(trial: Experiment) -> Experiment:
    """A method that learns nothing by gradient depends on few settings of the fit."""
    if learns(trial):
        return trial
    fit = replace(FitConfig(), data_share=trial.fit.data_share)
    # The seed chooses the subset, and nothing else.
    return replace(trial, fit=replace(fit, seed=trial.fit.seed if fit.data_share < 1 else 0))


def with_settings(base: Experiment, settings: dict[str, Any]) -> Experiment:
    """`base` with fields changed by path, such as `method.latent_size`.

    Raises:
        ConfigError: a path leads nowhere, or a value is not possible.
    """
    for path, value in settings.items():
        group, _, name = path.partition(".")
        part = getattr(base, group, None)
        if part is None or not hasattr(part, name):
            raise ConfigError(f"{base.name} has no setting {path!r}")
        base = replace(base, **{group: replace(part, **{name: value})})
    return base


_NO_SETTING = {
    *("method.type", "method.ndim", "method.package.distribution", "method.package.version"),
}
"""Say which method it is."""


def settings_of(trial: Experiment) -> dict[str, Any]:
    """The settings that a sweep may vary, by path; those that the method lacks are absent."""
    has = flat(to_json(trial))
    of_method = (path for path, value in has.items() if not isinstance(value, list))
    paths = [p for p in of_method if p.startswith("method.") and p not in _NO_SETTING]
    if learns(trial):
        paths += ["fit.learning_rate", "fit.epochs"]
        if (one := strategy(trial.erasing)) is not None and "max_share" in one.settings:
            paths.append("erasing.max_share")
    paths.append("fit.data_share")
    if learns(trial) or trial.fit.data_share < 1:
        paths.append("fit.seed")
    return {"experiment": trial.name} | {path: has[path] for path in paths if path in has}


def trial_name(trial: Experiment) -> str:
    """Name of its run folder: the experiment's, and enough of its fingerprint to be its own."""
    return f"{trial.name}-{trial.fingerprint[:8]}"


_SEEDS = (0, 1, 2)


def bengs_latent() -> Space:
    """Latent size of the 2D and the 3D VAE (Bengs 2021, section 2.2: 128 and 512 were chosen)."""
    return Space(
        experiments=("2D-None", "3D-None"), latent_size=(32, 64, 128, 256, 512, 1024), seeds=_SEEDS
    )


def bengs_erasing() -> Space:
    """The fourteen configurations of Bengs 2021, table 1."""
    return Space(experiments=BENGS_TABLE_1, seeds=_SEEDS)


def bengs_epochs() -> Space:
    """Number of epochs, which the paper tunes for each network (section 2.3)."""
    return Space(
        experiments=("2D-None", "2D-Patch-n", "3D-None", "3D-Cube-n"),
        epochs=(25, 50, 100, 200),
        seeds=_SEEDS,
    )


def bengs_data_size() -> Space:
    """Share of the training data (Bengs 2021, figure 5)."""
    return Space(
        experiments=("2D-None", "2D-Patch-n", "3D-None", "3D-Cube-n"),
        data_share=(0.1, 0.2, 0.6, 1.0),
        seeds=_SEEDS,
    )


def smoke() -> Space:
    """A sweep of a minute, to see that everything is in place."""
    return Space(
        experiments=("3D-None", "3D-Cube-n"),
        latent_size=(16, 32),
        fit=FitConfig(epochs=2, batch_size=8),
    )


def first_run() -> Space:
    """Latent size, epochs and erasing of 3D VAEs: twelve short trials, minutes on 2 cores."""
    return Space(
        experiments=("3D-None", "3D-Cube-n", "3D-Half-Volume-n"),
        latent_size=(32, 128),
        epochs=(10, 20),
        fit=FitConfig(batch_size=4, checkpoint_every=5),
    )


FIRST_RUN = "first-run"
"""The preset where none is named."""

PRESETS: dict[str, Callable[[], Space]] = {
    FIRST_RUN: first_run,
    "bengs-latent": bengs_latent,
    "bengs-erasing": bengs_erasing,
    "bengs-epochs": bengs_epochs,
    "bengs-data-size": bengs_data_size,
    "smoke": smoke,
}
"""Spaces by the name that `jobs/tune.py` takes."""
