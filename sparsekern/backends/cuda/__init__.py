"""The products as CUDA C++ kernels: NVIDIA GPUs from sm_80 on, where the package was built with nvcc."""
