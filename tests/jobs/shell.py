"""Jobs in processes of their own, started in another folder."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def next(self) -> str:
        """What follows the last `next:` that it printed."""
        return self.out.rsplit("next: ", 1)[1].strip()

    def must(self) -> "Done":
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A folder to run jobs in."""

    folder: Path

    def run(self, job: str, *args: object) -> Done:
        """Run `python jobs/JOB.py ARGS`."""
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        command = [sys.executable, str(JOBS / f"{job}.py"), *map(str, args)]
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        return Done(code=done.returncode, out=done.stdout, err=done.stderr, seconds=seconds)

    def run_printed(self, line: str, words: Mapping[str, object] | None = None) -> Done:
        """Run a printed `python jobs/JOB.py ...`; `words` stand for those in capitals."""
        python, script, *args = shlex.split(line)
        assert python == "python"
        assert script in {f"jobs/{path.name}" for path in JOBS.glob("*.py")}
        return self.run(Path(script).stem, *((words or {}).get(arg, arg) for arg in args))

    def run_all(self, commands: Mapping[str, Sequence[object]]) -> dict[str, Done]:
        """Run commands that start no Ray, a few at a time: most of their time is imports."""
        with ThreadPoolExecutor(3) as pool:
            running = {
                name: pool.submit(self.run, str(job), *args)
                for name, (job, *args) in commands.items()
            }
        return {name: future.result() for name, future in running.items()}


DEMO = ("--out demo --size 32 --healthy 12 --lesioned 6", "--epochs 2 --names 3D-None HistEq")


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Every job once, each started as the one before it said."""

    shell: Shell
    demo: Done
    healthy: Done
    stroke: Done
    train: Done
    baseline: Done
    evaluate: Done
    report: Done

    def demo_again(self) -> Done:
        """Run the demo with the same arguments."""
        return run_demo(self.shell)


def run_demo(shell: Shell) -> Done:
    return shell.run("demo", *" ".join(DEMO).split()).must()


def run_steps(shell: Shell) -> dict[str, Done]:
    size = ("--size", 32)
    healthy = shell.run("prepare", "phantom", "healthy", "--out", "h.zarr", "--count", 8, *size)
    stroke = shell.run("prepare", "phantom", "stroke", "--out", "s.zarr", "--count", 5, *size)
    train = shell.run_printed(f"{healthy.must().next} --fit.epochs 2 --fit.batch-size 4").must()
    baseline = shell.run("train", "PCA-4", "--cohort", "h.zarr", "--out", "runs/PCA-4").must()
    evaluate = shell.run_printed(f"{stroke.must().next} --num-resamples 20", {"RUN": "runs"})
    report = shell.run_printed(evaluate.must().next).must()
    return {
        "healthy": healthy,
        "stroke": stroke,
        "train": train,
        "baseline": baseline,
        "evaluate": evaluate,
        "report": report,
    }
