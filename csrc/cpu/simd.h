// One vector type for every instruction set, and what a loop over channels needs.
//
// All kernels are headers. isa_avx512_bf16.cpp, isa_avx512.cpp, isa_avx2.cpp and isa_portable.cpp compile them once
// each, into a namespace of their own (CMSLAP_ISA), so that code for one processor is never linked into the path of
// another. For the same reason these headers instantiate templates of the standard library for types of that namespace
// only.
#pragma once

#include <cstdint>
#include <cstring>

#if CMSLAP_VECTOR_BYTES == 64
#include <immintrin.h>
#endif

#include "kernels.h"

namespace cmslap::cpu::CMSLAP_ISA {

#define CMSLAP_ALWAYS_INLINE __attribute__((always_inline))
#define CMSLAP_INLINE inline CMSLAP_ALWAYS_INLINE
// A transform of one tile: a function, as its pointers take all registers, but one without calls inside, and with
// arguments of its own. A store might change what a reference refers to, which would be read again for every number.
#define CMSLAP_TRANSFORM __attribute__((noinline))

constexpr int kLanes = CMSLAP_VECTOR_BYTES / sizeof(float);
constexpr int64_t kCacheLineBytes = 64;

typedef float Vec __attribute__((vector_size(CMSLAP_VECTOR_BYTES)));
typedef float UnalignedVec __attribute__((vector_size(CMSLAP_VECTOR_BYTES), aligned(4), may_alias));

// How many channels a load or store touches: a whole vector, or the last few channels of a pixel.
struct Whole {};
struct Partial {
  int64_t count;
};

CMSLAP_INLINE Vec load(const float* p, Whole = {}) { return *reinterpret_cast<const UnalignedVec*>(p); }
CMSLAP_INLINE void store(float* p, Vec v, Whole = {}) { *reinterpret_cast<UnalignedVec*>(p) = v; }
#if CMSLAP_VECTOR_BYTES == 64
CMSLAP_INLINE __mmask16 mask(Partial part) { return static_cast<__mmask16>((1 << part.count) - 1); }
CMSLAP_INLINE Vec load(const float* p, Partial part) { return (Vec)_mm512_maskz_loadu_ps(mask(part), p); }
CMSLAP_INLINE void store(float* p, Vec v, Partial part) { _mm512_mask_storeu_ps(p, mask(part), (__m512)v); }
#else
CMSLAP_INLINE Vec load(const float* p, Partial part) {
  Vec v{};
  std::memcpy(&v, p, part.count * sizeof(float));
  return v;
}
CMSLAP_INLINE void store(float* p, Vec v, Partial part) { std::memcpy(p, &v, part.count * sizeof(float)); }
#endif

// Stores past the caches what is much larger than they are, so that it is not read in first, where a vector is a cache
// line. p: on a line's boundary.
CMSLAP_INLINE void stream(float* p, Vec v) {
#if CMSLAP_VECTOR_BYTES == 64
  _mm512_stream_ps(p, (__m512)v);
#else
  store(p, v);
#endif
}
// Before other threads may read what was streamed.
CMSLAP_INLINE void finish_streaming() {
#if CMSLAP_VECTOR_BYTES == 64
  _mm_sfence();
#endif
}

CMSLAP_INLINE Vec broadcast(float value) { return value - Vec{}; }
CMSLAP_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return sum + a * b; }
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

CMSLAP_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
CMSLAP_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
CMSLAP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CMSLAP_INLINE int64_t padded(int64_t channels) { return ceil_div(channels, kLanes) * kLanes; }

#ifdef CMSLAP_BFLOAT16
// A bfloat16 is the upper half of the float32 of the same value. (The mask of all lanes spares GCC 12 a false warning,
// and no code.)
CMSLAP_INLINE Vec widen(__m256i halves) {
  return (Vec)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, halves), 16);
}
CMSLAP_INLINE Vec load(const BFloat16* p, Whole = {}) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
CMSLAP_INLINE Vec load(const BFloat16* p, Partial part) {
  __m256i halves{};
  std::memcpy(&halves, p, part.count * sizeof(BFloat16));
  return widen(halves);
}
CMSLAP_INLINE void store(BFloat16* p, Vec v, Whole = {}) {
  const auto bits = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &bits, sizeof bits);
}
CMSLAP_INLINE void store(BFloat16* p, Vec v, Partial part) {
  const auto bits = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &bits, part.count * sizeof(BFloat16));
}

// Two neighbours in depth: what one instruction multiplies and adds for each of 16 columns, as fast as it would one of
// float32.
struct Pair {
  BFloat16 even, odd;
};
struct PairVec {
  __m512i pairs;
};
CMSLAP_INLINE PairVec load(const Pair* p) { return {_mm512_loadu_si512(p)}; }
CMSLAP_INLINE PairVec broadcast(Pair pair) {
  int bits;
  std::memcpy(&bits, &pair, sizeof bits);
  return {_mm512_set1_epi32(bits)};
}
CMSLAP_INLINE Vec multiply_add(PairVec a, PairVec b, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a.pairs, (__m512bh)b.pairs);
}
#endif

// body(c, part) for every vector of channels; `part` is Whole or Partial, so the common case has no branch inside.
template <class Body>
CMSLAP_INLINE void for_channels(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) body(c, Whole{});
  if (c < channels) body(c, Partial{channels - c});
}

}  // namespace cmslap::cpu::CMSLAP_ISA
