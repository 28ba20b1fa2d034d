"""A table or figure of a paper made again: what is there, what is missing, ours beside theirs.

All runs of a paper's protocol lie in one sweep folder, so that figures share the runs of tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uadray import files
from uadray.config import BASELINES, Experiment, experiment, learns, to_json
from uadray.errors import ConfigError
from uadray.evaluation.job import evaluate_all
from uadray.evaluation.protocols import PROTOCOLS, EvaluateConfig
from uadray.methods import is_fitted
from uadray.metrics.slicewise import Slices
from uadray.metrics.thresholds import WITHOUT_LESIONS
from uadray.papers.caveats import (
    EVALUATION,
    Caveat,
    differences,
    healthy_differences,
    method_caveats,
    preparation_differences,
)
from uadray.papers.scales import Scale
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Study
from uadray.report.slices import pooled
from uadray.runs.evaluations import unpack_slices
from uadray.runs.folder import Run
from uadray.runs.reading import place
from uadray.store import Cohort
from uadray.tune.sweep import Outcome, SweepConfig, fit_trials, run_url
from uadray.tune.trials import status


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One table or figure, with what there is to make it from."""

    paper: Paper
    study: Study
    scale: Scale
    out: str
    """Folder of all reproductions."""
    healthy: Cohort | None
    """What methods are fitted on."""
    cohorts: Mapping[str, Cohort]
    """By role."""
    seeds: tuple[int, ...] = (0,)
    """Of the fits."""
    baselines: bool = True
    """Whether the plain baselines stand beside the paper's methods, where it trains any."""
    to_make: frozenset[str] = frozenset()
    """Roles, and `healthy`, whose phantoms will be made before anything is run."""

    @property
    def url(self) -> str:
        """The sweep folder."""
        return files.join(files.normalise(self.out), self.study.protocol)

    @property
    def roles(self) -> list[str]:
        """Roles of the study that have a cohort on a usable grid."""
        return [
            n.role
            for n in self.study.cohorts
            if n.role in self.to_make or (n.role in self.cohorts and self.fits(n))
        ]

    @property
    def has_healthy(self) -> bool:
        """Whether there is something to fit on, now or before anything is run."""
        return self.healthy is not None or "healthy" in self.to_make

    def fits(self, need: CohortNeed) -> bool:
        """Whether a role's cohort is on the grid that the protocol asks for, or a phantom's."""
        grid = PROTOCOLS[self.study.protocol].grid
        shape = self.cohorts[need.role].shape
        return self.scale.size > 0 or grid is None or grid == shape

    def entries(self) -> list[Entry]:
        """Rows and points that can be made: the method is built, and their cohorts are there."""
        every = len(self.roles) == len(self.study.cohorts)
        return [
            e
            for e in self.study.entries
            if e.experiment is not None and (e.role in self.roles if e.role else every)
        ]

    def experiments(self) -> list[Experiment]:
        """What has to be fitted, at this scale and with every seed."""
        wanted = [self.at_scale(e.experiment) for e in self.entries() if e.experiment is not None]
        if self.baselines and wanted and self.has_healthy and any(map(learns, wanted)):
            wanted += [experiment(name) for name in BASELINES]
        if not self.has_healthy:
            wanted = [e for e in wanted if not is_fitted(e.method)]
        made = []
        for one in dict.fromkeys(wanted):
            seeds = self.seeds if learns(one) or one.fit.data_share < 1 else (0,)
            made += [replace(one, fit=replace(one.fit, seed=seed)) for seed in seeds]
        return list(dict.fromkeys(made))

    def at_scale(self, one: Experiment) -> Experiment:
        """An experiment of the paper with the settings of this scale."""
        if not learns(one):
            return one
        changes = dict(self.scale.changes)
        if self.scale.batch_size_3d and getattr(one.method, "ndim", 3) == 3:
            changes["batch_size"] = self.scale.batch_size_3d
        return replace(one, fit=replace(one.fit, **changes))

    def fitted_on(self) -> Cohort:
        """The healthy cohort; for methods that learn nothing any cohort, for its grid alone.

        Raises:
            ConfigError: there is none.
        """
        if self.healthy is not None:
            return self.healthy
        if not self.roles:
            raise ConfigError(f"{self.study.key}: no cohort is given; see --cohorts and --healthy")
        return self.cohorts[self.roles[0]]

    def evaluation(self, protocol: str = "") -> EvaluateConfig:
        """The protocol; phantoms keep all its rules but grid and slices, as recorded changes.

        Args:
            protocol: Of an entry that has its own; the study's by default.
        """
        fixed = PROTOCOLS[protocol or self.study.protocol]
        shapes = {self.cohorts[role].shape for role in self.roles}
        if fixed.grid is None or shapes <= {fixed.grid}:
            return EvaluateConfig.of(fixed.name)
        return EvaluateConfig.of(
            "bengs2021",
            residual=fixed.residual,
            postprocess=fixed.postprocess,
            components=fixed.components,
            threshold_rule=fixed.threshold_rule,
        )

    def run(self, config: SweepConfig | None = None) -> list[Outcome]:
        """Fit and evaluate what is missing; the same again goes on where it was cut short."""
        config = config or SweepConfig()
        trials = self.experiments()
        if not trials:
            return []
        outcomes = fit_trials(
            trials,
            self.fitted_on(),
            self.url,
            config=config,
            varied=("experiment", "fit.data_share", "fit.seed"),
        )
        runs = [Run.open(o.url) for o in outcomes if o.status == "finished"]
        cohorts = [self.cohorts[role] for role in self.roles]
        if runs and cohorts:
            insist = config.allow_mismatch
            own = {e.experiment.name: e.protocol for e in self.entries() if e.experiment}
            for protocol in dict.fromkeys(own.get(run.experiment.name, "") for run in runs):
                some = [r for r in runs if own.get(r.experiment.name, "") == protocol]
                rules = replace(self.evaluation(protocol), device=config.place)
                healthy = self._threshold_from(rules, cohorts)
                evaluate_all(some, cohorts, healthy=healthy, config=rules, allow_mismatch=insist)
        return outcomes

    def _threshold_from(self, config: EvaluateConfig, cohorts: Sequence[Cohort]) -> Cohort | None:
        """The healthy cohort, where a cohort is tested whole and the rule needs no lesions."""
        whole = any("threshold" not in set(cohort.subjects["split"]) for cohort in cohorts)
        return self.healthy if whole and config.threshold_rule in WITHOUT_LESIONS else None

    def published(self) -> dict[tuple[str, str], Mapping[str, Published]]:
        """Printed figures by the names of our cohort and experiment, as the report takes them."""
        return {
            (self.cohorts[e.role].name, e.experiment.name): e.published
            for e in self.entries()
            if e.role and e.published and e.experiment is not None
        }

    def rows_with(self) -> dict[str, set[tuple[str, str]]]:
        """Each caveat with its rows, by cohort and experiment, as the report takes them."""
        return {
            one.text: {
                (self.cohorts[role].name, entry.experiment.name)
                for entry in self.entries()
                if entry.experiment is not None and one.of(entry)
                for role in ([entry.role] if entry.role else self.roles)
                if role in self.cohorts and (not one.roles or role in one.roles)
            }
            for one in self.differences()
        }

    def caveats(self) -> list[str]:
        """Where ours is not theirs, in words; never empty where anything was measured."""
        return [one.text for one in self.differences()]

    def differences(self) -> list[Caveat]:
        """The same with the rows that each is of."""
        caveats = []
        if self.scale.changes:
            changed = ", ".join(f"{name} = {value}" for name, value in self.scale.changes)
            if self.scale.batch_size_3d:
                changed += f", batches of {self.scale.batch_size_3d} volumes in 3D"
            text = f"Scale {self.scale.name!r}: {self.scale.told}. Changed: {changed}."
            caveats.append(Caveat(text=text))
        caveats += [Caveat(text=text) for text in healthy_differences(self.study, self.healthy)]
        for need in self.study.cohorts:
            if need.role in self.cohorts:
                cohort, only = self.cohorts[need.role], frozenset({need.role})
                texts = differences(need, cohort)
                texts += preparation_differences(self.paper.key, need.role, cohort)
                caveats += [Caveat(text=text, roles=only) for text in texts]
        fixed = PROTOCOLS[self.study.protocol]
        if not self.to_make and self.roles and self.evaluation().protocol != fixed.name:
            text = (
                f"Evaluated on the phantoms' own grid and on all slices; {fixed.name} is defined "
                f"on {fixed.grid} and slices {fixed.slices}. Its post-processing, component filter "
                "and threshold rule were kept."
            )
            caveats.append(Caveat(text=text))
        if self.study.entries and (self.roles or self.to_make):
            caveats += [Caveat(text=text) for text in EVALUATION.get(self.paper.key, ())]
            caveats += method_caveats(self.study, self.paper.key)
        return caveats

    def missing(self) -> list[str]:
        """What cannot be made, and why, in words."""
        told = []
        for need in self.study.cohorts:
            what = f"{need.role}: {need.data}, {need.modality}"
            if need.role in self.to_make:
                continue
            if need.role not in self.cohorts:
                told.append(f"cohort {what}: not given")
            elif not self.fits(need):
                fixed = PROTOCOLS[self.study.protocol]
                told.append(
                    f"cohort {what}: on a grid of {self.cohorts[need.role].shape}, the protocol "
                    f"asks for {fixed.grid}; prepare it with {fixed.prepare}"
                )
        told += [f"method {name}: not built" for name in self.study.missing_methods()]
        if not self.has_healthy:
            learned = [e for e in self.study.experiments() if is_fitted(e.method)]
            if learned:
                told.append(f"healthy cohort: not given; {len(learned)} methods are fitted on one")
        return told

    def states(self) -> list[tuple[Experiment, str, str]]:
        """Each run with its folder and how it stands."""
        states = []
        for one in self.experiments():
            folder = run_url(self.url, one)
            state = status(folder)
            if state == "unfinished" and not Run.is_begun(folder):
                state = "missing"
            elif state == "finished":
                here = [role for role in self.roles if role in self.cohorts]
                lacks = [r for r in here if _record(folder, self.cohorts[r]) is None]
                state = f"finished, to evaluate on {', '.join(lacks)}" if lacks else "evaluated"
            states.append((one, folder, state))
        return states

    def rows(self) -> list[dict[str, Any]]:
        """Ours beside theirs: one record an entry and figure, as JSON values.

        `caveats` are the numbers, from 1, of those in `caveats()` that the row has.
        """
        differences = self.differences()
        return [
            row | {"caveats": [n for n, one in enumerate(differences, start=1) if one.of(entry)]}
            for entry in self.entries()
            for row in self._rows(entry)
        ]

    def _rows(self, entry: Entry) -> list[dict[str, Any]]:
        assert entry.experiment is not None
        wanted = self.at_scale(entry.experiment)
        seeds = self.seeds if learns(wanted) else (0,)
        folders = [
            run_url(self.url, replace(wanted, fit=replace(wanted.fit, seed=s))) for s in seeds
        ]
        metrics = list(entry.published) or list(PROTOCOLS[self.study.protocol].metrics)
        rows = []
        for metric in metrics:
            measured = [self._measured(folder, entry, metric) for folder in folders]
            each = [value for value, _ in measured if value is not None]
            printed = entry.published.get(metric)
            rows.append(
                {
                    "study": self.study.key,
                    "label": entry.label,
                    "role": entry.role or "all",
                    "metric": metric,
                    "ours": float(np.mean(each)) if each else None,
                    "ours_each_seed": each,
                    "interval": measured[0][1] if len(measured) == 1 else None,
                    "published": None if printed is None else printed.value,
                    "published_deviation": None if printed is None else printed.deviation,
                    "published_digitised": printed is not None and printed.digitised,
                }
            )
        return rows

    def _measured(
        self, folder: str, entry: Entry, metric: str
    ) -> tuple[float | None, list[float] | None]:
        roles = [entry.role] if entry.role else self.roles
        records = [_record(folder, self.cohorts[role]) for role in roles]
        if not records or any(r is None for r in records):
            return None, None
        held = [r for r in records if r is not None]
        if metric == "seconds_per_slice":
            depth = self.cohorts[roles[0]].shape[0]
            spent = held[0].get("seconds_per_volume")
            return (None if spent is None else spent / depth), None
        if len(held) == 1:
            return held[0]["metrics"].get(metric), held[0]["intervals"].get(metric)
        if metric == "slice_auprc":
            parts = [self._slices(folder, role) for role in roles]
            estimate = pooled(
                parts, [self._people(part, role) for part, role in zip(parts, roles, strict=True)]
            )
            return estimate.value, None if estimate.bounds is None else list(estimate.bounds)
        values = [r["metrics"].get(metric) for r in held]
        return (None if None in values else float(np.mean(values))), None

    def _slices(self, folder: str, role: str) -> Slices:
        name = self.cohorts[role].name
        return unpack_slices(files.read_bytes(place(folder, name, "slices")))

    def _people(self, slices: Slices, role: str) -> list[str]:
        table = self.cohorts[role].subjects
        person = dict(zip(table["id"], table["subject"], strict=True))
        return [str(person[scan]) for scan in slices.subjects]

    def evaluations(self, label: str, role: str) -> list[dict[str, Any]]:
        """What was recorded of a method on a cohort, one a seed, with the run as `run`."""
        wanted = next(e.experiment for e in self.study.entries if e.label == label)
        if wanted is None or role not in self.cohorts:
            return []
        one = self.at_scale(wanted)
        records = []
        for seed in self.seeds if learns(one) else (0,):
            folder = run_url(self.url, replace(one, fit=replace(one.fit, seed=seed)))
            if (record := _record(folder, self.cohorts[role])) is not None:
                records.append(record | {"run": folder})
        return records

    def record(self) -> dict[str, Any]:
        """All of it as a JSON value, for `<study>.json`."""
        return {
            "paper": self.paper.key,
            "citation": self.paper.citation,
            "study": self.study.key,
            "title": self.study.title,
            "scale": to_json(self.scale),
            "seeds": list(self.seeds),
            "caveats": self.caveats(),
            "missing": self.missing(),
            "cohorts": {
                role: {"name": c.name, "fingerprint": c.fingerprint, "shape": list(c.shape)}
                for role, c in self.cohorts.items()
                if role in {need.role for need in self.study.cohorts}
            },
            "runs": [
                {"experiment": one.name, "run": folder, "state": state}
                for one, folder, state in self.states()
            ],
            "rows": self.rows(),
        }


def _record(folder: str, cohort: Cohort) -> dict[str, Any] | None:
    """The evaluation of a run on a cohort, or None where there is none of this cohort."""
    url = place(folder, cohort.name)
    if not files.exists(url):
        return None
    record = dict(files.read_json(url))
    return record if record["cohort"]["fingerprint"] == cohort.fingerprint else None
