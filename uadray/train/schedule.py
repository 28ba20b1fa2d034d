"""Which phase of a fit an epoch is in, and when the fit ends."""

import itertools

from uadray.config import FitConfig
from uadray.errors import ConfigError
from uadray.methods.base import GradientDetector, Phase
from uadray.train.steps import Metrics


class Schedule:
    """Which phase of a fit an epoch is in, and whether it was the last.

    Raises:
        ConfigError: there are fewer epochs than phases.
    """

    def __init__(self, detector: GradientDetector, fit: FitConfig) -> None:
        self._detector, self._phases, self._fit = detector, detector.phases(), fit
        if fit.epochs < len(self._phases):
            raise ConfigError(
                f"fit.epochs is {fit.epochs}, but {type(detector).__name__} learns in "
                f"{len(self._phases)} phases: take at least as many epochs"
            )
        ends = itertools.accumulate(phase.share for phase in self._phases)
        self._ends = [round(end * fit.epochs) for end in ends]
        for number in range(len(self._ends)):
            # Each has an epoch at least, and the last one ends with the fit.
            left = len(self._ends) - 1 - number
            low = self._ends[number - 1] + 1 if number else 1
            self._ends[number] = min(max(self._ends[number], low), fit.epochs - left)
        self._ends[-1] = fit.epochs

    def _number(self, epoch: int) -> int:
        return next(n for n, end in enumerate(self._ends) if epoch < end)

    def enter(self, epoch: int) -> tuple[Phase, int]:
        """The phase of an epoch, from 0, which is set on the detector.

        Returns:
            It, and how many epochs lie before all whose values may be compared with this one's.
        """
        number = self._number(epoch)
        phase = self._phases[number]
        self._detector.phase = phase.name
        begin = self._ends[number - 1] if number else 0
        return phase, begin if phase.measure else epoch

    def facts(self, epoch: int) -> Metrics:
        """For the record, where there are several phases: the number of this one, from 1."""
        return {"phase": self._number(epoch) + 1} if len(self._phases) > 1 else {}

    def stops(self, records: list[Metrics]) -> bool:
        """Whether patience is at its end; only epochs of the last phase try it."""
        begin = self._ends[-2] if len(self._ends) > 1 else 0
        key = f"validation/{self._phases[-1].measure}"
        values = [r[key] for r in records if r["epoch"] > begin and key in r]
        patience = self._fit.patience
        return bool(patience and values and len(values) - 1 - values.index(min(values)) >= patience)
