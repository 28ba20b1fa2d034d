"""The run folder: every file of it is written and read here, and nowhere else."""
