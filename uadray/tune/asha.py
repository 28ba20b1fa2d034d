"""ASHA (Li et al. 2020) by our own epoch, for trials of one worker and of several."""

from typing import Any

from ray import tune

from uadray.runs.folder import Run
from uadray.tune.settings import SweepConfig
from uadray.tune.trial import OBJECTIVE


class GentleASHA(tune.schedulers.ASHAScheduler):
    """ASHA that asks groups of workers to stop instead of stopping the trial that they fit.

    Tune kills the actor of a stopped trial while it waits for its group; the group, which the
    actor's next trial could have, is lost, and its placement group holds CPUs until it is freed.
    """

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Take in an epoch; says whether the trial goes on."""
        decision = str(super().on_trial_result(controller, trial, result))
        if decision == self.STOP and "run" in result:
            Run.open(result["run"]).ask_to_stop()
            return str(self.CONTINUE)
        return decision


def asha(config: SweepConfig, most_epochs: int) -> tune.schedulers.ASHAScheduler:
    """ASHA over the epochs of trials that have at most `most_epochs`."""
    kind = GentleASHA if config.workers_per_trial > 1 else tune.schedulers.ASHAScheduler
    return kind(
        # The epoch, not the number of reports: a resumed trial reports again.
        time_attr="epoch",
        # One more than there are: at the last epoch the trial itself ends, as finished.
        max_t=most_epochs + 1,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction,
        metric=OBJECTIVE,
        mode="min",
    )
