"""The run folder: what a fit writes, what evaluation adds, and all that a report reads.

`config.json`, `train.toml` (which repeats the fit), `people.npz`, `metrics.jsonl` (one line an
epoch), `summary.json`, `checkpoint/`, then `scores/` and `evaluation/`. A folder is resumed only by
the same experiment on the same cohort.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from uadray import files
from uadray.config import Experiment, changes, from_json, to_json
from uadray.data.sampling import folds_digest
from uadray.device import gpu_facts
from uadray.errors import CheckpointError, PluginError, RunError
from uadray.methods import is_fitted
from uadray.methods.blocks import constants
from uadray.methods.ensemble import Ensemble
from uadray.results import refuse_inside
from uadray.runs.learned import PEOPLE, join_people, origin_of, record_people
from uadray.runs.reading import (
    AGAIN,
    CHECKPOINT,
    CONFIG,
    EPOCHS,
    SUMMARY,
    read_config,
    read_epochs,
    read_summary,
    writing,
)
from uadray.store import Cohort, software_versions


def _names(url: str) -> list[str]:
    try:
        return files.list_names(url)
    except OSError as error:
        raise RunError(f"{url} cannot be listed ({error.strerror or error})") from None


def _differences(there: Experiment, here: Experiment) -> str:
    """What parts two experiments, in words; the settings of members would fill a page."""
    old, new = (
        one.method.members if isinstance(one.method, Ensemble.Settings) else ()
        for one in (there, here)
    )
    if bool(old) != bool(new):
        return f"other settings, and not of {here.name}"
    if old != new:
        return "other members"
    return f"other settings ({'; '.join(changes(to_json(there), to_json(here)))})"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder on a local path or any fsspec URL."""

    url: str
    experiment: Experiment
    cohort_url: str
    cohort_fingerprint: str
    shape: tuple[int, int, int]

    @classmethod
    def create(cls, url: str, experiment: Experiment, cohort: Cohort) -> Self:
        """Begin a run, or resume one of the same experiment on the same cohort.

        Raises:
            CheckpointError: the folder holds a run of another experiment or cohort.
            RunError: the folder holds something else.
        """
        url = files.normalise(url)
        folds = experiment.fit.folds
        facts = {"folds": folds_digest(cohort, folds)} if folds else {}
        if (run := cls._begun(url, experiment, cohort.fingerprint, cohort.url)) is not None:
            if folds:
                run.check_folds(cohort, folds)
            return run
        origin = origin_of(cohort).to_json()
        described = {
            "name": cohort.name,
            "url": cohort.url,
            "fingerprint": cohort.fingerprint,
            "shape": list(cohort.shape),
            "origin": origin,
        }
        with writing(url):
            record_people(url, cohort, experiment)
        return cls._begin(url, experiment, described, facts)

    @classmethod
    def join(cls, url: str, experiment: Experiment, members: Sequence["Run"]) -> Self:
        """Begin the run of an ensemble, or open one of the same members.

        What was learned from is theirs; all are of one cohort, which need not be there any more.

        Raises:
            CheckpointError: the folder holds another run.
            RunError: the folder holds something else.
        """
        url, first = files.normalise(url), members[0]
        begun = cls._begun(url, experiment, first.cohort_fingerprint, first.cohort_url)
        if begun is not None:
            return begun
        fitted = [one.url for one in members if is_fitted(one.experiment.method)]
        with writing(url):
            if fitted:
                join_people(url, fitted)
        facts = {"folds": first.config["folds"]} if "folds" in first.config else {}
        return cls._begin(url, experiment, first.config["cohort"], facts)

    @classmethod
    def _begun(cls, url: str, experiment: Experiment, fingerprint: str, cohort: str) -> Self | None:
        """The run at `url` if it is of that experiment and cohort, or None before there is one."""
        cls.check_place(url)
        if CONFIG in _names(url):
            run = cls.open(url)
            if run.experiment != experiment:
                raise CheckpointError(
                    f"{url} holds a run of {run.experiment.name} with "
                    f"{_differences(run.experiment, experiment)}: choose another --out"
                )
            if run.cohort_fingerprint != fingerprint:
                raise CheckpointError(
                    f"{url} was fitted on cohort {run.cohort_fingerprint} ({run.cohort_url}), not "
                    f"on {fingerprint} ({cohort}): choose another --out"
                )
            return run
        if any(name != PEOPLE and not files.is_transient(name) for name in _names(url)):
            raise RunError(f"{url} is not empty and holds no run: choose another --out")
        return None

    @classmethod
    def _begin(
        cls, url: str, experiment: Experiment, cohort: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> Self:
        config = {
            "name": experiment.name,
            "experiment": to_json(experiment),
            "fingerprint": experiment.fingerprint,
            "cohort": dict(cohort),
            "network": constants(),
            "versions": software_versions(),
            "hardware": hardware(),
            **facts,
        }
        with writing(url):
            files.write_json(files.join(url, CONFIG), config)
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a run folder.

        Raises:
            RunError: there is none at `url`, it is damaged or cannot be read, or its method is of a
                package that is not installed.
        """
        url = files.normalise(url)
        config = read_config(url)
        place, cohort = files.join(url, CONFIG), config["cohort"]
        try:
            z, y, x = (int(n) for n in cohort["shape"])
            experiment = from_json(Experiment, config["experiment"])
            if experiment.fingerprint != config["fingerprint"]:
                raise ValueError(
                    f"its settings have the fingerprint {experiment.fingerprint}, it records "
                    f"{config['fingerprint']}"
                )
            recorded = config.get("network", constants())
            if recorded != constants():
                raise ValueError(
                    f"its networks have {recorded}, those of this version {constants()}"
                )
            return cls(
                url=url,
                experiment=experiment,
                cohort_url=str(cohort["url"]),
                cohort_fingerprint=str(cohort["fingerprint"]),
                shape=(z, y, x),
            )
        except KeyError as error:
            raise RunError(
                f"{place} is damaged: it lacks cohort.{error.args[0]}; {AGAIN}"
            ) from None
        except PluginError as error:
            raise RunError(f"{place}: {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(
                f"{place} is damaged, or of another version of uadray ({error}); {AGAIN}"
            ) from None

    @classmethod
    def check_place(cls, url: str) -> None:
        """Refuse to begin a run inside of other results.

        Raises:
            RunError: `url` lies in another run, a model, predictions or a cohort.
        """
        if not cls.is_begun(url):
            refuse_inside(url, RunError)

    @staticmethod
    def is_begun(url: str) -> bool:
        """Whether there is a run at `url`, ended or not."""
        return files.exists(files.join(url, CONFIG))

    def check_folds(self, cohort: Cohort, folds: int) -> None:
        """Refuse a cohort whose covariates deal its people into other folds than at the fit.

        Raises:
            CheckpointError: they do, so that nobody knows any more who was held back.
        """
        now = folds_digest(cohort, folds)
        # Ensembles of earlier versions do not record them.
        is_recorded = "folds" in self.config or self.experiment.fit.folds
        if is_recorded and self.config.get("folds") != now:
            raise CheckpointError(
                f"{self.url} was fitted on other folds of {cohort.url}, whose covariates have "
                "changed since then: give it the table of that time by the same jobs/prepare.py, "
                "or fit all folds into another --out"
            )

    @property
    def config(self) -> dict[str, Any]:
        """The whole `config.json`.

        Raises:
            RunError: it is damaged or cannot be read.
        """
        return read_config(self.url)

    def note(self, facts: dict[str, Any]) -> None:
        """Add to `config.json` what else must be known of the run, such as its lineage."""
        with writing(self.url):
            files.write_json(files.join(self.url, CONFIG), self.config | facts)

    def remove_drafts(self) -> None:
        """Remove what a killed fit has left half-written; only who holds the folder may."""
        for folder in (self.url, files.join(self.url, CHECKPOINT)):
            files.remove_drafts(folder, recursive=False)

    @property
    def how_to_resume(self) -> str:
        """What to do about a run that has not finished, in words."""
        job = "ensemble" if isinstance(self.experiment.method, Ensemble.Settings) else "train"
        return f"run the same jobs/{job}.py again"

    @property
    def checkpoint_key(self) -> str:
        """What its checkpoints are of."""
        return f"{self.experiment.fingerprint}-{self.cohort_fingerprint}"

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a fit left that has ended, well or not; None while it has not.

        Raises:
            RunError: it is damaged or cannot be read.
        """
        return read_summary(self.url)

    @property
    def finished(self) -> bool:
        """Whether the fit has ended well."""
        return (self.summary or {}).get("status") == "finished"

    def metrics(self) -> list[dict[str, Any]]:
        """One record an epoch.

        Raises:
            RunError: as `read_epochs`.
        """
        return read_epochs(self.url)

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace the record of epochs, whole."""
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records)
        with writing(self.url):
            files.write_bytes(files.join(self.url, EPOCHS), text.encode())

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the fit as ended; `status` says whether it is `finished` or `failed`."""
        with writing(self.url):
            files.write_json(files.join(self.url, SUMMARY), summary)

    def reopen(self) -> None:
        """Take back the mark of a fit that has failed: it is started again."""
        with writing(self.url):
            files.remove(files.join(self.url, SUMMARY))

    @property
    def asked_to_stop(self) -> bool:
        """Whether a fit by several workers is to end after its present epoch."""
        return files.exists(files.join(self.url, "stop"))

    def ask_to_stop(self, stop: bool = True) -> None:
        """Ask a fit by several workers to end after its present epoch, or take that back."""
        url = files.join(self.url, "stop")
        files.write_bytes(url, b"") if stop else files.remove(url)


def hardware() -> dict[str, Any]:
    """What the figures of a run were measured on, without naming the machine."""
    cpu = {"cpus": os.cpu_count(), "machine": platform.machine(), "device": "cpu"}
    return cpu | gpu_facts()
