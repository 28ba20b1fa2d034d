"""Populations (Jaderberg et al. 2017) whose only state is run folders.

A population is one experiment in several members that differ in their knobs: learning rate, KL
weight, largest erased share. These change neither the network nor what it is fitted on, so that a
state of one member can be gone on with under the knobs of another; all other settings, the seed
among them, are those of the experiment.

It goes by generations of some epochs each. After each of them the last members take over the state
of a first one and change its knobs by chance. Members wait for each other, so that who takes over
from whom follows from what the folders hold and the seed alone, and a sweep that was killed ends as
an undisturbed one.

Every generation of a member is a run folder of its own, started with the epochs and the checkpoint
that it goes on from: `population/.../g00-m03` and, for the last one, `runs/3D-None-PBT-...-m03`.
`lineage` in its `config.json` says which epochs were fitted by which member under which knobs: the
experiment beside it holds for the last of them alone.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uadray import files
from uadray.config import Experiment
from uadray.errors import CheckpointError, ConfigError
from uadray.methods import GradientDetector
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.runs.reading import POPULATION, TRIALS
from uadray.store import Cohort
from uadray.tune.settings import SweepConfig
from uadray.tune.space import FIELDS, Space
from uadray.tune.trials import Task
from uadray.tune.vary import settings_of, with_settings

KNOBS = ("fit.learning_rate", "method.kl_weight", "erasing.max_share")
"""What may change within a fit, by its path into the experiment."""

FACTORS = (0.8, 1.25)
"""A knob that is taken over is multiplied by one of these."""

RESAMPLE = 0.25
"""How often it is redrawn instead."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """One experiment whose knobs are searched."""

    base: Experiment
    """All that stays."""
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest value of each knob, by path."""
    config: SweepConfig
    """Size, interval, share that is replaced, seed."""

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.base.name}-PBT-{self.base.fingerprint[:8]}"

    @property
    def num_generations(self) -> int:
        """Until the experiment's last epoch."""
        return math.ceil(self.base.fit.epochs / self.config.interval)

    def end_of(self, generation: int) -> int:
        """Epochs when a generation ends."""
        return min(self.base.fit.epochs, (generation + 1) * self.config.interval)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One generation of one member."""

    number: int
    generation: int
    knobs: dict[str, float]
    """Its settings in this generation, by path."""
    parent: int | None
    """The member whose last generation it goes on from: itself, or the one that it took over."""


def populations(space: Space, config: SweepConfig) -> list[Population]:
    """One for each combination of the settings that do not change within a fit.

    Raises:
        ConfigError: the space gives no knob two values, or no method learns.
    """
    given = {path: values for path, values in space.axes().items() if path in KNOBS}
    ranges = {p: (min(given[p]), max(given[p])) for p in KNOBS if len(set(given.get(p, ()))) > 1}
    if not ranges:
        wanted = ", ".join(f"--space.{FIELDS[path].replace('_', '-')}" for path in KNOBS)
        raise ConfigError(
            f"sweep.scheduler pbt needs two values, smallest and largest, of one of {wanted}"
        )
    lowest = space.narrowed({path: low for path, (low, _) in ranges.items()})
    result = []
    for base in replace(lowest, baselines=False).trials():
        own = {path: bounds for path, bounds in ranges.items() if path in settings_of(base)}
        if own:
            result.append(Population(base=base, ranges=own, config=config))
    if not result:
        raise ConfigError("sweep.scheduler pbt needs an experiment that has one of its knobs")
    return result


def check_phases(groups: Sequence[Population], shape: tuple[int, int, int]) -> None:
    """Refuse methods that learn in several phases, whose ends move with the number of epochs.

    Raises:
        ConfigError: one of them does.
    """
    for population in groups:
        detector = build_detector(population.base, shape)
        if isinstance(detector, GradientDetector) and len(detector.phases()) > 1:
            raise ConfigError(
                f"{population.base.name} learns in {len(detector.phases())} phases; a population "
                "goes by generations of epochs: take another scheduler for it"
            )


def begin(population: Population) -> list[Member]:
    """The first generation: knobs drawn over their ranges."""
    return [
        Member(
            number=number,
            generation=0,
            parent=None,
            knobs={p: _draw(population, p, 0, number) for p in population.ranges},
        )
        for number in range(population.config.population)
    ]


def advance(
    population: Population, members: Sequence[Member], losses: Sequence[float | None]
) -> list[Member]:
    """The next generation.

    Args:
        population: Theirs.
        members: Of the generation that has ended.
        losses: What each is compared by, less is better; None where it failed.

    Raises:
        ValueError: all have failed.
    """
    alive = [m for m, loss in zip(members, losses, strict=True) if loss is not None]
    if not alive:
        raise ValueError(f"{population.name}: every member has failed")
    order = sorted(
        members, key=lambda m: (losses[m.number] is None, losses[m.number] or 0.0, m.number)
    )
    num = max(1, int(len(members) * population.config.quantile))
    first = [m for m in order[:num] if losses[m.number] is not None]
    last = {m.number for m in order[-num:]} | {
        m.number for m in members if losses[m.number] is None
    }
    last -= {m.number for m in first}
    generation = members[0].generation + 1
    heirs = []
    for member in members:
        if member.number not in last:
            heirs.append(replace(member, generation=generation, parent=member.number))
            continue
        rng = _generator(population, generation, member.number)
        parent = first[int(rng.integers(len(first)))]
        knobs = {
            path: _draw(population, path, generation, member.number)
            if rng.random() < RESAMPLE
            else _changed(value, float(rng.choice(FACTORS)), population.ranges[path])
            for path, value in parent.knobs.items()
        }
        heirs.append(
            Member(number=member.number, generation=generation, parent=parent.number, knobs=knobs)
        )
    return heirs


def experiment_of(population: Population, member: Member) -> Experiment:
    """What a member fits in this generation, up to its end."""
    base = with_settings(population.base, dict(member.knobs))
    return replace(
        base, fit=dataclasses.replace(base.fit, epochs=population.end_of(member.generation))
    )


def folder_of(url: str, population: Population, generation: int, number: int) -> str:
    """The run folder of a member's generation in the sweep at `url`."""
    if generation == population.num_generations - 1:
        return files.join(url, TRIALS, f"{population.name}-m{number:02d}")
    return files.join(url, POPULATION, population.name, f"g{generation:02d}-m{number:02d}")


def members_at_end(url: str, population: Population) -> list[Task]:
    """A population's members as their last generation will leave them, knobs apart."""
    last = population.num_generations - 1
    return [
        Task(experiment=population.base, url=folder_of(url, population, last, number))
        for number in range(population.config.population)
    ]


def lay(url: str, population: Population, member: Member, cohort: Cohort) -> str:
    """Begin the run folder of a member's generation, or resume one that was started.

    It is given the record and the checkpoint of the generation that it goes on from. What was cut
    short is done again.

    Returns:
        The run folder.
    """
    folder = folder_of(url, population, member.generation, member.number)
    experiment = experiment_of(population, member)
    run = Run.create(folder, experiment, cohort)
    source = None
    if member.parent is not None:
        source = Run.open(folder_of(url, population, member.generation - 1, member.parent))
    if "lineage" not in run.config:
        past = [] if source is None else source.config["lineage"]
        first = 0 if source is None else population.end_of(member.generation - 1)
        here = {
            "epochs": [first + 1, experiment.fit.epochs],
            "member": member.number,
            "generation": member.generation,
            "from_member": member.parent,
            "settings": member.knobs,
        }
        described = {
            "size": population.config.population,
            "interval": population.config.interval,
            "quantile": population.config.quantile,
            "seed": population.config.seed,
            "ranges": {path: list(bounds) for path, bounds in population.ranges.items()},
        }
        # A name of its own: it is no fit of the experiment from its first epoch on.
        name = f"{experiment.name}-PBT"
        run.note({"name": name, "population": described, "lineage": [*past, here]})
    has_begun = run.summary is not None or CheckpointStore.of(run).state() is not None
    if source is not None and not has_begun:
        _go_on_from(source, run)
    return folder


def forget(url: str, population: Population, generation: int) -> None:
    """Remove the checkpoints of a generation that all of the next one has been started from."""
    for number in range(population.config.population):
        folder = folder_of(url, population, generation, number)
        if Run.is_begun(folder):
            CheckpointStore.remove(folder)


def _go_on_from(source: Run, target: Run) -> None:
    """Give a run the epochs and the checkpoint of another one; the checkpoint counts last."""
    store = CheckpointStore.of(source)
    if store.state() is None:
        raise CheckpointError(
            f"{source.url} has no checkpoint to go on from: restore it from a copy, or sweep into "
            "another folder (--out)"
        )
    target.write_metrics(source.metrics())
    store.copy_to(target.url, target.checkpoint_key)


def _draw(population: Population, path: str, generation: int, number: int) -> float:
    low, high = population.ranges[path]
    place = KNOBS.index(path)
    rng = _generator(population, generation, number, 1 + place)
    if low > 0 and path != "erasing.max_share":
        return _round(math.exp(rng.uniform(math.log(low), math.log(high))))
    return _round(rng.uniform(low, high))


def _changed(value: float, factor: float, bounds: tuple[float, float]) -> float:
    return _round(min(max(value * factor, bounds[0]), bounds[1]))


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _generator(
    population: Population, generation: int, number: int, place: int = 0
) -> np.random.Generator:
    key = zlib.crc32(population.base.fingerprint.encode())
    return np.random.default_rng([population.config.seed, key, generation, number, place])
