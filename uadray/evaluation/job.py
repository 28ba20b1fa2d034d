"""The evaluation job: score each subject once on Ray, then thresholds and metrics as lookups.

Two passes over a cohort. The first scores volumes, keeps the scores and counts them, with and
without small components; thresholds are fitted on counts and frozen. The second compares kept
scores of the test part, at the frozen threshold, with the true lesions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray

from uadray import cluster, files
from uadray.config import to_json
from uadray.data.settings import READ_CPUS
from uadray.data.volumes import VolumeSource, dataset_of, volumes
from uadray.errors import CheckpointError, ConfigError, EvaluationError, RunError, UadrayError
from uadray.evaluation.examination import brain_voxels, examine
from uadray.evaluation.inputs import check_inputs, check_run, compare, refuse
from uadray.evaluation.pair import Examined, Frozen, Pair
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.record import describe_lesions
from uadray.evaluation.scoring import (
    BATCH_SIZE,
    Finisher,
    LevelScorer,
    Scorer,
    Work,
    batches_of,
    num_places,
)
from uadray.evaluation.strata import ages_and_sexes, as_asked, groups_of
from uadray.gauges import scoring_gauges
from uadray.lock import hold
from uadray.metrics.froc import Finds
from uadray.metrics.lesionwise import SubjectLesions
from uadray.preparation.geometry import voxel_sizes
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.learned import Match
from uadray.runs.reading import folder_of, writing
from uadray.store import CHUNK_VOLUMES, Cohort, Split

T = TypeVar("T")

ACTOR_CPUS = 0.75
"""Logical CPUs of a scoring actor; the rest of a CPU reads."""

FINISHER_CPUS = 1.0
"""Logical CPUs of a task that post-processes and counts what a GPU has scored."""

MAX_CHUNKS = 4
"""Chunks of a cohort that a task examines, at most."""

_NOT_OF_SCORES = ("by", "batch_size", "device", "gpus_per_actor")
"""Settings that decide no figure of all people: groups of them, and speed."""

Report = Callable[[int], None]
"""Called with a number of subjects that have just been scored by all runs."""

Failed = Callable[[Run, UadrayError], None]
"""Called with a run that cannot be evaluated, and why."""


def evaluate(
    runs: Sequence[Run],
    cohort: Cohort,
    *,
    healthy: Cohort | None = None,
    controls: Cohort | None = None,
    config: EvaluateConfig | None = None,
    report: Report = lambda count: None,
) -> list[dict[str, Any]]:
    """Evaluate finished runs on one lesioned cohort, as `evaluate_all` does on several.

    Returns:
        The content of `evaluation/<cohort>.json` of each run.
    """
    return evaluate_all(
        runs, [cohort], healthy=healthy, controls=controls, config=config, report=report
    )[0]


def evaluate_all(
    runs: Sequence[Run],
    cohorts: Sequence[Cohort],
    *,
    healthy: Cohort | None = None,
    controls: Cohort | None = None,
    config: EvaluateConfig | None = None,
    report: Report = lambda count: None,
    failed: Failed | None = None,
    allow_mismatch: bool = False,
) -> list[list[dict[str, Any]]]:
    """Evaluate finished runs on lesioned cohorts, all runs in one pass over a cohort's volumes.

    Leaves `scores/` in each run folder, and in `evaluation/` the files `<cohort>.json`,
    `<cohort>-threshold.json`, `<cohort>-cases.npz`, `<cohort>-resamples.npz` and
    `<cohort>-slices.npz`. What is there already is not made again: every subject is scored once,
    however often the job was killed, and a threshold fitted once.

    Args:
        runs: Finished runs, fitted on volumes of the cohorts' shape.
        cohorts: Have lesions and the splits `threshold` and `test`.
        healthy: Fit the threshold on the validation split of this cohort instead of the threshold
            part; only rules that need no lesions can.
        controls: A healthy cohort whose test part is predicted, too: false alarms, and how well
            scores separate patients from healthy people.
        config: Post-processing, component filter, threshold rule, resamples.
        report: Called as subjects are scored; the numbers add up to `num_volumes`.
        failed: Called with a run that cannot be evaluated, and why; the others go on. Where it is
            None, the first such error is raised.
        allow_mismatch: Evaluate runs also on cohorts of another modality or preparation, or with
            people that were likely learned from; each record says so.

    Returns:
        For each cohort, the content of `evaluation/<cohort>.json` of each run, without those that
        failed.

    Raises:
        EvaluationError: Cohorts and runs do not fit together, or scores are not finite.
        ConfigError: The rule needs lesions, and was to be fitted on healthy volumes.
    """
    config = config or EvaluateConfig()
    check_inputs(runs, cohorts, healthy, config, controls)
    for cohort in cohorts:
        groups_of(cohort, config.by)  # what is not known is said before anything is scored
    failures = _Failures(failed)
    matches: dict[tuple[str, str], Match] = {}
    for run in runs:
        with failures.of(run):
            check_run(run)
            load_detector(run)
            for cohort in cohorts:
                matches[run.url, cohort.url] = compare(run, cohort)
            if healthy is not None:
                matches[run.url, healthy.url] = compare(run, healthy, people=False)
            if controls is not None:
                matches[run.url, controls.url] = compare(run, controls)
    # All of them before anything is scored.
    for (fitted, tested), match in matches.items():
        refuse(match, fitted, tested, insist=allow_mismatch)
    if healthy is not None:
        left = failures.left(runs)
        with _held(left, healthy):
            _Pass.over(healthy, left, config, ("validation",), failures, {}).score(report)
    if controls is not None:
        left = failures.left(runs)
        with _held(left, controls):
            _Pass.over(controls, left, config, ("test",), failures, {}).score(report)
    records = []
    for cohort in cohorts:
        left = failures.left(runs)
        with _held(left, cohort):
            one = _Pass.over(cohort, left, config, ("threshold", "test"), failures, matches)
            with scoring_gauges(report, cohort.name, len(one.names)) as counted:
                records.append(one.evaluate(healthy, controls, counted))
    return records


def _held(runs: Sequence[Run], cohort: Cohort) -> AbstractContextManager[None]:
    """Keep off other jobs that evaluate one of the runs on the same cohort."""
    folders = [folder_of(run.url) for run in runs]
    return hold(*folders, name=f"{files.LOCK}-{cohort.name}")


def actors_for(nodes: Sequence[float]) -> tuple[int, float]:
    """Scoring actors that fit on nodes next to a read task, and the logical CPUs of each.

    Where no node has any CPUs, as with a head whose workers an autoscaler is still to start, it is
    one actor that waits for them.

    Args:
        nodes: Logical CPUs of each node.
    """
    fit = sum(max(0, int((node - READ_CPUS) // ACTOR_CPUS)) for node in nodes)
    return max(1, fit), min(ACTOR_CPUS, max(nodes) or 1.0)


def gpu_actors_for(nodes: Sequence[tuple[float, float]], gpus: float) -> int:
    """Scoring actors that find a GPU on nodes, next to a read task and one that post-processes.

    Args:
        nodes: Logical CPUs and GPUs of each node.
        gpus: Of each actor.

    Raises:
        ConfigError: None does; Ray would wait for ever, without an error.
    """
    left = READ_CPUS + FINISHER_CPUS
    if not (fit := cluster.num_fitting(nodes, ACTOR_CPUS, gpus, left=left)):
        raise ConfigError(cluster.without_gpus(nodes, gpus))
    return fit


def num_volumes(
    cohorts: Sequence[Cohort], healthy: Cohort | None = None, controls: Cohort | None = None
) -> int:
    """Volumes that `evaluate_all` scores; it says what is wrong with those that have none."""
    num = sum(len(cohort.subjects) for cohort in cohorts)
    for cohort, split in ((healthy, "validation"), (controls, "test")):
        if cohort is not None:
            num += int((cohort.subjects["split"] == split).sum())
    return num


class _Failures:
    """Runs that are left out, each with its reason."""

    def __init__(self, failed: Failed | None) -> None:
        self._failed, self._reasons = failed, dict[str, UadrayError]()

    @contextmanager
    def of(self, run: Run) -> Iterator[None]:
        """What is done for one run; what ends it is noted."""
        try:
            with writing(run.url):
                yield
        except UadrayError as error:
            if self._failed is None:
                raise
            self._reasons[run.url] = error
            self._failed(run, error)

    def left(self, runs: Sequence[Run]) -> list[Run]:
        """Those of some runs that have not failed.

        Raises:
            UadrayError: all have; the reason of the first.
        """
        left = [run for run in runs if run.url not in self._reasons]
        if not left:
            raise next(iter(self._reasons.values()))
        return left

    def together(
        self, pairs: Sequence[Pair], function: Callable[[Sequence[Pair]], Sequence[T]]
    ) -> list[T | None]:
        """A function's result for each pair, taken for all at once.

        Where one of them fails, each is taken alone, and those that fail then have None.
        """
        try:
            return list(function(pairs))
        except (EvaluationError, CheckpointError, RunError):  # what one run may raise for all
            if len(pairs) == 1 or self._failed is None:
                raise
        results: list[T | None] = [None] * len(pairs)
        for n, pair in enumerate(pairs):
            with self.of(pair.run):
                (results[n],) = function([pair])
        return results


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Several runs over some splits of one cohort."""

    cohort: Cohort
    pairs: Sequence[Pair]
    """Each run with the cohort."""
    config: EvaluateConfig
    names: dict[int, str]
    """Subject of each row of the splits."""
    failures: _Failures
    """Takes runs that cannot go on."""

    @classmethod
    def over(
        cls,
        cohort: Cohort,
        runs: Sequence[Run],
        config: EvaluateConfig,
        splits: Sequence[Split],
        failures: _Failures,
        matches: Mapping[tuple[str, str], Match],
    ) -> "_Pass":
        """Lay out the stores of scores, or resume them."""
        pairs = []
        for run in runs:
            with failures.of(run):
                match = matches.get((run.url, cohort.url), Match())
                pairs.append(Pair.open(run, cohort, config, match))
        failures.left(runs)
        table = cohort.subjects[cohort.subjects["split"].isin(splits)]
        names = dict(zip(table["row"].astype(int), table["id"], strict=True))
        return cls(cohort=cohort, pairs=pairs, config=config, names=names, failures=failures)

    def _left(self) -> list[Pair]:
        """Those whose run has not failed; raises where all have."""
        left = {run.url for run in self.failures.left([pair.run for pair in self.pairs])}
        return [pair for pair in self.pairs if pair.run.url in left]

    def score(self, report: Report) -> list[float | None]:
        """Score what is missing.

        Returns:
            For each pair the seconds that an actor took a volume, on average, to score, clean,
            count and keep it, without reading it; None where nothing was missing.
        """
        # Ensembles after their members, whose scores they combine.
        ordered = sorted(self.pairs, key=lambda pair: pair.is_ensemble)
        taken = self.failures.together(ordered, partial(self._score, report=report))
        self._left()
        seconds = dict(zip(ordered, taken, strict=True))
        return [seconds[pair] for pair in self.pairs]

    def _score(self, pairs: Sequence[Pair], report: Report) -> list[float | None]:
        works = [pair.work(self.names, pairs) for pair in pairs]
        rows = np.array(sorted(set().union(*(w.to_score | w.to_filter for w in works))), np.int64)
        report(len(self.names) - len(rows))
        seconds: list[float | None] = [None] * len(works)
        if len(rows) == 0:
            return seconds
        cluster.connect()
        cluster.check_readable(self.cohort.seal_url)
        cluster.check_shared(*(pair.run.url for pair in pairs))
        busy = [n for n, work in enumerate(works) if work.to_score or work.to_filter]
        dataset = (self._on_gpus if self.config.gpus else self._on_cpus)(
            rows, [works[n] for n in busy]
        )
        spent: list[np.ndarray] = []
        with cluster.plain_errors():
            for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                spent.append(batch["seconds"])
                report(len(batch["id"]))
        total = np.concatenate(spent)
        for column, n in enumerate(busy):
            taken = total[:, column]
            seconds[n] = float(taken[taken > 0].mean()) if taken.any() else None
        return seconds

    @property
    def _arrays(self) -> tuple[str, ...]:
        return ("image", "brain", *(("lesion",) if self.cohort.has_lesion else ()))

    def _on_cpus(self, rows: NDArray[np.int64], works: Sequence[Work]) -> ray.data.Dataset:
        """What scores on CPUs: actors that do everything."""
        fit, cpus = actors_for(cluster.room()[0])
        actors = min(len(np.unique(rows // CHUNK_VOLUMES)), fit)
        return volumes(self.cohort, rows, self._arrays).map_batches(
            Scorer,
            fn_constructor_args=(works, self.names, self.config),
            batch_size=self.config.batch_size or BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=0,
        )

    def _on_gpus(self, rows: NDArray[np.int64], works: Sequence[Work]) -> ray.data.Dataset:
        """What scores on GPUs: actors that score whole groups, and tasks that do the rest."""
        size = num_places(self.config, self.cohort.shape)
        groups = batches_of(rows, self.names, size)
        cluster.check_gpus()
        actors = gpu_actors_for(list(zip(*cluster.room(), strict=True)), self.config.gpus)
        source = VolumeSource(self.cohort, groups, self._arrays)
        scored = dataset_of(source, len(groups)).map_batches(
            LevelScorer,
            fn_constructor_args=(works, self.names, self.config),
            # Blocks are whole groups, unless some of one are scored already.
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=min(len(groups), actors)),
            num_cpus=ACTOR_CPUS,
            num_gpus=self.config.gpus,
        )
        rest = Finisher(work=works, names=self.names, config=self.config)
        return scored.map_batches(rest.__call__, batch_size=None, num_cpus=FINISHER_CPUS)

    def evaluate(
        self, healthy: Cohort | None, controls: Cohort | None, report: Report
    ) -> list[dict[str, Any]]:
        """Score, freeze thresholds, examine the test part and write the records."""
        seconds = dict(zip(self.pairs, self.score(report), strict=True))
        settings = {k: v for k, v in to_json(self.config).items() if k not in _NOT_OF_SCORES} | {
            "cohort": self.cohort.fingerprint,
            "healthy": None if healthy is None else healthy.fingerprint,
        }
        if strata := as_asked(self.cohort, self.config.by):
            settings["strata"] = strata
        if controls is not None:
            settings |= {"controls": controls.fingerprint, **ages_and_sexes(controls)}
        records: dict[Pair, dict[str, Any]] = {}
        frozen: dict[Pair, Frozen] = {}
        for pair in self._left():
            records[pair] = pair.record()
            if seconds[pair] is None and pair.is_of(records[pair], settings):
                continue
            with self.failures.of(pair.run):
                frozen[pair] = pair.freeze(healthy)
        with ThreadPoolExecutor(1) as beside:
            # In this process, which otherwise waits for the tasks that examine.
            described = beside.submit(self._describe) if frozen else None
            examined = self.failures.together(
                list(frozen), partial(self._examine, self.cohort, frozen)
            )
        found: list[list[Examined] | None] = [None] * len(frozen)
        if controls is not None:
            with _held([pair.run for pair in frozen], controls):
                found = self.failures.together(
                    list(frozen), partial(self._examine, controls, frozen)
                )
        lesions, num_brain = ({}, None) if described is None else described.result()
        for (pair, threshold), examination, predicted in zip(
            frozen.items(), examined, found, strict=True
        ):
            if examination is None or (controls is not None and predicted is None):
                continue
            with self.failures.of(pair.run):
                spent = seconds[pair]
                if spent is None:
                    spent = records[pair].get("seconds_per_volume")
                facts = {
                    "healthy_cohort": None if healthy is None else _describe(healthy),
                    "lesions": lesions,
                    "settings": settings,
                    "weights": weights_digest(pair.run),
                    "seconds_per_volume": spent,
                    "seconds_per_slice": None if spent is None else spent / self.cohort.shape[0],
                }
                healthy_people = None
                if controls is not None and predicted is not None:
                    healthy_people = controls, predicted
                records[pair] = pair.write(threshold, examination, num_brain, facts, healthy_people)
        return [records[pair] for pair in self._left()]

    def _describe(self) -> tuple[dict[str, object], NDArray[np.int64] | None]:
        """The true lesions, and (N, Z) brain voxels of the test part where these are needed."""
        lesions = describe_lesions(self.cohort)
        if self.config.slice_score != "sum":
            return lesions, None
        return lesions, brain_voxels(self.cohort, self.cohort.rows("test"), self.config)

    def _examine(
        self, cohort: Cohort, frozen: Mapping[Pair, Frozen], pairs: Sequence[Pair]
    ) -> list[list[Examined]]:
        """Compare kept scores of a test part, at frozen thresholds, with the truth."""
        if not pairs:
            return []
        cluster.connect()
        rows = cohort.rows("test")
        table = cohort.subjects[cohort.subjects["split"] == "test"]
        sizes = (voxel_sizes(np.array(affine))[::-1].tolist() for affine in table["affine"])
        compare = partial(
            examine,
            stores=[pair.store_on(cohort) for pair in pairs],
            levels=[frozen[pair].threshold.level for pair in pairs],
            names=dict(zip(rows.tolist(), table["id"], strict=True)),
            spacings=dict(zip(rows.tolist(), map(tuple, sizes), strict=True)),
            config=self.config,
        )
        # In the tasks that read: as tasks of their own they would take turns with those, and on a
        # node whose CPUs they fill Ray ends a process that has had to wait for a second.
        workers, cpus = actors_for(cluster.room()[0])
        dataset = volumes(
            cohort,
            rows,
            ("lesion",) if cohort.has_lesion else ("brain",),
            change=lambda block, _: compare(block),
            num_cpus=cpus,
            # A task costs as much as several volumes, and takes no more than a few chunks' memory.
            chunks=min(len(rows) // CHUNK_VOLUMES // (4 * workers), MAX_CHUNKS),
        )
        compared: dict[int, tuple[np.ndarray, bytes]] = {}
        with cluster.plain_errors():
            for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                columns = (batch[name] for name in ("id", "lesions", "finds"))
                for row, lesions, finds in zip(*columns, strict=True):
                    compared[int(row)] = lesions, finds
        ordered = [compared[row] for row in rows.tolist()]
        finds_of = [Finds.read(np.frombuffer(packed)) for _, packed in ordered]
        return [
            [
                Examined(lesions=SubjectLesions.of(lesions[place]), finds=finds[place])
                for (lesions, _), finds in zip(ordered, finds_of, strict=True)
            ]
            for place in range(len(pairs))
        ]


def _describe(healthy: Cohort) -> dict[str, Any]:
    return {
        "name": healthy.name,
        "url": healthy.url,
        "fingerprint": healthy.fingerprint,
        "num_subjects": len(healthy.rows("validation")),
    }
