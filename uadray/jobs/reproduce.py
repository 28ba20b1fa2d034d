r"""Make tables and figures of the papers again, and set ours beside theirs.

    python jobs/reproduce.py bengs2021 --table 1 --scale smoke --out runs/bengs --dry-run
    python jobs/reproduce.py bengs2021 --table 1 --scale smoke --out runs/bengs
    python jobs/reproduce.py bengs2021 --table 1 2 --figure 4 5 6 7 --out runs/bengs \
        --healthy runs/healthy.zarr --cohorts tumour=runs/brats.zarr stroke=runs/atlas.zarr
    python jobs/reproduce.py meissen2021 --table 4-I --out runs/meissen \
        --cohorts mslub=runs/mslub.zarr wmh=runs/wmh.zarr

Papers: {known}.

It says first what is there and what is missing: cohorts, methods, runs; --dry-run stops there.
What is missing is run as one sweep and evaluated under the paper's protocol; the same command again
goes on where it was cut short. Each row of ours is printed with its differences from the paper's.
Without cohorts, the scales smoke and phantom make phantoms. Exit code 3: some of it could not be
made; it is listed.
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tyro

from uadray import cli, files
from uadray.errors import ConfigError
from uadray.papers import PAPERS
from uadray.papers.scales import SCALES, ScaleName
from uadray.tune.settings import SweepConfig

if TYPE_CHECKING:
    from rich.console import Console

    from uadray.papers.reproduce import Reproduction


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """What to make again, from what, and where to."""

    out: str
    """Folder of the runs, the tables and the reports."""
    table: tuple[str, ...] = ()
    """Numbers of tables, such as 1 or 4-I; neither tables nor figures named: all of the paper."""
    figure: tuple[str, ...] = ()
    """Numbers of figures."""
    cohorts: tuple[str, ...] = ()
    """Lesioned cohorts by role, such as tumour=runs/brats.zarr."""
    healthy: str = ""
    """The healthy cohort that methods are fitted on."""
    scale: ScaleName = "full"
    """smoke: minutes on a laptop, on phantoms; phantom: the papers' sizes, on phantoms, for a GPU;
    full: the papers' settings on the cohorts that are given."""
    seeds: tuple[int, ...] = (0,)
    """Of the fits; the papers have one."""
    baselines: bool = True
    """Also fit the plain baselines, which the papers lack, where a study trains methods."""
    dry_run: bool = False
    """Say what is there and what is missing, and stop."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """What each fit takes of the cluster."""


def main() -> int:
    args = sys.argv[1:]
    description = (__doc__ or "").replace("{known}", ", ".join(PAPERS))
    if not args or args[0].startswith("-"):
        print(description)
        return 0 if args and args[0] in ("-h", "--help") else 2
    if args[0] not in PAPERS:
        raise ConfigError(f"no paper is named {args[0]!r}; known are {', '.join(PAPERS)}")
    job = tyro.cli(Reproduce, args=args[1:], prog=cli.program(args[0]), description=description)
    planned = plans(args[0], job)
    from rich.console import Console

    from uadray.papers.tables import caveats_text, state_table

    console = Console()
    for one in planned:
        console.print(state_table(one))
        console.print(caveats_text(one))
    if job.dry_run:
        return cli.OK
    whole = True
    for one in planned:
        outcomes = one.run(job.sweep)
        whole = show(one, [o.url for o in outcomes if o.status == "finished"], console) and whole
        whole = whole and all(o.status == "finished" for o in outcomes)
    return cli.OK if whole else cli.INCOMPLETE


def plans(paper: str, job: Reproduce) -> "list[Reproduction]":
    """The tables and figures that were asked for, with the cohorts that there are."""
    studies = PAPERS[paper].select(job.table, job.figure)
    urls: dict[str, str] = {}
    roles = {need.role for study in studies for need in study.cohorts}
    for pair in job.cohorts:
        role, _, url = pair.partition("=")
        if role not in roles or not url:
            raise ConfigError(f"--cohorts takes ROLE=STORE, ROLE of {sorted(roles)}; was {pair!r}")
        urls[role] = url
    from uadray.papers.phantoms import make_phantoms
    from uadray.papers.reproduce import Reproduction
    from uadray.store import open_cohort

    given = {role: open_cohort(url) for role, url in urls.items()}
    healthy = open_cohort(job.healthy) if job.healthy else None
    scale, to_make = SCALES[job.scale], frozenset[str]()
    if scale.size and not given and healthy is None:
        out = files.join(job.out, "phantoms", scale.name)
        given, to_make = make_phantoms(scale, sorted(roles), out, dry_run=job.dry_run)
        healthy = given.pop("healthy", None)
    return [
        Reproduction(
            paper=PAPERS[paper],
            study=study,
            scale=scale,
            out=job.out,
            healthy=healthy,
            cohorts=given,
            seeds=job.seeds,
            baselines=job.baselines,
            to_make=to_make,
        )
        for study in studies
    ]


def show(one: "Reproduction", runs: list[str], console: "Console") -> bool:
    """Print ours beside theirs and leave the report; whether nothing of the study is missing."""
    from uadray.papers.figures import draw
    from uadray.papers.tables import (
        claims_table,
        figures_table,
        statistics_table,
        title,
        to_markdown,
    )
    from uadray.report import write_report

    stem = files.join(one.out, f"{one.paper.key}-{one.study.key}")
    if one.study.statistics:
        console.print(statistics_table(one))
    if one.study.entries:
        console.print(figures_table(one))
    files.write_json(f"{stem}.json", one.record())
    files.write_bytes(f"{stem}-beside.md", to_markdown(one).encode())
    print(f"ours beside theirs: {stem}-beside.md and {stem}.json")
    if (drawn := draw(one)) is not None:
        files.write_bytes(f"{stem}.svg", drawn)
        print(f"figure: {stem}.svg")
    if runs:
        if (claims := claims_table(one, runs)) is not None:
            console.print(claims)
        page = write_report(
            runs,
            f"{stem}.html",
            title=title(one),
            published=one.published(),
            caveats=one.rows_with(),
        )
        print(f"report: {page}")
    return not one.missing()
