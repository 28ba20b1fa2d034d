"""The page that shows every scan of a cohort, and what is unusual about it."""
