"""Which experiments a sweep compares: values for settings, their combinations, and presets."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from uadray import fields, settings_files
from uadray.config import (
    BASELINES,
    BENGS_TABLE_1,
    Experiment,
    FitConfig,
    experiment,
    learns,
)
from uadray.errors import ConfigError
from uadray.tune.vary import resolved, settings_of, typed, with_settings

FIELDS = {
    "experiment": "experiments",
    "method.latent_size": "latent_size",
    "method.kl_weight": "kl_weight",
    "erasing.max_share": "max_share",
    "fit.learning_rate": "learning_rate",
    "fit.epochs": "epochs",
    "fit.data_share": "data_share",
    "fit.seed": "seeds",
}
"""Settings that have a field of `Space`, by path; in the order of their combinations."""


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
    vary: Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Values of any other setting of a method, of its erasing or of its fit, by path or by name:
    `{"method.dropout": (0.0, 0.2), "probability": (0.25, 0.5)}`; held by path."""
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
        if not self.vary:
            return
        vary = resolved(self.vary, list(map(experiment, self.experiments)))
        for path in vary.keys() & FIELDS.keys():
            name = FIELDS[path]
            if getattr(self, name) != getattr(type(self), name):
                flag = f"--space.{name.replace('_', '-')}"
                raise ConfigError(
                    f"{path} has values by {flag}, of the preset where you gave none, and by vary: "
                    f"give them by {flag} alone"
                )
        object.__setattr__(self, "vary", vary)

    def trials(self) -> list[Experiment]:
        """The distinct experiments, in order: by name, then by setting, then by seed.

        Raises:
            ConfigError: a name or a value is not known or not possible.
        """
        trials = [trial for name in self.experiments for trial in self._variants(name)]
        used = {path for trial in trials for path in settings_of(trial)}
        if unused := [path for path in self.vary if path not in used]:
            raise ConfigError(
                f"vary: {unused[0]} plays no part in {', '.join(self.experiments)}: leave it out, "
                "or name experiments that use it"
            )
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
        axes = {path: getattr(self, name) for path, name in FIELDS.items()}
        axes.update(self.vary)
        axes["fit.seed"] = axes.pop("fit.seed")  # the last, so that repeats stand together
        return {path: values for path, values in axes.items() if values}

    def with_text(self, vary: Sequence[Sequence[str]]) -> "Space":
        """This space with values of other settings from the texts of a command line.

        Args:
            vary: Of each setting its name and its values; they replace values that it had.

        Raises:
            ConfigError: see `vary.resolved`.
        """
        if not all(vary):
            raise ConfigError("vary needs the name of a setting, then its values")
        given = [name for name, *_ in vary]
        if twice := [name for name in given if given.count(name) > 1]:
            raise ConfigError(f"vary: {twice[0]} is given twice")
        experiments = list(map(experiment, self.experiments))
        more = resolved({name: values for name, *values in vary}, experiments, is_text=True)
        return replace(self, vary={**self.vary, **more})

    def narrowed(self, values: Mapping[str, Any]) -> "Space":
        """This space with one value for each of some settings, by path."""
        one = {path: (value,) for path, value in values.items()}
        vary = {path: one.pop(path, several) for path, several in self.vary.items()}
        own: dict[str, Any] = {FIELDS[path]: value for path, value in one.items()}
        return replace(self, vary=vary, **own)

    def build(self, point: Mapping[str, Any]) -> Experiment:
        """The experiment at one point; settings that play no part in it are left out."""
        made = replace(experiment(point["experiment"]), fit=self.fit)
        # What plays a part depends on the strategy, which comes first therefore.
        for paths in (["erasing.strategy"], list(point)):
            has = set(settings_of(made)) - {"experiment"} | {"fit.seed"}
            given = {path: point[path] for path in paths if path in point and path in has}
            own = {path: value for path, value in given.items() if path in self.vary}
            made = with_settings(made, given | typed(made, own))
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
            for path in dict.fromkeys(path for trial in trials for path in trial)
            if len({trial.get(path) for trial in trials}) > 1
        ]
        several = ["experiment"] if len(groups) > 1 else []
        return tuple(dict.fromkeys([*several, *paths]))


def _plain_fit(trial: Experiment) -> Experiment:
    """A method that learns nothing by gradient depends on few settings of the fit."""
    if learns(trial):
        return trial
    fit = replace(FitConfig(), data_share=trial.fit.data_share)
    # The seed chooses the subset, and nothing else.
    return replace(trial, fit=replace(fit, seed=trial.fit.seed if fit.data_share < 1 else 0))


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


def read_space(place: str) -> Space:
    """The space in a file, such as the `space.toml` of a sweep.

    Raises:
        ConfigError: there is none, or it holds no space; the message names the file.
    """
    table = settings_files.read(place, "space")
    return checked(fields.overlay(Space(), table, place), place)


def checked(space: Space, place: str) -> Space:
    """A space that a file gives.

    Raises:
        ConfigError: no experiment can have a value of it; the message names the file.
    """
    try:
        space.trials()
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return space


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


def named_space(name: str) -> Space:
    """The preset of that name, or the space in a file whose name ends in `.toml`.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith(".toml"):
        return read_space(name)
    if name not in PRESETS:
        raise ConfigError(f"no preset is named {name!r}{fields.closest(name, PRESETS)}")
    return PRESETS[name]()
