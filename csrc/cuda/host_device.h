// For what both sides call: functions in headers that files without kernels include as well.
#pragma once

#ifdef __CUDACC__
#define SK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SK_HOST_DEVICE inline
#endif
