"""From scans to a cohort: layouts, steps, phantom, lesion synthesis, ingest."""
