"""Optuna's draws, each of an experiment that was not drawn before.

Ray's own adapter may draw one point twice; two trials would then write to one run folder.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from uadray.config import Experiment
from uadray.errors import ConfigError
from uadray.tune.space import Space

ATTEMPTS = 200
"""Draws that are tried for one that is new; a space whose points are all drawn has no more."""


class OptunaDraws(Searcher):
    """Draws points of a space by what earlier ones gave (Akiba et al. 2019).

    Args:
        space: Where points are drawn from.
        metric: What is reported to Tune; less is better.
        seed: The same seed and the same figures in the same order draw the same points.
        past: Points that were drawn before, with what they gave, where that is known.
        num: Most points, the past ones included.
        value_of: What a trial gave, from its last result; as in `past`.

    Each draw has a seed of its own, by its number, so that it follows from the seed and the figures
    of the draws before it: a search that was killed draws what an undisturbed one draws, as far as
    the same trials had ended by then, which is certain where trials run one at a time.
    """

    def __init__(
        self,
        space: Space,
        *,
        metric: str,
        seed: int,
        past: list[tuple[dict[str, Any], float | None]],
        num: int,
        value_of: Callable[[dict[str, Any]], float | None],
    ) -> None:
        super().__init__(metric=metric, mode="min")
        try:
            import optuna
        except ImportError:
            raise ConfigError("sweep.search optuna needs: pip install -e '.[optuna]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._num = optuna, space, num
        self._seed, self._value_of = seed, value_of
        with warnings.catch_warnings():
            # On lists of numbers, which a study in memory keeps as they are.
            warnings.filterwarnings("ignore", "Choices for a categorical distribution")
            self._choices: dict[str, Any] = {
                path: optuna.distributions.CategoricalDistribution(values)
                for path, values in space.axes().items()
            }
        self._study = optuna.create_study(direction="minimize")
        self._asked: dict[str, Any] = {}
        self._seen: set[Experiment] = set()
        for point, value in past:
            self._seen.add(space.build(point))
            if value is not None:
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=point, distributions=self._choices, value=value
                    )
                )

    def suggest(self, trial_id: str) -> Any:
        """A point, or Tune's word for none left."""
        if len(self._seen) >= self._num:
            return str(Searcher.FINISHED)
        number = np.random.SeedSequence([self._seed, len(self._seen)]).generate_state(1)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=int(number[0]))
        for _ in range(ATTEMPTS):
            asked = self._study.ask(self._choices)
            experiment = self._space.build(asked.params)
            if experiment not in self._seen:
                self._seen.add(experiment)
                self._asked[trial_id] = asked
                return dict(asked.params)
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take in what a point gave."""
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        value = self._value_of(result or {})
        if value is None or error:
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, float(value))

    def save(self, checkpoint_path: str) -> None:
        """Tune's own restore is not used: the run folders hold all that counts."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
