"""What `jobs/tune.py` does: fit every trial of a space, evaluate and report them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from uadray import files, settings_files
from uadray.config import learns
from uadray.errors import ConfigError, RunError
from uadray.results import refuse_place
from uadray.runs.reading import SPACE, SWEEP_SETTINGS
from uadray.train.settings import TrackConfig
from uadray.tune.settings import SweepConfig
from uadray.tune.space import Space
from uadray.tune.vary import settings_of

if TYPE_CHECKING:
    import pandas as pd

    from uadray.runs.folder import Run
    from uadray.runs.records import Broken, RunRecord
    from uadray.store import Cohort
    from uadray.tune.trials import Outcome


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as it ended."""

    url: str
    """Its folder; run folders lie in `runs/`."""
    space: Space
    """What was compared."""
    config: SweepConfig
    """How."""
    outcomes: "tuple[Outcome, ...]"
    """Every trial, in the order of the space."""
    report: str
    """The page; empty where no trial finished."""
    left_out: "tuple[Broken, ...]"
    """Runs that could not be evaluated, each with its reason."""

    def records(self) -> "list[RunRecord]":
        """The run folders of all trials that have begun and can be read."""
        from uadray.runs.folder import Run
        from uadray.runs.records import load_runs

        urls = [o.url for o in self.outcomes if Run.is_begun(o.url)]
        return load_runs(urls, []) if urls else []

    def best(self) -> "Run":
        """The trial with the best objective among those that finished, as the report ranks them.

        Plain baselines are not ranked; where no trial finished, those count that were stopped.

        Raises:
            RunError: there is none.
        """
        from uadray.runs.folder import Run

        ranked = [
            (o.status, self.config.sign * o.objective, o.url)
            for o in self.outcomes
            if learns(o.experiment) and o.objective is not None
        ]
        for status in ("finished", "stopped"):
            if ended := [one for one in ranked if one[0] == status]:
                return Run.open(min(ended, key=lambda one: one[1])[2])
        raise RunError(f"{self.url}: no trial that learns by gradient has finished; see sweep.json")

    def dataframe(self) -> "pd.DataFrame":
        """A row for each trial, in the order of the space.

        Columns are `experiment`, the settings by path (`method.latent_size`), `status`, `error`,
        `objective`, the metrics of each evaluated cohort (`stroke/dice_d`), and `url`.
        """
        import pandas as pd

        metrics = {
            record.url: {
                f"{one.cohort}/{name}": value
                for one in record.evaluations
                for name, value in one.values["metrics"].items()
            }
            for record in self.records()
        }
        settings = pd.DataFrame([settings_of(o.experiment) for o in self.outcomes])
        ends = [(o.status, o.error, o.objective) for o in self.outcomes]
        ended = pd.DataFrame(ends, columns=["status", "error", "objective"])
        evaluated = pd.DataFrame([metrics.get(o.url, {}) for o in self.outcomes])
        urls = pd.Series([o.url for o in self.outcomes], name="url", dtype=object)
        return pd.concat([settings, ended, evaluated, urls], axis=1)


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What to compare, on what, and where to."""

    space: Space
    """The values of each setting."""
    cohort: str = ""
    """A sealed healthy cohort; a local path or an fsspec URL. Phantom brains by default."""
    out: str = ""
    """Folder of the sweep; on storage that all nodes share when there are several. By default
    runs/COHORT/tune-PRESET, first-run for phantoms; under the home folder in a submitted job."""
    name: str = ""
    """Of the sweep, in the title of its report; the preset's by default."""
    evaluate: tuple[str, ...] = ()
    """Lesioned cohorts on which the finished trials are evaluated; phantoms where no cohort is
    given."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """How trials are scheduled and compared."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """TensorBoard, MLflow and Weights & Biases, of every trial that has epochs."""

    def cohorts(self) -> "tuple[Cohort, list[Cohort]]":
        """The healthy cohort and those with lesions, which go together.

        Raises:
            UadrayError: one cannot be opened, or a lesioned one is not to be evaluated on.
        """
        from uadray.evaluation.inputs import refuse
        from uadray.runs.learned import compare_cohorts
        from uadray.store import open_cohort

        cohort = open_cohort(self.cohort)
        lesioned = [open_cohort(url) for url in self.evaluate]
        for one in lesioned:
            match = compare_cohorts(cohort, one)
            refuse(match, cohort.url, one.url, insist=self.sweep.allow_mismatch)
        return cohort, lesioned

    def run(self) -> Sweep:
        """Fit, evaluate and report; the same again goes on where it was cut short.

        Raises:
            UadrayError: the cohorts, the space or the folder cannot be used. Trials that fail are
                recorded, and end nothing.
        """
        from uadray.tune.sweep import sweep

        refuse_place(self.out, ConfigError)
        # Before hours of fitting: a cohort that cannot be evaluated on is found now.
        cohort, lesioned = self.cohorts()
        cohort.rows("train")  # which one with lesions lacks
        url = files.normalise(self.out)
        outcomes = sweep(
            self.space,
            cohort,
            url,
            config=self.sweep,
            track=self.track,
            begin=lambda: self._keep(url, cohort),
        )
        left_out = _evaluate(outcomes, lesioned, self.sweep)
        return Sweep(
            url=url,
            space=self.space,
            config=self.sweep,
            outcomes=tuple(outcomes),
            report=self._report(url, outcomes, left_out),
            left_out=tuple(left_out),
        )

    def _keep(self, url: str, cohort: "Cohort") -> None:
        """Write the files that repeat the sweep."""
        settings = {one.name: getattr(self, one.name) for one in fields(SweepJob)}
        settings |= {"cohort": cohort.url, "out": url}
        settings["evaluate"] = list(map(files.normalise, self.evaluate))
        if self.sweep.labelled:
            labelled = files.normalise(self.sweep.labelled)
            settings["sweep"] = replace(self.sweep, labelled=labelled)
        settings_files.write(files.join(url, SWEEP_SETTINGS), "tune", settings)
        settings_files.write(files.join(url, SPACE), "space", vars(self.space))

    def _report(self, url: str, outcomes: "Sequence[Outcome]", left_out: "list[Broken]") -> str:
        from uadray.report import write_report
        from uadray.runs.folder import Run

        if not any(o.status == "finished" for o in outcomes):
            return ""
        # Those that were stopped early or failed are in the report, too.
        urls = [o.url for o in outcomes if Run.is_begun(o.url)]
        title = f"{f'Sweep {self.name}'.rstrip()}: {self.sweep.describe()}"
        return write_report(urls, files.join(url, "report.html"), title=title, left_out=left_out)


def _evaluate(
    outcomes: "Sequence[Outcome]", lesioned: "list[Cohort]", config: SweepConfig
) -> "list[Broken]":
    """Evaluate what finished; returns what could not be."""
    from uadray.evaluation.job import evaluate_all, num_volumes
    from uadray.evaluation.protocols import EvaluateConfig
    from uadray.progress import Progress
    from uadray.runs.folder import Run
    from uadray.runs.records import Broken

    left_out: list[Broken] = []
    runs = [Run.open(o.url) for o in outcomes if o.status == "finished"]
    if runs and lesioned:
        with Progress(total=num_volumes(lesioned), what="volumes scored") as progress:
            evaluate_all(
                runs,
                lesioned,
                config=EvaluateConfig(device=config.place),
                report=progress.advance,
                failed=lambda run, error: left_out.append(Broken(url=run.url, error=str(error))),
                allow_mismatch=config.allow_mismatch,
            )
    return left_out
