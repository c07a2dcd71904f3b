"""Ways to train a cohort, all to the same numbers up to rounding."""
