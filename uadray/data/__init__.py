"""From a cohort to batches: who sees which volume when, what is erased of it, and the stream."""
