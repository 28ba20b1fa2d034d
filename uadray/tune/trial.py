"""What an actor of Ray Tune does for one trial: fit, tell its epochs, measure its objective."""

import time
from typing import Any

import torch
from ray import tune

from uadray.config import learns
from uadray.data.settings import READ_CPUS
from uadray.data.stream import keep_volumes
from uadray.device import release_memory
from uadray.errors import RunError, UadrayError
from uadray.evaluation.inputs import compare
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.train.group import keep_group, kept_group
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig, TrackConfig
from uadray.tune.labelled import measure_run, measured_at
from uadray.tune.settings import RECONSTRUCTION, SweepConfig
from uadray.tune.space import Space
from uadray.tune.trials import ENDED, Task, label_note, run_url, status

RESERVED = "reserved"
"""What the trial's actor keeps of the cluster, for the sweep to free."""

OBJECTIVE = "objective"
"""What Tune compares trials by; less is better."""


def read_task(config: dict[str, Any], url: str, space: Space | None) -> Task:
    """The task in a trial's configuration: given whole, or as a point that was drawn."""
    if space is None:
        return Task.from_json(config["task"])
    experiment = space.build(config)
    return Task(experiment=experiment, url=run_url(url, experiment))


def run_trial(
    config: dict[str, Any],
    *,
    cohort: Cohort,
    url: str,
    settings: SweepConfig,
    space: Space | None,
    labelled: Cohort | None,
    track: TrackConfig,
    deadline: float | None = None,
) -> None:
    """Fit one trial from wherever its run folder stands, and leave it ended.

    Args:
        config: Of Tune.
        cohort: What it is fitted on.
        url: Folder of the sweep.
        settings: Of the sweep.
        space: Where points are drawn from; None where tasks are given whole.
        labelled: For an objective that uses labels.
        track: Where else epochs are shown.
        deadline: When the budget ends, in seconds since the epoch, for trials of several workers;
            the others are ended by Tune.
    """
    task = read_task(config, url, space)
    if settings.workers_per_trial == 1:
        torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
        # The actor's next trial mostly fits on the same volumes.
        keep_volumes()
    else:
        keep_group()
    trial = _Trial(task, settings, labelled, deadline)
    ended = status(task.url) in ENDED
    if Run.is_begun(task.url):
        try:
            Run.open(task.url).metrics()
        except RunError as damage:
            tune.report({"run": task.url, "error": f"RunError: {damage}"})
            return
        if not ended:
            # A sweep that goes on has not stopped it.
            Run.open(task.url).ask_to_stop(False)
            trial.measure_kept()
        # A trial that was started before tells the scheduler again how it went.
        for record in Run.open(task.url).metrics():
            trial.tell(record, is_new=False)
    error = "" if ended or trial.is_late else trial.fit(cohort, track)
    # This process may live on, beside others on the same GPU.
    release_memory()
    if not error and status(task.url) in ENDED:
        trial.conclude()
    if error or not trial.has_reported:
        tune.report(trial.last() | ({"error": error} if error else {}))


class _Trial:
    """One trial in its actor."""

    def __init__(
        self,
        task: Task,
        settings: SweepConfig,
        labelled: Cohort | None,
        deadline: float | None,
    ) -> None:
        self._task, self._settings, self._labelled = task, settings, labelled
        self._deadline = deadline
        self._value: float | None = None
        self.has_reported = False

    def fit(self, cohort: Cohort, track: TrackConfig) -> str:
        """Fit it; returns why that cannot be, if it cannot."""
        settings = self._settings
        scale = ScaleConfig(
            num_workers=settings.workers_per_trial,
            cpus_per_worker=settings.cpus_per_trial - READ_CPUS,
            device=settings.place,
        )
        try:
            fit(
                self._task.experiment,
                cohort,
                self._task.url,
                scale=scale,
                track=track if learns(self._task.experiment) else TrackConfig(),
                report=self.tell,
            )
        except UadrayError as error:
            # It would come again each time; its run folder has recorded it.
            return f"{type(error).__name__}: {error}"
        if self.is_late and status(self._task.url) == "stopped":
            # Not by a scheduler: it goes on when the sweep does.
            Run.open(self._task.url).reopen()
        return ""

    @property
    def is_late(self) -> bool:
        """Whether the budget has ended."""
        return self._deadline is not None and time.time() >= self._deadline

    def tell(self, record: dict[str, Any], *, is_new: bool = True) -> None:
        """Tell Tune of an epoch; `is_new` says that it has just been fitted."""
        epoch = int(record["epoch"])
        if is_new and self.is_late:
            Run.open(self._task.url).ask_to_stop()
        report = {"epoch": epoch, "run": self._task.url, RESERVED: kept_group()}
        if RECONSTRUCTION in record:
            # Some phases of some methods have none.
            report[RECONSTRUCTION] = record[RECONSTRUCTION]
        if self._labelled is None:
            self._value = record.get(RECONSTRUCTION)
        elif self._settings.scheduler == "asha":
            run = Run.open(self._task.url)
            if is_new:
                self.measure_kept()
            else:
                self._take(measured_at(run, self._labelled, epoch))
        if self._value is not None:
            report[OBJECTIVE] = self._value
        self.has_reported = True
        tune.report(report)

    def measure_kept(self) -> None:
        """Measure the epoch that the run would detect with now, where labels are used."""
        run = Run.open(self._task.url)
        state = CheckpointStore.of(run).state()
        if self._labelled is None or (state is None and learns(self._task.experiment)):
            return
        epoch = state.best if state and learns(self._task.experiment) else None
        self._take(measure_run(run, self._labelled, epoch))

    def conclude(self) -> None:
        """Put the objective into the summary of a run that has ended, and tell Tune."""
        if self._labelled is None:
            return
        run = Run.open(self._task.url)
        summary = run.summary or {}
        name = self._settings.objective
        before = summary.get("objective", {})
        if (before.get("name"), before.get("cohort")) == (name, self._labelled.fingerprint):
            self._value = self._settings.sign * before["value"]
        else:
            self.measure_kept()
            if self._value is None:
                return
            match = compare(run, self._labelled)
            note = "; ".join([label_note(self._settings), *match.marks])
            summary["objective"] = {
                "name": name,
                "value": self._settings.sign * self._value,
                "uses_labels": True,
                "cohort": self._labelled.fingerprint,
                "part": "threshold",
                "note": note,
            }
            summary["warnings"] = [*summary.get("warnings", []), note]
            run.finish(summary)
        tune.report(self.last())
        self.has_reported = True

    def last(self) -> dict[str, Any]:
        """The state of a trial as it stands."""
        records = Run.open(self._task.url).metrics() if Run.is_begun(self._task.url) else []
        state: dict[str, Any] = {"run": self._task.url}
        if records:
            state["epoch"] = records[-1]["epoch"]
            if RECONSTRUCTION in records[-1]:
                state[RECONSTRUCTION] = records[-1][RECONSTRUCTION]
        if self._value is not None:
            state[OBJECTIVE] = self._value
        return state

    def _take(self, figures: dict[str, Any] | None) -> None:
        if figures is not None:
            self._value = self._settings.sign * float(figures[self._settings.objective])
