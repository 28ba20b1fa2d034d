"""What all benchmarks share: the command line, rows, a table, a JSON file, turns, memory.

What a bare GPU machine may lack is imported where it is used.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

if TYPE_CHECKING:
    from uadray.preparation.layouts import Scan

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def render(page: str, **values: Any) -> str:
    """The text of `templates/PAGE.j2`; `table` in it makes a Markdown table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from uadray.tables import to_markdown

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template(f"{page}.j2")
    return template.render(values | {"table": to_markdown, "opened": opened})


def opened(text: str) -> str:
    """With a capital first letter, as a sentence begins."""
    return text[:1].upper() + text[1:]


def write_page(page: str, text: str) -> None:
    """Write a page of the documentation."""
    (DOCS / page).write_text(text)
    print(f"docs/{page}")


def read_between(path: Path, name: str) -> str:
    """The text between the two comments of a page that name it.

    Raises:
        SystemExit: the comments are not there.
    """
    return _around(path, name)[1].strip()


def write_between(path: Path, name: str, text: str) -> None:
    """Put a text between the two comments of a page that name it.

    Raises:
        SystemExit: the comments are not there.
    """
    before, _, after = _around(path, name)
    path.write_text(f"{before}\n\n{text}\n\n{after}")
    print(path.name)


def _around(path: Path, name: str) -> tuple[str, str, str]:
    """The page up to and with the first comment, between the two, and from the second on."""
    begin = f"<!-- {name}: made by python -m benchmarks.{name}; edits here are lost -->"
    end = f"<!-- end of {name} -->"
    before, marker, rest = path.read_text().partition(begin)
    between, ends, after = rest.partition(end)
    if not marker or not ends:
        raise SystemExit(f"{path.name} lacks the lines {begin} and {end}")
    return before + marker, between, ends + after


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    measure: str
    """What was measured."""
    value: float | None
    """The figure; None where it could not be measured, which the detail explains."""
    unit: str
    """Its unit; `ratio` for one side over another."""
    _: KW_ONLY
    against: str = ""
    """The other side of a ratio."""
    goal: str = ""
    """What was aimed at, such as `<= 480`; empty where there is no goal."""
    detail: str = ""
    """How, in a few words."""

    @property
    def holds(self) -> bool | None:
        """Whether the goal is met; None where there is none, or no figure."""
        if not self.goal or self.value is None:
            return None
        sign, bound = self.goal.split()
        return bool(self.value <= float(bound) if sign == "<=" else self.value >= float(bound))


def arguments() -> argparse.ArgumentParser:
    """The command line of the benchmark that runs: its docstring, and `--quick`."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    return parser


def main(name: str, rows: Callable[[bool, Path], list[Row]]) -> None:
    """A benchmark whose only option is `--quick`; see `measure`."""
    measure(name, rows, arguments().parse_args().quick)


def measure(name: str, rows: Callable[[bool, Path], list[Row]], quick: bool) -> None:
    """Measure rows with a temporary folder, print them and, unless `quick`, keep them."""
    with tempfile.TemporaryDirectory() as folder:
        measured = rows(quick, Path(folder))
    publish(name, measured, keep=not quick)


def print_table(
    title: str,
    heads: Sequence[str],
    lines: Iterable[Sequence[str]],
    *,
    right: Sequence[str] | None = None,
    width: int = 160,
) -> None:
    """Print a table; columns of figures are aligned to the right, all but the first by default."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in heads:
        is_right = name in (heads[1:] if right is None else right)
        table.add_column(name, justify="right" if is_right else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=width).print(table)


def publish(name: str, rows: list[Row], *, keep: bool = True) -> None:
    """Print the table and, if `keep`, write `results/NAME.json`."""
    lines = []
    for row in rows:
        holds = {True: "yes", False: "NO", None: ""}[row.holds]
        value = "not measured"
        if row.value is not None:
            value = f"{row.value:.3g}" if row.value < 100 else f"{row.value:.0f}"
        lines.append([row.measure, value, row.unit, row.against, row.goal, holds, row.detail])
    heads = ("measure", "value", "unit", "against", "goal", "holds", "detail")
    print_table(name, heads, lines, right=("value",))
    if keep:
        write(name, rows)


def write(name: str, rows: list[Row]) -> None:
    """Write `results/NAME.json`."""
    content = circumstances(name) | {"rows": as_json(rows)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"benchmarks/results/{name}.json")


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as they are kept."""
    return [asdict(row) | {"holds": row.holds} for row in rows]


def circumstances(name: str) -> dict[str, Any]:
    """When, where and by which command something is measured."""
    module = getattr(sys.modules["__main__"].__spec__, "name", "")
    if not module.startswith("benchmarks."):
        module = f"benchmarks.{name}"
    return {
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}".strip(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _changes() else ""),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "memory_gib": round(_memory() / 2**30),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            "torch": torch.__version__,
        },
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def in_turns(
    sides: dict[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of each side in each round: one call of each in turn, after a warm-up round.

    Args:
        sides: What to time, by name.
        rounds: Timed rounds.
        device: Waited for after each call where it is a GPU.
    """
    on_none = {name: lambda _, side=side: side() for name, side in sides.items()}
    return on_each_in_turns(on_none, range(rounds + 1), device=device)


def on_each_in_turns(
    sides: Mapping[str, Callable[[Any], object]],
    items: Iterable[Any],
    *,
    warm_up: int = 1,
    device: torch.device | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side on each item: one call of each in turn; the first items warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, item in enumerate(items):
        for name, side in sides.items():
            start = now(device)
            side(item)
            if number >= warm_up:
                seconds[name].append(now(device) - start)
    return seconds


def medians(
    sides: dict[str, Callable[[], object]], rounds: int, device: torch.device | None = None
) -> dict[str, float]:
    """The median seconds of each side, `in_turns`."""
    return {name: median(values) for name, values in in_turns(sides, rounds, device).items()}


def find_scans() -> "list[Scan]":
    """All T1 scans of ds002748."""
    from uadray.preparation.layouts import LAYOUTS

    root = Path(os.environ.get("UADRAY_REAL_DATA", DOCS.parents[1] / "shared" / "data"))
    return LAYOUTS["bids"](str(root / "ds002748"), "T1w")


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns, in a fresh process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


@dataclass(frozen=True)
class Measured:
    """What a side took in a process of its own."""

    seconds: float
    mib: float
    """Highest memory above that before the work."""
    before_mib: float
    """Memory before the work: imports and inputs."""
    value: Any


def alone(side: Callable[..., tuple[Callable[[], Any], ...]], *args: Any) -> Measured:
    """Measure in a fresh process.

    Args:
        side: Loads its inputs and returns the work to do, after what warms up if it gives two.
        args: Its arguments.
    """
    measured: Measured = apart(_measure, side, args)
    return measured


def _measure(side: Callable[..., tuple[Callable[[], Any], ...]], args: tuple[Any, ...]) -> Measured:
    import psutil

    *warm, work = side(*args)
    for first in warm:
        first()
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory from here on
    before = psutil.Process().memory_info().rss / 2**20
    value, seconds = timed(work)
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    # Where the highest lies below what was there before, nothing was taken: 0, and no ratio.
    return Measured(seconds, max(0.0, int(status.split()[0]) / 1024 - before), before, value)


def now(device: torch.device | None = None) -> float:
    """Seconds on a clock, once the device has done all that it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _changes() -> str:
    """What is not committed; results do not decide what is measured."""
    return _git(
        "status", "-s", "--", ":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs"
    )


def _memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _git(*args: str) -> str:
    """What git says; nothing where it or the repository is absent."""
    try:
        done = subprocess.run(
            ["git", *args], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


class PeakMemory:
    """Highest memory of this process and all below it while the context lasts.

    Shared pages are counted once, in proportion (PSS): workers map one object store.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.gib = 0.0
        self._every, self._stop = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.gib = max(self.gib, total / 2**30)
            if self._stop.wait(self._every):
                return
