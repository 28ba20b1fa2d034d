"""The evaluation job: score each subject once on Ray, then thresholds and metrics as lookups.

Two passes over a cohort. The first scores volumes, keeps the scores and counts them, with and
without small components; thresholds are fitted on counts and frozen. The second holds kept scores
of the test part, at the frozen threshold, against the true lesions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from uadray import cluster, files
from uadray.config import to_json
from uadray.data.stream import READ_CPUS, volumes
from uadray.errors import CheckpointError, EvaluationError, RunError, UadrayError
from uadray.evaluation.cases import write_cases
from uadray.evaluation.inputs import check_inputs, check_run, compare, refuse
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.record import Measured, check_classes, make_record
from uadray.evaluation.scoring import Scorer, Work, examine
from uadray.lock import hold
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.lesionwise import (
    LesionTruth,
    SubjectLesions,
    component_sizes,
    lesion_statistics,
)
from uadray.metrics.slicewise import Slices
from uadray.metrics.thresholds import fit_threshold
from uadray.prepare.geometry import voxel_ml, voxel_sizes
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.evaluations import folder_of, pack_slices, place
from uadray.runs.folder import Run, writing
from uadray.runs.frozen import freeze
from uadray.runs.learned import Match
from uadray.runs.scores import ScoreStore
from uadray.store import CHUNK_VOLUMES, Cohort, Split

ACTOR_CPUS = 0.75
"""Logical CPUs of a scoring actor; the rest of a CPU reads."""

_ONLY_SPEED = ("batch_size", "gpus_per_actor")

Report = Callable[[int], None]
"""Called with a number of subjects that have just been scored by all runs."""

Failed = Callable[[Run, UadrayError], None]
"""Called with a run that cannot be evaluated, and why."""


def evaluate(
    runs: Sequence[Run],
    cohort: Cohort,
    *,
    healthy: Cohort | None = None,
    config: EvaluateConfig | None = None,
    report: Report = lambda count: None,
) -> list[dict[str, Any]]:
    """Evaluate finished runs on one lesioned cohort, as `evaluate_all` does on several.

    Returns:
        The content of `evaluation/<cohort>.json` of each run.
    """
    return evaluate_all(runs, [cohort], healthy=healthy, config=config, report=report)[0]


def evaluate_all(
    runs: Sequence[Run],
    cohorts: Sequence[Cohort],
    *,
    healthy: Cohort | None = None,
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
    check_inputs(runs, cohorts, healthy, config)
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
    # All of them before anything is scored.
    for (fitted, tested), match in matches.items():
        refuse(match, fitted, tested, insist=allow_mismatch)
    if healthy is not None:
        left = failures.left(runs)
        with _held(left, healthy):
            _Pass.over(healthy, left, config, ("validation",), failures).score(report)
    records = []
    for cohort in cohorts:
        left = failures.left(runs)
        with _held(left, cohort):
            one = _Pass.over(cohort, left, config, ("threshold", "test"), failures, matches)
            records.append(one.evaluate(healthy, report))
    return records


def _held(runs: Sequence[Run], cohort: Cohort) -> AbstractContextManager[None]:
    """Keep off other jobs that evaluate one of the runs on the same cohort."""
    folders = [folder_of(run.url) for run in runs]
    return hold(*folders, name=f"{files.LOCK}-{cohort.name}")


def actors_for(nodes: Sequence[float]) -> tuple[int, float]:
    """Scoring actors that find room on nodes beside a read task, and the logical CPUs of each.

    Where no node has any CPUs, as with a head whose workers an autoscaler is still to start, it is
    one actor that waits for them.

    Args:
        nodes: Logical CPUs of each node.
    """
    fit = sum(max(0, int((node - READ_CPUS) // ACTOR_CPUS)) for node in nodes)
    return max(1, fit), min(ACTOR_CPUS, max(nodes) or 1.0)


def num_volumes(cohorts: Sequence[Cohort], healthy: Cohort | None = None) -> int:
    """Volumes that `evaluate_all` scores."""
    num = sum(len(cohort.subjects) for cohort in cohorts)
    return num + (len(healthy.rows("validation")) if healthy is not None else 0)


class _Failures:
    """Runs that are left out, each with its reason."""

    def __init__(self, failed: Failed | None) -> None:
        self._failed, self._reasons = failed, dict[str, UadrayError]()

    @property
    def are_noted(self) -> bool:
        """Whether the others go on."""
        return self._failed is not None

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


_OF_ONE_RUN = (EvaluationError, CheckpointError, RunError)
"""What one run may raise in a task that works for several."""


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Several runs over some splits of one cohort."""

    cohort: Cohort
    runs: Sequence[Run]
    config: EvaluateConfig
    stores: Sequence[ScoreStore]
    names: dict[int, str]
    """Subject of each row of the splits."""
    failures: _Failures
    """Takes runs that cannot go on."""
    matches: Mapping[tuple[str, str], Match]
    """How run and cohort go together, by their URLs."""

    @classmethod
    def over(
        cls,
        cohort: Cohort,
        runs: Sequence[Run],
        config: EvaluateConfig,
        splits: Sequence[Split],
        failures: _Failures,
        matches: Mapping[tuple[str, str], Match] | None = None,
    ) -> "_Pass":
        """Lay out the stores of scores, or resume them."""
        scoring = config.scoring(cohort.shape)
        stores = {}
        for run in runs:
            with failures.of(run):
                score_range = load_detector(run).score_range
                files.remove_drafts(folder_of(run.url))
                stores[run.url] = ScoreStore.create(run, cohort, score_range, scoring)
        runs = failures.left(runs)
        table = cohort.subjects[cohort.subjects["split"].isin(splits)]
        return cls(
            cohort=cohort,
            runs=runs,
            config=config,
            stores=[stores[run.url] for run in runs],
            failures=failures,
            matches=matches or {},
            names=dict(zip(table["row"].astype(int), table["id"], strict=True)),
        )

    def score(self, report: Report) -> list[float | None]:
        """Score what is missing, for all runs at once; where one of them fails, for each alone."""
        try:
            return self._score(report)
        except _OF_ONE_RUN:
            if len(self.runs) == 1 or not self.failures.are_noted:
                raise
        seconds: list[float | None] = [None] * len(self.runs)
        for n, run in enumerate(self.runs):
            with self.failures.of(run):
                alone = replace(self, runs=[run], stores=[self.stores[n]])
                seconds[n] = alone._score(report)[0]
        self.failures.left(self.runs)
        return seconds

    def _score(self, report: Report) -> list[float | None]:
        """Score what is missing.

        Returns:
            For each run the seconds that an actor took a volume, on average, to score, clean,
            count and keep it, without reading it; None where nothing was missing.
        """
        works = [self._work(run, store) for run, store in zip(self.runs, self.stores, strict=True)]
        rows = np.array(sorted(set().union(*(w.to_score | w.to_filter for w in works))), np.int64)
        report(len(self.names) - len(rows))
        seconds: list[float | None] = [None] * len(works)
        if len(rows) == 0:
            return seconds
        cluster.connect()
        cluster.check_readable(files.join(self.cohort.url, "zarr.json"))
        cluster.check_shared(*(run.url for run in self.runs))
        fit, cpus = actors_for(cluster.room()[0])
        actors = min(len(np.unique(rows // CHUNK_VOLUMES)), fit)
        busy = [n for n, work in enumerate(works) if work.to_score or work.to_filter]
        arrays = ("image", "brain", *(("lesion",) if self.cohort.has_lesion else ()))
        dataset = volumes(self.cohort, rows, arrays).map_batches(
            Scorer,
            fn_constructor_args=([works[n] for n in busy], self.names, self.config),
            batch_size=self.config.batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=self.config.gpus_per_actor,
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

    def _work(self, run: Run, store: ScoreStore) -> Work:
        scored, rows = store.done(), set(self.names)
        to_filter: set[int] = set()
        if self.config.components.max_size:
            to_filter = rows - (store.done(self.config.components) & scored)
        return Work(
            run=run,
            store=store,
            to_score=frozenset(rows - scored),
            to_filter=frozenset(to_filter),
        )

    def evaluate(self, healthy: Cohort | None, report: Report) -> list[dict[str, Any]]:
        """Score, freeze thresholds, examine the test part and write the records."""
        seconds = self.score(report)
        settings = {k: v for k, v in to_json(self.config).items() if k not in _ONLY_SPEED} | {
            "cohort": self.cohort.fingerprint,
            "healthy": None if healthy is None else healthy.fingerprint,
        }
        urls = [place(run.url, self.cohort.name) for run in self.runs]
        records = [_old_record(url) for url in urls]
        weights = [weights_digest(run) for run in self.runs]
        stale = [
            n
            for n, record in enumerate(records)
            if record.get("settings") != settings
            or record.get("weights") != weights[n]
            or seconds[n] is not None
        ]
        frozen: dict[int, _Frozen] = {}
        good = {run.url for run in self.failures.left(self.runs)}
        for n in stale:
            if self.runs[n].url in good:
                with self.failures.of(self.runs[n]):
                    frozen[n] = self._freeze(n, healthy)
        examined = self._examine(frozen)
        lesions = _lesions(self.cohort) if examined else {}
        for n, found in examined.items():
            with self.failures.of(self.runs[n]):
                spent = seconds[n] if seconds[n] is not None else _seconds(records[n])
                record, kept = self._measure(n, frozen[n], found)
                record |= {
                    "healthy_cohort": None if healthy is None else _described(healthy),
                    "lesions": lesions,
                    "settings": settings,
                    "weights": weights[n],
                    "seconds_per_volume": spent,
                    "seconds_per_slice": None if spent is None else spent / self.cohort.shape[0],
                }
                level = frozen[n].threshold.level
                write_cases(self.runs[n], self.stores[n], self.cohort, self.config, level)
                for kind, content in kept.items():
                    files.write_bytes(place(self.runs[n].url, self.cohort.name, kind), content)
                files.write_json(urls[n], record)
                records[n] = record
        good = {run.url for run in self.failures.left(self.runs)}
        return [record for run, record in zip(self.runs, records, strict=True) if run.url in good]

    def _freeze(self, n: int, healthy: Cohort | None) -> "_Frozen":
        """The threshold of one run, fitted now or before; the test part is not opened."""
        run, store, config = self.runs[n], self.stores[n], self.config
        cohort = healthy or self.cohort
        split: Split = "validation" if healthy else "threshold"
        scoring = config.scoring(cohort.shape)
        if healthy:
            store = ScoreStore.create(run, healthy, store.score_range, scoring)
        subjects = _subjects(cohort, split)
        after = bool(config.components.max_size and config.components.fit_after)
        components = config.components if after else None

        def fit() -> Threshold:
            name = f"{cohort.name}/{split}"
            part = store.counts(subjects, name, ThresholdPart, components)
            return fit_threshold(part, config.threshold_rule)

        settings = {
            "run": run.experiment.fingerprint,
            "run_cohort": run.cohort_fingerprint,
            "weights": weights_digest(run),
            "reported_on": self.cohort.fingerprint,
            "fitted_on": cohort.fingerprint,
            "split": split,
            "scoring": scoring,
            "score_range": list(store.score_range),
            "components": None if components is None else to_json(components),
            "rule": config.threshold_rule,
        }
        threshold, fingerprint = freeze(run, self.cohort.name, settings, fit)
        return _Frozen(threshold=threshold, fingerprint=fingerprint, num_subjects=len(subjects))

    def _examine(self, frozen: Mapping[int, "_Frozen"]) -> dict[int, list[SubjectLesions]]:
        """Compare kept scores of the test part with the truth, for all of these runs at once.

        Where one of them fails, it is done for each alone.
        """
        levels = {n: one.threshold.level for n, one in frozen.items()}
        try:
            return self._examine_at(levels)
        except _OF_ONE_RUN:
            if len(levels) == 1 or not self.failures.are_noted:
                raise
        found: dict[int, list[SubjectLesions]] = {}
        for n, level in levels.items():
            with self.failures.of(self.runs[n]):
                found |= self._examine_at({n: level})
        return found

    def _examine_at(self, levels: Mapping[int, int]) -> dict[int, list[SubjectLesions]]:
        if not levels:
            return {}
        cluster.connect()
        table = self.cohort.subjects[self.cohort.subjects["split"] == "test"]
        rows = table["row"].to_numpy(np.int64)
        sizes = (voxel_sizes(np.array(affine))[::-1].tolist() for affine in table["affine"])
        compare = partial(
            examine,
            stores=[self.stores[n] for n in levels],
            levels=list(levels.values()),
            names=self.names,
            spacings=dict(zip(rows.tolist(), map(tuple, sizes), strict=True)),
            config=self.config,
        )
        # In the tasks that read: as tasks of their own they would take turns with those, and on a
        # node whose CPUs they fill Ray ends the process of whoever has had to wait for a second.
        cpus = actors_for(cluster.room()[0])[1]
        dataset = volumes(
            self.cohort, rows, ("lesion",), change=lambda block, _: compare(block), num_cpus=cpus
        )
        found: dict[int, np.ndarray] = {}
        with cluster.plain_errors():
            for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                found |= dict(zip(batch["id"].tolist(), batch["lesions"], strict=True))
        return {
            n: [_lesions_of(found[row][place]) for row in rows.tolist()]
            for place, n in enumerate(levels)
        }

    def _measure(
        self, n: int, frozen: "_Frozen", examined: Sequence[SubjectLesions]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The record of one run from the counts of its test part, and what is kept beside it."""
        components = self.config.components
        name, subjects = f"{self.cohort.name}/test", _subjects(self.cohort, "test")
        scores = self.stores[n].counts(subjects, name, TestPart)
        check_classes(scores, self.cohort.url)
        filtered = None
        if components.max_size:
            filtered = self.stores[n].counts(subjects, name, TestPart, components)
        measured = Measured(
            scores=scores,
            filtered=filtered,
            threshold=frozen.threshold,
            fingerprint=frozen.fingerprint,
            num_threshold=frozen.num_subjects,
            lesions=examined,
        )
        match = self.matches.get((self.runs[n].url, self.cohort.url), Match())
        record, resamples = make_record(self.runs[n], self.cohort, self.config, measured, match)
        return record, {"resamples": resamples, "slices": pack_slices(Slices.of(scores))}


@dataclass(frozen=True, kw_only=True)
class _Frozen:
    """A frozen threshold and where it comes from."""

    threshold: Threshold
    fingerprint: str
    num_subjects: int


def _subjects(cohort: Cohort, split: Split) -> list[tuple[int, str]]:
    table = cohort.subjects[cohort.subjects["split"] == split]
    return list(zip(table["row"].astype(int), table["id"], strict=True))


def _lesions_of(values: np.ndarray) -> SubjectLesions:
    kinds = {field.name: field.type for field in fields(SubjectLesions)}
    return SubjectLesions(
        **{
            n: v if kinds[n] is float else int(v)
            for n, v in zip(kinds, values.tolist(), strict=True)
        }
    )


def _lesions(cohort: Cohort) -> dict[str, object]:
    """Describe the true lesions of a cohort, one chunk of volumes in memory at a time."""

    def read() -> Iterator[LesionTruth]:
        table = cohort.subjects
        for _, part in table.groupby(table["row"] // CHUNK_VOLUMES):
            first, last = int(part["row"].min()), int(part["row"].max())
            lesion = cohort.read("lesion", first, last + 1)
            for subject in part.itertuples():
                yield LesionTruth(
                    id=subject.id,
                    split=subject.split,
                    sizes=component_sizes(lesion[subject.row - first]),
                    voxel_ml=voxel_ml(np.array(subject.affine)),
                )

    return lesion_statistics(read())


def _described(cohort: Cohort) -> dict[str, Any]:
    return {
        "name": cohort.name,
        "url": cohort.url,
        "fingerprint": cohort.fingerprint,
        "num_subjects": len(cohort.rows("validation")),
    }


def _seconds(record: dict[str, Any]) -> float | None:
    return record.get("seconds_per_volume")


def _old_record(url: str) -> dict[str, Any]:
    """What an earlier evaluation left; nothing where it cannot be read, so that it is made anew."""
    try:
        return dict(files.read_json(url))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
