"""Unsupervised anomaly detection in brain MRI, at scale, on Ray."""

__version__ = "0.1.0"
