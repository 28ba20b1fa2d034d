"""Named errors. Each subclasses the builtin that it refines and says what to do."""

from typing import Any


class UadrayError(Exception):
    """Base of all errors that a user can act on; a job prints them without a traceback."""


class UadrayWarning(UserWarning):
    """What a user should know, though all goes on; a job prints it as a message."""


class ConfigError(UadrayError, ValueError):
    """A setting is out of range or contradicts another one."""


class PluginError(ConfigError):
    """What another package adds is not installed, of another version, or cannot be used."""


class NoScanFoundError(UadrayError, FileNotFoundError):
    """A layout found no scan where it looked."""


class NoLesionMaskError(NoScanFoundError):
    """None of a set's patients has a lesion mask; `left_out` lists them."""

    left_out: tuple[Any, ...] = ()
    """Each with its scan, as `layouts.LeftOut`."""


class ScanError(UadrayError, ValueError):
    """One scan cannot be used; it is quarantined with this reason and the others go on."""


class TooManyFailuresError(UadrayError, ValueError):
    """Too many scans cannot be used: the folder or a setting must be wrong."""


class StoreError(UadrayError, ValueError):
    """A cohort store is absent, damaged, or of another shape than asked for."""


class StoreNotSealedError(StoreError):
    """A cohort store was not finished: resume its prepare job."""


class CheckpointError(UadrayError, ValueError):
    """A checkpoint belongs to another experiment or cohort, or is damaged."""


class RunError(UadrayError, ValueError):
    """A run folder lacks what the next stage needs."""


class StartError(UadrayError, RuntimeError):
    """Ray did not start, or the cluster that `RAY_ADDRESS` names cannot be joined."""


class LockedError(UadrayError, RuntimeError):
    """Another job is writing the same output."""


class StoppedError(UadrayError, RuntimeError):
    """A fit ended after an epoch because it was asked to; its checkpoint counts."""


class EvaluationError(UadrayError, ValueError):
    """Scores and truth cannot be compared: no lesion, another grid, not finite."""


class ModelError(UadrayError, ValueError):
    """A model folder is absent, damaged, half-written, or of a version that this one cannot use."""


class NoThresholdError(RunError):
    """A run or model has no frozen threshold, so that nothing can be proposed as lesion."""


class PredictError(UadrayError, ValueError):
    """Scans cannot be predicted as asked, or their results not be put where they should go."""
