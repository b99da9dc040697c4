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

// How the 16-byte pieces of rows of so many bytes are permuted in shared memory, so that a column of them has no bank
// conflicts: bits 4 to 6 (128 bytes), 4 and 5 (64) or 4 (32) of an address are xored with its bits from 7 on.
enum class Swizzle { kNone, k32, k64, k128 };

}  // namespace cmslap::cuda
