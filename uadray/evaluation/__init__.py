"""Finished runs on cohorts with lesions: scores, frozen thresholds and a record of each."""
