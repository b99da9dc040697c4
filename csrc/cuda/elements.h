// What host and device code and its tests agree on before anything else.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace cmslap::cuda {

// What the 16-bit elements of maps are, for code that moves raw words.
struct BFloat16 {};
struct Float16 {};

}  // namespace cmslap::cuda
