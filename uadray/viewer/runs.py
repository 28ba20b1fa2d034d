"""Viewer pages for the examples of a report: evaluated cases on their cohort's grid."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from uadray import files, html
from uadray.errors import RunError, UadrayError
from uadray.metrics.counts import NUM_LEVELS
from uadray.naming import distinct_names
from uadray.report.rows import group_by_cohort
from uadray.runs.evaluations import Evaluation
from uadray.runs.records import Broken, RunRecord, load_runs
from uadray.viewer.page import CasePage, write_case, write_index


def write_viewers(
    urls: Iterable[str], report: str, *, num_runs: int, left_out: list[Broken] | None = None
) -> dict[tuple[str, str, str], str]:
    """Write pages for the cases that a report shows, of the runs with the highest Dice_D.

    Args:
        urls: As for `write_report`.
        report: The report's place, ending in `.html`; the pages go into a folder beside it, called
            like it with `-cases` for the ending.
        num_runs: How many runs of each cohort.
        left_out: Takes runs that cannot be read; where it is None, the first such error is raised.

    Returns:
        Addresses relative to the report, by cohort (its fingerprint where several have its name),
        subject and URL of the run, as `write_report` takes them.

    Raises:
        ConfigError: `report` does not end in `.html`.
        RunError: a run's scores or cohort are not where the evaluation left them.
        UadrayError: they are damaged.
    """
    report = html.page_url(report)
    folder = report.removesuffix(".html") + "-cases"
    index = files.join(folder, "index.html")
    pages: list[CasePage] = []
    addresses: dict[tuple[str, str, str], str] = {}
    groups = group_by_cohort(load_runs(urls, left_out), None)
    alike = Counter(group.name for group in groups)
    # Of two cohorts of one name each has its own pages.
    cohorts = [g.name if alike[g.name] == 1 else g.fingerprint for g in groups]
    places = distinct_names(cohorts)
    for cohort, group in zip(cohorts, groups, strict=True):
        rows = [row for row in group.rows if row.evaluation.cases is not None][:num_runs]
        labels = distinct_names(list(dict.fromkeys(row.run.label for row in rows)))
        for row in rows:
            where = files.join(folder, places[cohort], labels[row.run.label])
            try:
                made = list(_run_pages(row.run, row.evaluation, where, index))
            except UadrayError as error:
                if left_out is None:
                    raise
                left_out.append(Broken(url=row.run.url, error=str(error)))
                continue
            for page, subject in made:
                pages.append(page)
                address = page.url.removeprefix(report.rsplit("/", 1)[0] + "/")
                addresses[cohort, subject, row.run.url] = address
    if pages:
        write_index(index, pages, title="Cases of the report, the highest score first")
    return addresses


def _run_pages(
    run: RunRecord, evaluation: Evaluation, folder: str, index: str
) -> Iterable[tuple[CasePage, str]]:
    # They bring torch, which no other part of a report needs.
    from uadray.metrics.components import open_components
    from uadray.metrics.postprocess import dequantise
    from uadray.runs.detector import load_detector
    from uadray.runs.folder import Run
    from uadray.runs.scores import ScoreStore
    from uadray.store import open_cohort

    values, cases = evaluation.values, evaluation.cases
    assert cases is not None
    cohort = open_cohort(str(values["cohort"]["url"]))
    if cohort.fingerprint != evaluation.cohort_fingerprint:
        raise RunError(
            f"{cohort.url} is not the cohort that {run.url} was evaluated on "
            f"({cohort.fingerprint}, not {evaluation.cohort_fingerprint}): evaluate the run again"
        )
    low, high = (float(end) for end in values["score_range"])
    store = ScoreStore.of(run.url, evaluation.cohort, (low, high))
    table = cohort.subjects.set_index("id")
    start, stop = values.get("slices") or (0, cohort.shape[0])
    components = values.get("components") or {}
    frozen = values["threshold"]["level"]
    level = NUM_LEVELS if frozen is None else int(frozen)
    detector = load_detector(Run.open(run.url))
    names = distinct_names(list(dict.fromkeys(cases.ids)))
    for subject, name in names.items():
        row = int(table.loc[subject, "row"])
        affine = np.asarray(table.loc[subject, "affine"], np.float64)
        image, brain, lesion = (
            cohort.read(name, row, row + 1)[0] for name in ("image", "brain", "lesion")
        )
        levels = store.checked_levels(row, subject)
        opened = open_components(
            levels, int(components.get("max_size") or 0), components.get("connectivity") or 26
        )
        scores, proposal = np.zeros(cohort.shape), np.zeros(cohort.shape, bool)
        scores[start:stop] = dequantise(levels, store.score_range)
        proposal[start:stop] = opened >= level
        page = write_case(
            files.join(folder, f"{name}.html"),
            scan=_image(image, affine),
            anomaly=_image(scores * brain, affine),
            proposal=_image(proposal, affine),
            truth=_image(lesion, affine),
            brain=_image(brain, affine),
            reconstruction=_reconstruction(detector, image, brain, affine),
            spread=_spread(detector, subject, image, brain, values, affine),
            name=f"{subject}: {run.label} on {evaluation.cohort}",
            summary={
                "threshold": values["threshold"]["value"],
                "threshold_fitted_on": str(values["threshold"]["fitted_on"]),
                "method": run.label,
                "fingerprint": str(run.config["fingerprint"]),
                "warnings": list(evaluation.notes),
            },
            index=index,
        )
        yield page, subject


def _reconstruction(
    detector: Any, image: NDArray[Any], brain: NDArray[np.bool_], affine: NDArray[np.float64]
) -> Any:
    import torch

    if not detector.has_reconstruction:
        return None
    with torch.inference_mode():
        output = detector.reconstruct_within(
            torch.from_numpy(image.astype(np.float32))[None, None],
            torch.from_numpy(brain.astype(bool))[None],
        )
    return _image(output[0, 0].float().numpy().clip(0, 1) * brain, affine)


def _spread(
    detector: Any,
    subject: str,
    image: NDArray[Any],
    brain: NDArray[np.bool_],
    values: Mapping[str, Any],
    affine: NDArray[np.float64],
) -> Any:
    """How far the members of an ensemble are apart, as evaluated; None for a single fit."""
    import torch

    from uadray.evaluation.protocols import EvaluateConfig
    from uadray.evaluation.scoring import Example, member_levels
    from uadray.methods.ensemble import members_of
    from uadray.metrics.members import spread_over_members

    if len(members_of(detector)) == 1:
        return None
    inside = brain.astype(bool)
    example = Example(id=subject, image=image, brain=inside, lesion=np.zeros_like(inside))
    config = EvaluateConfig.from_record(values["settings"])
    (levels,) = member_levels(detector, {0: example}, config, torch.device("cpu"))
    spread = np.zeros(inside.shape, np.float32)
    spread[config.cut] = spread_over_members(levels, detector.score_range)
    return _image(spread * inside, affine)


def _image(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """(Z, Y, X) of a cohort as an image."""
    kept = array.astype(np.uint8 if array.dtype == bool else np.float32)
    return nib.Nifti1Image(np.ascontiguousarray(kept.T), affine)
