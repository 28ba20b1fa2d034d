"""Runs that combine others: made of finished runs, and led back to them by the digest of weights.

The run folder of an ensemble has the weights of all members in one checkpoint, so that it stands
alone; `config.json` says under `members` where they lay, for what is said of them beside it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from uadray import files
from uadray.config import Experiment, FitConfig, to_json
from uadray.errors import RunError, UadrayError
from uadray.lock import hold
from uadray.methods import num_parameters
from uadray.methods.ensemble import Combine, Ensemble, Member
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector, load_detector
from uadray.runs.folder import Run
from uadray.runs.maps import has_maps
from uadray.runs.state import weights_digest


def make_ensemble(runs: Sequence[Run], url: str, *, combine: Combine = "mean") -> Run:
    """Combine finished runs into one that is evaluated, reported and predicted with as any other.

    Args:
        runs: Members: fits on one cohort whose scores have one range, such as seeds or folds of one
            method. Their order does not matter.
        url: The run folder. One of the same members is opened as it is.
        combine: The mean or the median of the members' post-processed scores, voxel by voxel.

    Raises:
        RunError: a run is not finished, an ensemble itself, holds maps from outside, was fitted on
            another cohort or other folds than the first, has scores of another range, or is there
            twice.
        CheckpointError: the weights of a run are damaged, or `url` holds another run.
        LockedError: another job writes it.
    """
    url = files.normalise(url)
    if not runs:
        raise RunError("nothing to combine: name at least one finished run")
    named = [(_member(run), run) for run in runs]
    _check_alike(named)
    named.sort(key=lambda one: (one[1].experiment.name, *_order(one[0])))
    members, ordered = tuple(one for one, _ in named), [run for _, run in named]
    Run.check_place(url)
    with hold(url):
        if not Run.is_begun(url):
            # Damaged weights leave no run behind, whose members mended ones would not be.
            for one in ordered:
                load_detector(one)
        run = Run.join(url, _experiment(members, ordered, combine), ordered)
        run.remove_drafts()
        if run.finished:
            return run
        detector = build_detector(run.experiment, run.shape)
        assert isinstance(detector, Ensemble)
        for part, one in zip(detector.members, ordered, strict=True):
            part.load_state_dict(load_detector(one).state_dict())
        CheckpointStore.of(run).save(1, detector, None, 0.0)
        run.note({"members": [_described(*one) for one in named]})
        seconds = [(one.summary or {}).get("fit_seconds") for one in ordered]
        run.finish(
            {
                "status": "finished",
                "epochs": 0,
                "best_epoch": None,
                "fit_seconds": sum(seconds) if None not in seconds else None,
                "num_parameters": num_parameters(detector),
                "warnings": [],
            }
        )
        return run


def _member(run: Run) -> Member:
    """A run as a member, looked at."""
    if (run.summary or {}).get("status") not in ("finished", "stopped"):
        raise RunError(f"{run.url} is not finished: {run.how_to_resume}")
    if has_maps(run):
        raise RunError(
            f"{run.url} holds maps that other software made of one cohort's scans: there is no "
            "method in it to combine with others"
        )
    if isinstance(run.experiment.method, Ensemble.Settings):
        raise RunError(f"{run.url} is an ensemble itself: name its members in its place")
    fit = run.experiment.fit
    return Member(
        method=run.experiment.method,
        weights=weights_digest(run),
        seed=fit.seed,
        fold=fit.fold,
        folds=fit.folds,
    )


def _check_alike(named: Sequence[tuple[Member, Run]]) -> None:
    """Refuse what cannot be combined, each with the first."""
    (_, first), *others = named
    for _, run in others:
        if run.cohort_fingerprint != first.cohort_fingerprint:
            raise RunError(
                f"{run.url} was fitted on cohort {run.cohort_fingerprint} ({run.cohort_url}), "
                f"{first.url} on {first.cohort_fingerprint} ({first.cohort_url}): members learn "
                "from one cohort, prepared alike; fit them on the same"
            )
        ranges = [build_detector(one.experiment, one.shape).score_range for one in (first, run)]
        if ranges[0] != ranges[1]:
            texts = ["{:g} to {:g}".format(*one) for one in ranges]
            raise RunError(
                f"scores of {run.url} ({run.experiment.name}) run from {texts[1]}, those of "
                f"{first.url} ({first.experiment.name}) from {texts[0]}: their mean means nothing; "
                "combine fits of one method"
            )
    divided = {(one.folds, str(run.config.get("folds"))) for one, run in named if one.folds}
    if len(divided) > 1 or (divided and not all(one.folds for one, _ in named)):
        raise RunError(
            f"{first.url} and others were fitted on different folds of the cohort, or one of them "
            "on none: combine the fits of one --folds"
        )
    seen: dict[tuple[Any, str], str] = {}
    for one, run in named:
        key = one.method, one.weights
        if key in seen:
            raise RunError(
                f"{seen[key]} and {run.url} have the same weights: each fit counts once; leave one "
                "of them out, or fit it with another --fit.seed"
            )
        seen[key] = run.url


def _order(one: Member) -> tuple[Any, ...]:
    return one.folds, one.fold, one.seed, one.weights


def _experiment(members: tuple[Member, ...], runs: Sequence[Run], combine: Combine) -> Experiment:
    """The ensemble as an experiment, with the settings of the fits where these are alike."""
    names = list(dict.fromkeys(run.experiment.name for run in runs))
    what = f" of {_count(members)}" if len(names) == 1 else ""
    fits = {replace(run.experiment.fit, seed=0, fold=0, folds=0) for run in runs}
    fit = fits.pop() if len(fits) == 1 else FitConfig()
    erasings = {run.experiment.erasing for run in runs}
    kind = "ensemble" if combine == "mean" else f"{combine} ensemble"
    method = Ensemble.Settings(
        title=f"{' + '.join(names)} ({kind}{what})", members=members, combine=combine
    )
    seed = min(one.seed for one in members)
    if len(erasings) > 1:
        return Experiment(method=method, fit=replace(fit, seed=seed))
    return Experiment(method=method, erasing=erasings.pop(), fit=replace(fit, seed=seed))


def _count(members: Sequence[Member]) -> str:
    """`3 seeds`, `5 folds`, or `6 fits` where both vary, or neither."""
    num, seeds, folds = len(members), {m.seed for m in members}, {m.fold for m in members}
    if num > 1 and (len(seeds), len(folds)) == (num, 1):
        return f"{num} seeds"
    if num > 1 and (len(seeds), len(folds)) == (1, num):
        return f"{num} folds"
    return f"{num} fit{'' if num == 1 else 's'}"


def _described(member: Member, run: Run) -> dict[str, Any]:
    return {
        "url": run.url,
        "name": run.experiment.name,
        "fingerprint": run.experiment.fingerprint,
        "weights": member.weights,
        "experiment": to_json(run.experiment),
    }


def with_members(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Some runs, with the members of ensembles before these, each run once.

    Returns:
        The runs, and a sentence for each member that is left out: it is neither where it lay nor
        beside the ensemble, was fitted on since then, or cannot be written to.
    """
    given = {run.url: run for run in runs}
    found: dict[str, Run] = {}
    left_out = []
    for run in given.values():
        for place, one in members_at(run):
            if one is None:
                why = "is not there with these weights any more"
            elif one.url not in given and not _is_writable(one.url):
                why = "cannot be written to, and is not evaluated"
            else:
                found.setdefault(one.url, one)
                continue
            left_out.append(
                f"{run.url}: its member {place} {why}: the ensemble is scored by itself, and what "
                "it gains is not known"
            )
        found.setdefault(run.url, run)
    return list(found.values()), left_out


def _is_writable(url: str) -> bool:
    return files.is_remote(url) or os.access(url, os.W_OK)


def members_at(run: Run) -> list[tuple[str, Run | None]]:
    """Where the members of an ensemble lay, and each as a run if it is there with its weights."""
    if not isinstance(run.experiment.method, Ensemble.Settings):
        return []
    return [
        (str(one["url"]), _find(run, str(one["url"]), member))
        for one, member in zip(
            run.config.get("members") or (), run.experiment.method.members, strict=False
        )
    ]


def _find(run: Run, url: str, member: Member) -> Run | None:
    """A member where it lay, or beside the ensemble, where a folder of runs was moved."""
    beside = files.join(run.url.rsplit("/", 1)[0], url.rsplit("/", 1)[-1])
    for place in dict.fromkeys((url, beside)):
        try:
            one = Run.open(place)
            if one.experiment.method == member.method and weights_digest(one) == member.weights:
                return one
        except (UadrayError, OSError):
            continue
    return None
