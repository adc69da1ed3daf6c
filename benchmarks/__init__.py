"""Measurements against dense torch and other sparse libraries; run as `python -m benchmarks.NAME`."""
