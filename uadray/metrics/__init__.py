"""Scores to counts, thresholds, metrics and intervals: pure functions of arrays."""
