"""Residual post-processing, counts, thresholds, metrics, statistics, distributed scoring."""
