"""Measurements against dense torch and other sparse libraries: `python -m benchmarks --help`."""
