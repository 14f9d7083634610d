"""What scoring costs, beside what a user would run instead: `python -m benchmarks` (not part of the package)."""
