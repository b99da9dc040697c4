// One vector type for every instruction set, and what a loop over channels needs.
//
// All kernels are headers. avx512.cpp, avx2.cpp and portable.cpp compile them once each, into a namespace of their own
// (CMSLAP_ISA), so that code for one processor is never linked into the path of another. For the same reason these
// headers instantiate no templates of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

namespace cmslap::cpu::CMSLAP_ISA {

#define CMSLAP_INLINE inline __attribute__((always_inline))

constexpr int kLanes = CMSLAP_VECTOR_BYTES / sizeof(float);
constexpr int64_t kCacheLine = 64 / sizeof(float);

typedef float Vec __attribute__((vector_size(CMSLAP_VECTOR_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(CMSLAP_VECTOR_BYTES), aligned(4), may_alias));

// How many channels a load or store touches: a whole vector, or the last few channels of a pixel.
struct Whole {};
struct Partial {
  int64_t count;
};

CMSLAP_INLINE Vec load(const float* p, Whole = {}) { return *reinterpret_cast<const UnalignedVec*>(p); }
CMSLAP_INLINE void store(float* p, Vec v, Whole = {}) { *reinterpret_cast<UnalignedVec*>(p) = v; }
CMSLAP_INLINE Vec load(const float* p, Partial part) {
  Vec v{};
  std::memcpy(&v, p, part.count * sizeof(float));
  return v;
}
CMSLAP_INLINE void store(float* p, Vec v, Partial part) { std::memcpy(p, &v, part.count * sizeof(float)); }

CMSLAP_INLINE Vec broadcast(float value) { return value - Vec{}; }
CMSLAP_INLINE float sum(Vec v) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

// φ(x), and φ' read from the sign of the activated value: φ keeps signs, so the input need not be saved.
CMSLAP_INLINE Vec leaky_relu(Vec x, float slope) { return x > 0.0f ? x : x * slope; }
CMSLAP_INLINE Vec leaky_relu_gradient(Vec gradient, Vec activated, float slope) {
  return activated > 0.0f ? gradient : gradient * slope;
}

CMSLAP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CMSLAP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
CMSLAP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CMSLAP_INLINE int64_t padded(int64_t channels) { return ceil_div(channels, kLanes) * kLanes; }

// body(c, part) for every vector of channels; `part` is Whole or Partial, so the common case has no branch inside.
template <class Body>
CMSLAP_INLINE void for_channels(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, Whole{});
  if (c < channels) body(c, Partial{channels - c});
}

}  // namespace cmslap::cpu::CMSLAP_ISA
