"""Looking at a run or a sweep again and again until it has ended."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from uadray import cli, files
from uadray.errors import RunError
from uadray.status.state import Known, RunState, State, read_state
from uadray.status.view import change_of, line, view


def exit_code(state: State) -> int:
    """What a script is to know of a run or a sweep that stands so."""
    if isinstance(state, RunState):
        return cli.FAILED if state.status == "failed" else cli.OK
    whole = len(state.having("finished", "stopped")) == len(state.trials) and not state.waiting
    return cli.OK if whole or not state.has_ended else cli.INCOMPLETE


def follow(
    url: str,
    every: float,
    *,
    console: Console,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show how it stands until it has ended.

    Args:
        url: Folder of a run or a sweep.
        every: Seconds between two looks.
        console: A terminal is drawn anew; a log gets a line at each change.
        sleep: Waits.

    Returns:
        The exit code.

    Raises:
        RunError: there is neither.
    """
    known: Known = {}
    state = read_state(url, known)
    if console.is_terminal:
        with Live(view(state), console=console, auto_refresh=False) as live:
            while not state.has_ended:
                sleep(every)
                try:
                    state = read_state(url, known)
                except (RunError, OSError) as error:
                    # A store may be away for a moment.
                    live.console.print(_not_now(error), markup=False)
                    continue
                live.update(view(state), refresh=True)
        return exit_code(state)
    said: object = None
    while True:
        if (now := change_of(state)) != said:
            console.print(line(state), soft_wrap=True, markup=False)
            said = now
        if state.has_ended:
            return exit_code(state)
        sleep(every)
        try:
            state = read_state(url, known)
        except (RunError, OSError) as error:
            if said != str(error):
                console.print(_not_now(error), soft_wrap=True, markup=False)
            said = str(error)


def _not_now(error: Exception) -> str:
    return files.without_secrets(f"it cannot be read at the moment: {error}")
