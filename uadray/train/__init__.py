"""The fit loop, its distributed driver, checkpoints."""
