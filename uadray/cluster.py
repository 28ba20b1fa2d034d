"""The one place that starts Ray or joins it: `connect`.

A job joins the cluster that `RAY_ADDRESS` names (`ray job submit` sets it) and else starts one of
its own on this machine, for as long as the process lives.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from uadray.errors import UadrayError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Data draws bars for each operator; the jobs print one line of their own instead.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # The coming behaviour: a task that asked for no GPU keeps CUDA_VISIBLE_DEVICES as it is.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_CHATTY = (
    "ray._private.authentication.authentication_token_setup",
    "ray.data._internal.progress",
)
"""Loggers whose warnings tell at every start what is meant to be so."""


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster at `RAY_ADDRESS`, or start Ray on this machine; nothing if already in one.

    Args:
        dashboard: Start the dashboard with a Ray of our own. Tune needs it: the worker groups of
            stopped trials are freed through its State API.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray reads these variables when it is imported.
    import ray
    from ray.data import DataContext

    if not ray.is_initialized():
        # Never "auto": that searches the machine's processes and may find another one's Ray.
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            # A cluster that is joined has its own dashboard, and refuses to be told.
            include_dashboard=dashboard if address == "local" else None,
        )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's own wrapping of an error in a map keeps its text alone, not the error.
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise a named error of ours from inside Ray's wrapping of failed tasks and actors."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UadrayError) and not hasattr(error, "as_instanceof_cause"):
            raise
        # Ray's error of a task is also of the type that the task raised, with a traceback as text.
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None)
            for found in (inner, cause):
                if isinstance(found, UadrayError):
                    raise found from None
            cause = inner if isinstance(inner, BaseException) else cause.__cause__
        raise
