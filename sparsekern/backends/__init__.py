"""The products: ``cpu`` (C++ kernels), ``triton`` (GPUs) and ``reference`` (plain torch); ``choice`` of them."""
