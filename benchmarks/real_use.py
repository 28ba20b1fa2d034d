"""What a sweep that was really run supports of the claims of Bengs 2021.

    python -m benchmarks.real_use runs/erasing --name erasing-phantom --about "phantoms at 32^3 ..."

    python -m benchmarks.real_use --page     only the pages again, from what is kept

Reads the run folders of an evaluated sweep and writes `results/real-NAME.json`, docs/results.md and
the table of claims in README.md: every experiment with its seeds and intervals, paired differences,
and what they say of the papers' claims. Nothing is fitted here.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tyro

from benchmarks.claims import cohort_table, measured, results_table, write_readme
from benchmarks.harness import RESULTS, circumstances, print_table, render, write_page
from uadray.config import BENGS_TABLE_1, experiment
from uadray.metrics.inference import LEVEL, can_reject
from uadray.papers.verdicts import UNTESTED
from uadray.report.compare import (
    SAME,
    TOO_FEW,
    Comparison,
    Series,
    compare,
    correct,
    series_of,
)
from uadray.report.rows import CohortRows, group_by_cohort
from uadray.runs.records import RunRecord, load_runs
from uadray.runs.settings import settings_of

PAGE = "results.md"

FIGURES = ("dice_d", "dice_s_mean", "auprc")
"""Figures that are kept of each experiment."""


@dataclass(frozen=True, kw_only=True)
class RealUse:
    """Which sweep, and under which name it is kept."""

    sweep: tyro.conf.Positional[str] = ""
    """Folder of the sweep."""
    name: str = ""
    """Of the result."""
    about: str = ""
    """What it was run on, a colon, and sizes and settings in words."""
    page: bool = False
    """Only write the page from what is kept."""
    keep: bool = True
    """Write the result; otherwise it is only printed."""


def main() -> None:
    job = tyro.cli(RealUse, description=__doc__)
    if job.page:
        write_pages()
        return
    if not (job.sweep and job.name and job.about):
        raise SystemExit("give the sweep's folder, --name and --about, or --page")
    measure_sweep(job)


def measure_sweep(job: RealUse) -> None:
    """Measure a sweep, print it and, where that is asked for, keep it and write the pages."""
    runs = load_runs([f"{job.sweep.rstrip('/')}/runs"])
    groups = group_by_cohort(runs)
    results = [cohort_result(group) for group in groups]
    for one in results:
        show(one)
    if job.keep:
        content = circumstances("real_use") | provenance(runs)
        path = RESULTS / f"real-{job.name}.json"
        path.write_text(
            json.dumps(content | {"about": job.about, "cohorts": results}, indent=1) + "\n"
        )
        print(f"benchmarks/results/{path.name}")
        write_pages()


def write_pages() -> None:
    """Write docs/results.md and the table of claims in README.md, from what is kept."""
    sweeps = kept()
    write_page(PAGE, page(sweeps))
    write_readme(sweeps)


def cohort_result(group: CohortRows) -> dict[str, Any]:
    """Every experiment on one cohort, and the paired differences of the claims."""
    series = series_of(group)
    learned = [one for one in series if not one.is_plain]
    plain = [one for one in series if one.is_plain]
    first = group.rows[0].evaluation.values
    pairs = {
        "erasing against none, same dimension": _pairs(learned, _without_erasing),
        "3D against 2D, same erasing": _pairs(learned, _in_2d),
        f"each against the best plain baseline, {plain[0].label}" if plain else "": [
            comparison
            for one in _on_all(learned)
            if plain and (comparison := compare(one, plain[0])) is not None
        ],
        "latent size against the largest": _spans(_on_all(learned), "method.latent_size"),
        "erasing on a part of the data against none on all of it": _pairs(
            learned, _without_erasing, of_less=True
        ),
        "a part of the data against all of it": _pairs(learned, lambda name: name, of_less=True),
    }
    return {
        "cohort": group.name,
        "fingerprint": group.fingerprint,
        "notes": list(group.notes),
        "num_threshold": first["num_threshold"],
        "num_test": first["num_test"],
        "experiments": [_described(one) for one in series],
        "differences": {
            head: _differences(comparison) for head, comparison in pairs.items() if comparison
        },
        "claims": measured(series),
    }


def _described(one: Series) -> dict[str, Any]:
    config = one.rows[0].run.config
    figures = {name: one.figure(name) for name in FIGURES}
    seconds = [row.run.summary.get("fit_seconds") for row in one.rows]
    return {
        "name": one.name,
        "is_plain": one.is_plain,
        "latent_size": settings_of(config).get("method.latent_size"),
        "data_share": _share(one),
        "epochs": settings_of(config)["fit.epochs"] if not one.is_plain else None,
        "seeds": [row.run.seed for row in one.rows],
        "figures": {
            name: None
            if figure is None
            else {
                "mean": figure.value,
                "interval_over_subjects": None if figure.bounds is None else list(figure.bounds),
                "each_seed": one.each(name),
            }
            for name, figure in figures.items()
        },
        "healthy_l1_each_seed": [
            row.run.summary.get("validation/reconstruction") for row in one.rows
        ],
        "best_epochs": [row.run.summary.get("best_epoch") for row in one.rows],
        "fit_seconds": seconds,
    }


def _differences(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "of": _label(one.series),
            "against": _label(one.reference),
            "num_people": one.num_people,
            "differences": {
                name: {
                    "value": figure.value,
                    "interval": None if figure.bounds is None else list(figure.bounds),
                }
                for name, figure in one.differences.items()
            },
            "p": _number(one.p),
            "holm_p": _number(one.p_holm),
            "over_seeds_dice_d": None if one.over_seeds is None else list(one.over_seeds),
            "verdict": one.verdict,
        }
        for one in correct(comparisons)
    ]


def _pairs(
    learned: Sequence[Series], other: Callable[[str], str | None], *, of_less: bool = False
) -> list[Comparison]:
    """Each against its other: both on as much data, or one on a part and its other on all."""
    pairs = []
    for one in learned:
        for reference in learned:
            fits = reference.name == other(one.name) and _latent(one, reference)
            share, whole = _share(one), _share(reference)
            fits = fits and (share < whole == 1 if of_less else share == whole)
            if fits and (made := compare(one, reference)) is not None:
                pairs.append(made)
    return pairs


def _on_all(learned: Sequence[Series]) -> list[Series]:
    return [one for one in learned if _share(one) == 1]


def _share(series: Series) -> float:
    """Of the training data."""
    return float(settings_of(series.rows[0].run.config).get("fit.data_share", 1.0))


def _latent(one: Series, other: Series) -> bool:
    """Whether both have the same latent size, or that of the paper: 512 in 3D and 128 in 2D."""
    sizes = [
        settings_of(series.rows[0].run.config).get("method.latent_size") for series in (one, other)
    ]
    of_the_paper = [{"2": 128, "3": 512}[series.name[0]] for series in (one, other)]
    return sizes[0] == sizes[1] or sizes == of_the_paper


def _spans(learned: Sequence[Series], path: str) -> list[Comparison]:
    by_name: dict[str, dict[Any, Series]] = {}
    for one in learned:
        value = settings_of(one.rows[0].run.config).get(path)
        if value is not None:
            by_name.setdefault(one.name, {})[value] = one
    spans = []
    for values in by_name.values():
        largest = max(values)
        for value in sorted(values):
            if value != largest and (made := compare(values[value], values[largest])) is not None:
                spans.append(made)
    return spans


def _without_erasing(name: str) -> str | None:
    if name not in BENGS_TABLE_1 or name.endswith("None"):
        return None
    return f"{name[:2]}-None"


def _in_2d(name: str) -> str | None:
    if name not in BENGS_TABLE_1 or not name.startswith("3D"):
        return None
    one = experiment(name)
    return replace(one, method=experiment("2D-None").method).name


def _label(series: Series) -> str:
    latent, share = settings_of(series.rows[0].run.config).get("method.latent_size"), _share(series)
    name = series.name if latent is None else f"{series.name}, z {latent}"
    return name if share == 1 else f"{name}, {share:.0%} of the data"


def _number(p: float) -> float | None:
    return None if p != p else p


def provenance(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the figures were made from."""
    config = runs[0].config
    learned = [run for run in runs if not run.is_plain]
    fit = dict(learned[0].config["experiment"]["fit"]) if learned else {}
    return {
        "fitted_on": {key: config["cohort"][key] for key in ("name", "fingerprint", "shape")},
        "fit": {key: value for key, value in fit.items() if key != "seed"},
        "runs": len(runs),
        "ended": {
            status: sum(run.summary["status"] == status for run in runs)
            for status in sorted({str(run.summary["status"]) for run in runs})
        },
        "fit_minutes": sum(run.summary.get("fit_seconds") or 0 for run in runs) / 60,
        "versions": config["versions"],
        "hardware": config["hardware"],
    }


def show(result: dict[str, Any]) -> None:
    """Print one cohort's differences."""
    lines = []
    for one in result["experiments"]:
        cells = [_interval(one["figures"][name], "mean", "") for name in FIGURES]
        lines.append([one["name"], str(one["latent_size"] or ""), str(len(one["seeds"])), *cells])
    head = ["experiment", "latent", "seeds", *FIGURES]
    print_table(f"{result['cohort']}: {result['num_test']} test subjects", head, lines)
    for title, differences in result["differences"].items():
        lines = []
        for one in differences:
            p = f"{one['p'] or float('nan'):.3f} ({one['holm_p'] or float('nan'):.3f})"
            figure = _interval(one["differences"]["dice_d"], "value", "+")
            seeds = _span(one["over_seeds_dice_d"])
            lines.append([one["of"], one["against"], figure, p, seeds, one["verdict"]])
        head = ["of", "against", "Dice_D difference", "p (Holm)", "seeds", "Dice_D is"]
        print_table(title, head, lines)


def kept() -> list[dict[str, Any]]:
    """What is kept of each sweep."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("real-*.json"))]


def page(results: Sequence[dict[str, Any]]) -> str:
    """The text of docs/results.md, from what is kept of each sweep."""
    sweeps = []
    for one in results:
        data, _, settings = one["about"].partition(":")
        sweeps.append(
            one
            | {
                "data": data,
                "is_old": any("claims" not in cohort for cohort in one["cohorts"]),
                "settings": settings.strip(),
                "endings": ", ".join(f"{number} {how}" for how, number in one["ended"].items()),
                "cohorts": [_with_cells(cohort) for cohort in one["cohorts"]],
            }
        )
    return render(PAGE, sweeps=sweeps, claims=results_table(results))


def _with_cells(cohort: dict[str, Any]) -> dict[str, Any]:
    """A cohort with the cells of its tables."""
    rows = []
    for one in cohort["experiments"]:
        share, dice = one.get("data_share", 1.0), one["figures"]["dice_d"]
        each = dice["each_seed"] if dice and not one["is_plain"] else ()
        cells = [_interval(one["figures"][name], "mean", "") for name in FIGURES]
        name = one["name"] if share == 1 else f"{one['name']}, {share:.0%} of the data"
        latent = str(one["latent_size"] or "")
        rows.append([name, latent, *cells, " ".join(f"{x:.3f}" for x in each)])
    pairs = [
        (
            what,
            [
                [
                    one["of"],
                    one["against"],
                    *(
                        _interval(one["differences"].get(name), "value", "+")
                        for name in ("dice_d", "auprc")
                    ),
                    "" if one["holm_p"] is None else f"{one['holm_p']:.3f}",
                    _span(one["over_seeds_dice_d"]),
                    _kept_verdict(one, len(differences)),
                ]
                for one in differences
            ],
        )
        for what, differences in cohort["differences"].items()
    ]
    return cohort | {"rows": rows, "pairs": pairs, "claims": cohort_table(cohort)}


def _kept_verdict(one: dict[str, Any], num: int) -> str:
    """What may be said of a kept difference.

    Earlier versions kept a p of Dice_S over subjects (Wilcoxon), which knows nothing of seeds: it
    can leave a difference open, and cannot show one.
    """
    if "wilcoxon_p" not in one:
        return str(one["verdict"])
    if not can_reject(one["num_subjects"], num):
        return TOO_FEW
    p = one["holm_p"]
    return SAME if p is not None and p >= LEVEL else UNTESTED


def _interval(figure: dict[str, Any] | None, value: str, sign: str) -> str:
    """A figure and its interval, in brackets."""
    if not figure:
        return ""
    bounds = figure.get("interval", figure.get("interval_over_subjects"))
    spread = f" [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]" if bounds else ""
    return f"{figure[value]:{sign}.3f}{spread}"


def _span(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:+.3f} to {bounds[1]:+.3f}" if bounds else ""


if __name__ == "__main__":
    main()
