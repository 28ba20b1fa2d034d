"""What cannot be evaluated, refused before anything is scored."""

from collections.abc import Sequence

from uadray.errors import ConfigError, EvaluationError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.thresholds import NONE, WITHOUT_LESIONS
from uadray.runs.folder import Run
from uadray.runs.learned import Match, compare_run
from uadray.runs.maps import has_maps, match_maps
from uadray.runs.reading import THRESHOLDS, read_config
from uadray.store import Cohort, repeated_images


def check_inputs(
    runs: Sequence[Run],
    cohorts: Sequence[Cohort],
    healthy: Cohort | None,
    config: EvaluateConfig,
    controls: Cohort | None = None,
) -> None:
    """Refuse runs and cohorts that do not fit together.

    Raises:
        EvaluationError: There is no run or no cohort, grids differ, lesions or a split are missing,
            a person is on both sides, or two cohorts share a name.
        ConfigError: The rule needs lesions, and was to be fitted on healthy volumes.
    """
    if not runs or not cohorts:
        raise EvaluationError("nothing to evaluate: name at least one run and one cohort")
    if healthy is not None and config.threshold_rule == NONE:
        raise ConfigError(
            f"protocol {config.protocol!r} fits no threshold on healthy volumes: choose a "
            f"--threshold-rule of {sorted(WITHOUT_LESIONS)}, or leave --healthy out"
        )
    if healthy is not None and config.threshold_rule not in WITHOUT_LESIONS:
        raise ConfigError(
            f"the threshold rule {config.threshold_rule!r} needs lesions, healthy volumes have "
            f"none: choose one of {sorted(WITHOUT_LESIONS)}, or leave --healthy out"
        )
    if controls is not None:
        _check_controls(controls)
    # One healthy cohort may have both parts.
    others = {one.url: one for one in (healthy, controls) if one is not None}
    names = [c.name for c in (*cohorts, *others.values())]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise EvaluationError(
            f"cohorts {twice} are named twice; their scores would lie in one folder: evaluate "
            "each once, and rename those that are not the same"
        )
    for cohort in cohorts:
        _check_cohort(cohort, config, needs_threshold=healthy is None)
    for cohort in (*cohorts, *others.values()):
        config.fixed.check_grid(cohort.shape, cohort.url)
        for run in runs:
            if run.shape != cohort.shape:
                raise EvaluationError(
                    f"{run.url} was fitted on volumes of {run.shape}, {cohort.url} holds "
                    f"{cohort.shape}: prepare the cohort with the same --size"
                )
    if healthy is not None:
        healthy.rows("validation")
        for run in runs:
            _check_held_back(run, healthy)


def _check_held_back(run: Run, healthy: Cohort) -> None:
    """Refuse thresholds on people that a fit on folds, or another member, has learned from."""
    experiment = run.experiment
    members = getattr(experiment.method, "members", ())
    folds = max([experiment.fit.folds, *(one.folds for one in members)])
    if folds and healthy.fingerprint == run.cohort_fingerprint:
        raise EvaluationError(
            f"{run.url} was fitted on {folds} folds of {healthy.url}, so that its validation part "
            "is learned from: give another healthy cohort with --healthy, or fit the threshold on "
            "the threshold part of the cohort with lesions"
        )


def _check_controls(controls: Cohort) -> None:
    if controls.has_lesion:
        raise EvaluationError(
            f"{controls.url} has lesions: controls are healthy people; name a healthy cohort"
        )
    if "test" not in set(controls.subjects["split"]):
        raise EvaluationError(
            f"{controls.url} has no test part, only people that are learned from: prepare it with "
            "--test-count N into another folder, and fit on that"
        )


def check_run(run: Run) -> None:
    """Refuse a run that cannot be evaluated.

    Raises:
        EvaluationError: It is not finished.
        RunError: It is damaged or cannot be read.
    """
    if (run.summary or {}).get("status") not in ("finished", "stopped"):
        raise EvaluationError(f"{run.url} is not finished: {run.how_to_resume}")


def compare(run: Run, cohort: Cohort, *, people: bool = True) -> Match:
    """Compare a run with a cohort that it is to be evaluated on.

    Args:
        run: The run.
        cohort: The cohort.
        people: Whether to compare people; on healthy volumes thresholds alone are fitted.

    Raises:
        RunError: What the run records of its people or its maps is damaged.
        EvaluationError: It holds maps of another cohort.
    """
    if has_maps(run):
        return match_maps(run, cohort)
    return compare_run(run.url, read_config(run.url), run.experiment, cohort, people=people)


def refuse(match: Match, fitted: str, tested: str, *, insist: bool) -> None:
    """Refuse what does not go together.

    Raises:
        EvaluationError: It says in what, and which flag insists.
    """
    if match.seen:
        raise EvaluationError(
            f"{tested} holds scans that {fitted} was learned from, in its training or validation "
            f"part: {_some(match.seen)}. Figures on them say nothing: prepare the test cohort from "
            "other people (--hold-out and --held-out set some aside)"
        )
    if insist or not (match.differences or match.likely):
        return
    what = list(match.differences)
    if match.likely:
        what.append(
            f"scans of people whom {fitted} was learned from, by their ids: {_some(match.likely)}"
        )
    raise EvaluationError(
        f"{tested} does not go with {fitted}: {'; '.join(what)}. Prepare both alike and from "
        "different people, or insist with --allow-mismatch (in a sweep: --sweep.allow-mismatch), "
        "which marks every figure"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def check_has_lesions(cohort: Cohort) -> None:
    """Refuse a cohort without lesion masks.

    Raises:
        EvaluationError: it has none.
    """
    if not cohort.has_lesion:
        raise EvaluationError(
            f"{cohort.url} has no lesion masks, so there is nothing to evaluate against: give a "
            "cohort prepared with lesions"
        )


def _check_cohort(cohort: Cohort, config: EvaluateConfig, *, needs_threshold: bool) -> None:
    check_has_lesions(cohort)
    if cohort.name.endswith(THRESHOLDS):
        raise EvaluationError(
            f"{cohort.url}: the name of a cohort must not end in {THRESHOLDS!r}, which names the "
            "files of frozen thresholds; rename its folder"
        )
    cohort.rows("test")
    table = cohort.subjects
    rule = config.threshold_rule
    if needs_threshold and rule != NONE and "threshold" not in set(table["split"]):
        raise EvaluationError(
            f"{cohort.url} has no threshold part, its subjects are all tested, and the rule {rule} "
            "needs one: fit the threshold on a healthy cohort (--healthy, with --threshold-rule "
            f"{' or '.join(sorted(WITHOUT_LESIONS))}), report no figure that needs one "
            "(--threshold-rule none), or prepare the cohort with a --threshold-share"
        )
    sides = table.groupby("subject")["split"].nunique()
    if both := sorted(sides.index[sides > 1]):
        raise EvaluationError(
            f"{cohort.url}: scans of {both[:5]} are in the threshold part and in the test part; "
            "prepare the cohort again, with all scans of a person on one side"
        )
    for same in repeated_images(table):
        if same["split"].nunique() > 1:
            raise EvaluationError(
                f"{cohort.url}: {' and '.join(same['id'][:3])} hold the same image, and one is in "
                "the threshold part, the other in the test part: leave all but one of them out, "
                "and prepare the others into another folder"
            )
