"""What each speed claim rests on: `python -m benchmarks.NAME [--quick]`."""
