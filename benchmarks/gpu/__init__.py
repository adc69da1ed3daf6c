"""What a GPU does with the library's kernels and with what else there is: `python -m benchmarks gpu`.

Everything runs on the CPU as well, on tiny shapes (`--device cpu --smoke`), so that no GPU's time is spent on finding
mistakes of this program. Nothing here needs what a machine's own Python may lack: tyro, rich.
"""
