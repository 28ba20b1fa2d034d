"""docs/results.md: the sweeps that were really run, from benchmarks/results/real-*.json."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import RESULTS
from uadray.tables import to_markdown

PAGE = RESULTS.parents[1] / "docs" / "results.md"

_HEAD = """# Sweeps that were run

Made from `benchmarks/results/real-*.json` by `python -m benchmarks.real_use --page`; edits here are
lost. What these figures support of the paper's claims, and what they do not, is said in the README.

Every figure is a mean over seeds; in brackets is its 95 % interval over the test subjects (paired
for differences), which covers the subjects and not the seeds; what each seed gives stands beside
it. p is of a Wilcoxon signed-rank test over subjects, corrected by Holm within its table.

![The top of the report of the sweep on phantoms](sweep-report.png)

*The top of the report of the sweep on phantoms: what it says in words, parallel coordinates, and
the effect of the latent size.*
"""

_FIGURES = {"dice_d": "Dice_D", "dice_s_mean": "Dice_S", "auprc": "AUPRC"}


def kept() -> list[dict[str, Any]]:
    """What is kept of each sweep."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("real-*.json"))]


def write_page() -> None:
    """Write it anew."""
    PAGE.write_text(page(kept()))
    print("docs/results.md")


def page(results: Sequence[dict[str, Any]]) -> str:
    """The page's text.

    Args:
        results: What `benchmarks.real_use` kept of each sweep.
    """
    parts = [_HEAD]
    for one in results:
        ended = ", ".join(f"{number} {status}" for status, number in one["ended"].items())
        fitted = one["fitted_on"]
        data, _, settings = one["told"].partition(":")
        parts.append(f"## {_opened(data)}\n")
        parts.append(
            f"{_opened(settings.strip())}. {one['runs']} runs ({ended}), "
            f"{one['fit_minutes']:.0f} minutes of fitting on {one['machine']['cpu']}, cohort "
            f"`{fitted['fingerprint']}`, commit {one['commit']}, {one['date']}.\n"
        )
        for cohort in one["cohorts"]:
            parts += _cohort(cohort)
    return "\n".join(parts).rstrip() + "\n"


def _cohort(found: dict[str, Any]) -> list[str]:
    parts = [
        f"### {found['cohort']}\n",
        f"{found['num_threshold']} subjects fit the thresholds, {found['num_test']} test.\n",
    ]
    rows = []
    for one in found["experiments"]:
        cells = [_figure(one["figures"][name]) for name in _FIGURES]
        dice = one["figures"]["dice_d"]
        each = (
            " ".join(f"{x:.3f}" for x in dice["each_seed"]) if dice and not one["is_plain"] else ""
        )
        share = one.get("data_share", 1.0)
        name = one["name"] if share == 1 else f"{one['name']}, {share:.0%} of the data"
        rows.append([name, str(one["latent_size"] or ""), *cells, each])
    head = ["experiment", "latent size", *_FIGURES.values(), "Dice_D of each seed"]
    parts.append(to_markdown(head, rows, align="l") + "\n")
    for head_line, differences in found["differences"].items():
        parts.append(f"**{_opened(head_line)}**\n")
        rows = [
            [
                one["of"],
                one["against"],
                _difference(one["differences"].get("dice_d")),
                _difference(one["differences"].get("auprc")),
                "" if one["holm_p"] is None else f"{one['holm_p']:.3f}",
                _span(one["over_seeds_dice_d"]),
                one["verdict"],
            ]
            for one in differences
        ]
        head = ["of", "against", "Dice_D", "AUPRC", "p (Holm)", "Dice_D over seeds", "Dice_D is"]
        parts.append(to_markdown(head, rows, align="l") + "\n")
    return parts


def _opened(text: str) -> str:
    """With a capital first letter, as a sentence begins."""
    return text[:1].upper() + text[1:]


def _figure(figure: dict[str, Any] | None) -> str:
    return _with_bounds(figure["mean"], figure["interval_over_subjects"], "") if figure else ""


def _difference(figure: dict[str, Any] | None) -> str:
    return _with_bounds(figure["value"], figure["interval"], "+") if figure else ""


def _with_bounds(value: float, bounds: Sequence[float] | None, sign: str) -> str:
    spread = f" [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]" if bounds else ""
    return f"{value:{sign}.3f}{spread}"


def _span(bounds: Sequence[float] | None) -> str:
    return f"{bounds[0]:+.3f} to {bounds[1]:+.3f}" if bounds else ""
