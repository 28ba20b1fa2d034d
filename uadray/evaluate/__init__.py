"""Residual post-processing, counts, thresholds, metrics, statistics, distributed scoring."""

from uadray.calling import make_verb

make_verb(__name__)
