"""A fitted detector with all that it needs away from its cohort."""

from uadray.share.folder import export_model, open_model, read_model
from uadray.share.model import FrozenThreshold, Model, model_of_run

__all__ = ["FrozenThreshold", "Model", "export_model", "model_of_run", "open_model", "read_model"]
