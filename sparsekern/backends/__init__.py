"""The products' implementations: ``cpu`` (C++ kernels) and ``reference`` (plain torch, any device), same signatures."""
