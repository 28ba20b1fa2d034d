"""One run on one cohort: what is still to be scored, the frozen threshold, the record."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uadray import files
from uadray.config import to_json
from uadray.errors import UadrayWarning
from uadray.evaluation.cases import write_cases
from uadray.evaluation.controls import Tested, controls_record
from uadray.evaluation.figures import Measured
from uadray.evaluation.people import known_of, people_of, subjects_of, voxel_volumes
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.record import check_classes, make_record
from uadray.evaluation.scoring import Work
from uadray.evaluation.strata import groups_of_controls
from uadray.methods.ensemble import Ensemble
from uadray.metrics.counts import TestPart, Threshold, ThresholdPart
from uadray.metrics.froc import Finds
from uadray.metrics.lesionwise import SubjectLesions
from uadray.metrics.outside import is_up_to_date
from uadray.metrics.slicewise import Slices
from uadray.metrics.thresholds import NONE, fit_threshold, no_threshold, refit_thresholds
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.evaluations import pack_slices
from uadray.runs.folder import Run
from uadray.runs.frozen_thresholds import freeze
from uadray.runs.learned import Match
from uadray.runs.reading import folder_of, place
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort, Split


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A frozen threshold and where it comes from."""

    threshold: Threshold
    """Fitted now or before."""
    refits: Sequence[Threshold]
    """The same on resamples of its people; none where an earlier version froze it."""
    fingerprint: str
    """Of the settings that it was frozen under."""
    num_subjects: int
    """Subjects that it was fitted on."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A test subject's prediction at the frozen threshold against the truth."""

    lesions: SubjectLesions
    """In numbers."""
    finds: Finds
    """Component by component."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A run, and a cohort that it is evaluated on."""

    run: Run
    cohort: Cohort
    config: EvaluateConfig
    store: ScoreStore
    """The run's kept scores of the cohort."""
    match: Match
    """How run and cohort go together."""

    @classmethod
    def open(cls, run: Run, cohort: Cohort, config: EvaluateConfig, match: Match) -> "Pair":
        """Lay out the store of scores, or resume it.

        Raises:
            UadrayError: the run's checkpoint or its scores cannot be used.
        """
        score_range = load_detector(run).score_range
        files.remove_drafts(folder_of(run.url))
        store = ScoreStore.create(run, cohort, score_range, config.scoring(cohort.shape))
        return cls(run=run, cohort=cohort, config=config, store=store, match=match)

    def store_on(self, cohort: Cohort) -> ScoreStore:
        """The run's kept scores of a cohort, this one or another one on the same grid."""
        if cohort.url == self.cohort.url:
            return self.store
        scoring = self.config.scoring(cohort.shape)
        return ScoreStore.create(self.run, cohort, self.store.score_range, scoring)

    @property
    def is_ensemble(self) -> bool:
        """Whether the run combines others."""
        return isinstance(self.run.experiment.method, Ensemble.Settings)

    def work(self, rows: Iterable[int], beside: Sequence["Pair"] = ()) -> Work:
        """What of some rows is still to be scored, or to be counted after the filter.

        Args:
            rows: Of the cohort.
            beside: What is scored in the same pass, members before their ensembles. Where all
                members of this one are among them, by method and weights, their scores are
                combined.
        """
        every, scored, filtered = set(rows), self.store.done(), self.config.components
        to_filter: set[int] = set()
        if filtered.max_size:
            to_filter = every - (self.store.done(filtered) & scored)
        return Work(
            run=self.run,
            store=self.store,
            to_score=frozenset(every - scored),
            to_filter=frozenset(to_filter),
            members=self._members(beside),
        )

    def _members(self, beside: Sequence["Pair"]) -> tuple[ScoreStore, ...]:
        method = self.run.experiment.method
        if not isinstance(method, Ensemble.Settings):
            return ()
        stores = {(one.run.experiment.method, weights_digest(one.run)): one.store for one in beside}
        found = [stores.get((one.method, one.weights)) for one in method.members]
        here = tuple(store for store in found if store is not None)
        return here if len(here) == len(found) else ()

    def record(self) -> dict[str, Any]:
        """What an earlier evaluation left; empty where it cannot be read, so that it is redone."""
        try:
            return dict(files.read_json(place(self.run.url, self.cohort.name)))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def is_of(self, record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
        """Whether a record is one of the run as it is, under these settings, with all metrics."""
        # Earlier versions did not look at lesions one by one, nor keep what controls score.
        is_whole = "froc" in record or (record.get("threshold") or {}).get("level") is None
        is_whole = is_whole and "people" in (record.get("controls") or {"people": ()})
        return (
            is_whole
            and record.get("settings") == settings
            and record.get("weights") == weights_digest(self.run)
            and is_up_to_date(record.get("outside_metrics") or {})
        )

    def freeze(self, healthy: Cohort | None) -> Frozen:
        """The threshold, fitted now or before; the test part is not opened.

        Args:
            healthy: Fit on its validation part; None takes the threshold part of the cohort.
        """
        config, cohort = self.config, healthy or self.cohort
        store = self.store_on(cohort)
        if config.threshold_rule == NONE:
            nothing = no_threshold(store.score_range)
            return Frozen(threshold=nothing, refits=(), fingerprint="", num_subjects=0)
        split: Split = "validation" if healthy else "threshold"
        scoring = config.scoring(cohort.shape)
        subjects = subjects_of(cohort, split)
        after = bool(config.components.max_size and config.components.fit_after)
        components = config.components if after else None

        def fit() -> tuple[Threshold, list[Threshold]]:
            name, rule = f"{cohort.name}/{split}", config.threshold_rule
            part = store.counts(subjects, name, ThresholdPart, components)
            refits = refit_thresholds(part, rule, people_of(cohort, split), config.num_resamples)
            return fit_threshold(part, rule), refits

        settings = {
            "run": self.run.experiment.fingerprint,
            "run_cohort": self.run.cohort_fingerprint,
            "weights": weights_digest(self.run),
            "reported_on": self.cohort.fingerprint,
            "fitted_on": cohort.fingerprint,
            "split": split,
            "scoring": scoring,
            "score_range": list(store.score_range),
            "components": None if components is None else to_json(components),
            "rule": config.threshold_rule,
        }
        threshold, refits, fingerprint = freeze(self.run, self.cohort.name, settings, fit)
        return Frozen(
            threshold=threshold, refits=refits, fingerprint=fingerprint, num_subjects=len(subjects)
        )

    def write(
        self,
        frozen: Frozen,
        examined: Sequence[Examined],
        num_brain: NDArray[np.int64] | None,
        facts: dict[str, Any],
        controls: tuple[Cohort, Sequence[Examined]] | None = None,
    ) -> dict[str, Any]:
        """Measure the test part by its counts, and write the record and what goes beside it.

        Args:
            frozen: Its threshold.
            examined: The test subjects' predictions against the truth.
            num_brain: (N, Z) brain voxels of their slices, where scores of slices are sums.
            facts: What else the record says.
            controls: Healthy people that are tested, too, with what is predicted in them.
        """
        subjects, name = subjects_of(self.cohort, "test"), f"{self.cohort.name}/test"
        scores, filtered = self.store.counts(subjects, name, TestPart), None
        check_classes(scores, self.cohort.url)
        if self.config.components.max_size:
            filtered = self.store.counts(subjects, name, TestPart, self.config.components)
        if num_brain is not None:
            scores = scores.with_slice_sums(num_brain)
            filtered = filtered and filtered.with_slice_sums(num_brain)
        measured = Measured(
            scores=scores,
            filtered=filtered,
            people=people_of(self.cohort, "test"),
            threshold=frozen.threshold,
            refits=frozen.refits,
            fingerprint=frozen.fingerprint,
            num_threshold=frozen.num_subjects,
            lesions=[one.lesions for one in examined],
            finds=[one.finds for one in examined],
        )
        record, people = make_record(self.run, self.cohort, self.config, measured, self.match)
        record |= facts
        if controls is not None:
            record["controls"] = self._controls(measured, *controls)
        self._warn_of_lost(record)
        write_cases(self.run, self.store, self.cohort, self.config, frozen.threshold.level)
        arrays = {"people": people, "slices": pack_slices(Slices.of(scores))}
        if not set(self.match.absent).isdisjoint(scores.subjects):
            # Whoever skips people may gain by it: such a run is compared with no other.
            files.remove_file(place(self.run.url, self.cohort.name, "people"))
            del arrays["people"]
        for kind, content in arrays.items():
            files.write_bytes(place(self.run.url, self.cohort.name, kind), content)
        files.write_json(place(self.run.url, self.cohort.name), record)
        return record

    def _controls(
        self, measured: Measured, cohort: Cohort, found: Sequence[Examined]
    ) -> dict[str, Any]:
        """What is said of healthy controls, beside the patients."""
        name = f"{cohort.name}/test"
        part = self.store_on(cohort).counts(subjects_of(cohort, "test"), name, TestPart)
        people = people_of(cohort, "test")
        healthy = replace(
            measured,
            scores=part,
            filtered=None,
            people=people,
            lesions=[one.lesions for one in found],
        )
        sizes = map(voxel_volumes, (cohort, self.cohort))
        ours, theirs = (
            Tested(measured=one, voxel_ml=ml)
            for one, ml in zip((healthy, measured), sizes, strict=True)
        )
        groups = groups_of_controls(cohort, self.config.by)
        return {
            "cohort": {"name": cohort.name, "url": cohort.url, "fingerprint": cohort.fingerprint},
            **controls_record(ours, theirs, groups, known_of(cohort, "test")),
        }

    def _warn_of_lost(self, record: Mapping[str, Any]) -> None:
        """Name figures of an earlier evaluation whose package is not installed here."""
        before, now = (one.get("outside_metrics") or {} for one in (self.record(), record))
        if lost := sorted(set(before) - set(now)):
            warnings.warn(
                f"{self.run.url}: its evaluation on {self.cohort.name} had {', '.join(lost)}, "
                "which no package that is installed here computes; it is made again without",
                UadrayWarning,
                stacklevel=2,
            )
