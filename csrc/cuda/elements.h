// What the 16-bit elements of maps are, for code that computes with raw words, and the one macro of code for both sides.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace cmslap::cuda {

struct BFloat16 {};
struct Float16 {};

}  // namespace cmslap::cuda
