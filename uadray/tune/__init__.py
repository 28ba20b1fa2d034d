"""The sweep: search spaces, trials, resume."""
