"""Scans in files to anomaly maps on their own grids; `uadray.predict(model, scan)` calls it."""

from uadray.calling import make_verb

make_verb(__name__)
