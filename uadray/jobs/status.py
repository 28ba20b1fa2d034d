"""How a run or a sweep stands: counts, losses, time left, what failed; read from its folder alone.

    uadray status runs/fits/3D-Cube-n              once
    uadray status runs/latent --follow             until it has ended
    uadray status s3://BUCKET/runs/latent --follow --every 30

On any machine that sees the folder; no Ray is needed, and nothing is written. With --follow it is
shown anew on a terminal, and a line is printed at each change in a log, until the run or the sweep
has ended; one that was killed goes on as soon as its command is given again.

Exit code 0: well, so far; 1: the run failed, or there is none; 3: the sweep ended with trials that
failed or were not finished.
"""

import sys
from dataclasses import dataclass

import tyro

from uadray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Status:
    """What to look at."""

    path: tyro.conf.Positional[str]
    """Folder of a run or of a sweep; a local path or an fsspec URL."""
    follow: bool = False
    """Look again until it has ended."""
    every: float = 5.0
    """Seconds between two looks."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.every <= 86_400:
            raise ConfigError(f"--every must be in [0.1, 86400] seconds, was {self.every}")


def main() -> int:
    """Read the arguments, show, and return the exit code."""
    job = tyro.cli(Status, description=__doc__)
    from rich.console import Console

    from uadray.status.follow import exit_code, follow
    from uadray.status.state import read_state
    from uadray.status.view import view

    console = Console(highlight=False)
    if job.follow:
        return follow(job.path, job.every, console=console)
    state = read_state(job.path)
    console.print(view(state), soft_wrap=not sys.stdout.isatty())
    return exit_code(state)
