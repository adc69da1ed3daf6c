"""What goes wrong in long runs, made to go wrong: a module a section of `python -m benchmarks faults`."""
