"""What the stream of batches takes of a cluster; it stands apart so that settings import no Ray."""

READ_CPUS = 0.25
"""Logical CPUs of a read task; a whole one would wait for ever beside workers that hold them."""
