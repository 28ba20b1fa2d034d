"""Scans in files to anomaly maps on their own grids, with a run or an exported model folder."""
