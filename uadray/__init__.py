"""Unsupervised anomaly detection in brain MRI, at scale, on Ray."""

import os

__version__ = "0.1.0"

# Torch's threads would wait for each other by spinning. Beside any other work (Ray's own processes
# are enough) that costs small steps a multiple of their time. Read when OpenMP is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
