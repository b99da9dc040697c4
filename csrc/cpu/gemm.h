// The matrix product every convolution here is made of: C[rows, columns] (+)= A[rows, depth] · B[depth, columns].
//
// A strip of six rows and four vectors of columns is held in 24 of AVX-512's 32 registers (six by two of AVX2's 16).
// One step in depth loads four vectors of B and broadcasts six numbers of A for 24 multiply-adds, so that the
// multiply-add units, not the load ports, are the limit: it runs at the processor's peak as long as a panel of B, 64
// columns wide, stays in L1. A's two strides make A and Aᵀ the same thing, which is what weight gradients need.
#pragma once

#include "simd.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int kStrip = 6;                                          // rows in registers
constexpr int kPanelVecs = CMSLAP_VECTOR_REGISTERS >= 32 ? 4 : 2;  // vectors of columns in registers
constexpr int kPanel = kPanelVecs * kLanes;

template <class Factor>  // float, or Pair: then `depth` counts pairs
struct MatrixA {
  const Factor* data;
  int64_t row_stride, depth_stride;
};
template <class Factor>
struct MatrixB {  // columns in panels of kPanel
  const Factor* data;
  int64_t depth_stride, panel_stride;
};
struct MatrixC {  // rows padded to whole vectors
  float* data;
  int64_t row_stride;
};

// Inlined: a call would cost 60 cycles of a strip's 800, as what surrounds the loop no longer hides behind its
// multiply-adds. What C holds is added last, or they would wait for it.
template <int kRows, int kVecs, class Factor>
CMSLAP_INLINE void gemm_strip(MatrixA<Factor> a, MatrixB<Factor> b, MatrixC c, int64_t depth, bool accumulate) {
  Vec sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    decltype(load(b.data)) columns[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) columns[v] = load(b.data + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto row = broadcast(a.data[r * a.row_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] = multiply_add(row, columns[v], sum[r][v]);
    }
    a.data += a.depth_stride;
    b.data += b.depth_stride;
  }
  if (accumulate)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[r][v] += load(c.data + r * c.row_stride + v * kLanes);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(c.data + r * c.row_stride + v * kLanes, sum[r][v]);
}

template <int kVecs, class Factor, class AfterStrip>
void gemm_panel(MatrixA<Factor> a, MatrixB<Factor> b, MatrixC c, int64_t rows, int64_t depth, bool accumulate,
                AfterStrip& after_strip) {
  for (; rows >= kStrip; rows -= kStrip) {
    gemm_strip<kStrip, kVecs>(a, b, c, depth, accumulate);
    a.data += kStrip * a.row_stride;
    c.data += kStrip * c.row_stride;
    after_strip();
  }
  switch (rows) {
    case 5: return gemm_strip<5, kVecs>(a, b, c, depth, accumulate);
    case 4: return gemm_strip<4, kVecs>(a, b, c, depth, accumulate);
    case 3: return gemm_strip<3, kVecs>(a, b, c, depth, accumulate);
    case 2: return gemm_strip<2, kVecs>(a, b, c, depth, accumulate);
    case 1: return gemm_strip<1, kVecs>(a, b, c, depth, accumulate);
  }
}

struct Nothing {
  void operator()() const {}
};

// after_strip() is called after every whole strip.
template <class Factor = float, class AfterStrip = const Nothing>
void gemm(MatrixA<Factor> a, MatrixB<Factor> b, MatrixC c, int64_t rows, int64_t columns, int64_t depth,
          bool accumulate, AfterStrip&& after_strip = {}) {
  int64_t vectors = ceil_div(columns, kLanes);
  for (; vectors >= kPanelVecs; vectors -= kPanelVecs) {
    gemm_panel<kPanelVecs>(a, b, c, rows, depth, accumulate, after_strip);
    b.data += b.panel_stride;
    c.data += kPanel;
  }
  if (kPanelVecs > 3 && vectors == 3) return gemm_panel<3>(a, b, c, rows, depth, accumulate, after_strip);
  if (kPanelVecs > 2 && vectors == 2) return gemm_panel<2>(a, b, c, rows, depth, accumulate, after_strip);
  if (vectors == 1) return gemm_panel<1>(a, b, c, rows, depth, accumulate, after_strip);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
