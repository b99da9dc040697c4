// 2x upsampling with a convolution's own kernel, as four output phases.
//
// The value is out[y, x] = bias + sum of a[i, j] * W[k, l] over 2i+k = y, 2j+l = x. An even output row 2p meets the
// kernel rows k = 0 (from input row p) and k = 2 (from row p-1); an odd row 2p+1 only k = 1 (from row p). Columns do
// the same, so the four phases of a 2x2 output cell take 4, 2, 2 and 1 taps, nine in all: no multiplication is spent
// on inserted zeros, and the 2H+1st row and column, which the crop would drop, are never computed.
//
// Each tap is a small matrix product, pixels x Cout by Cout x Cin, accumulated in registers over a block of pixels
// and channels.

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "kernels.h"

// One build for every x86-64: the inner loop is compiled for three instruction sets and the loader picks one.
#if defined(__x86_64__) && defined(__GNUC__)
#define CMSLAP_FOR_EACH_ISA __attribute__((target_clones("avx512f", "fma", "default")))
#else
#define CMSLAP_FOR_EACH_ISA
#endif

namespace cmslap::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kPixels = 6;     // pixels a register block
constexpr int64_t kChannels = 32;  // output channels a register block: with 6 pixels, 12 AVX-512 accumulators

using Vec = float __attribute__((vector_size(64), aligned(4)));  // unaligned loads and stores
constexpr int64_t kLanes = sizeof(Vec) / sizeof(float);
constexpr int64_t kVecs = kChannels / kLanes;

using Tile = float[kPixels][kChannels];

// One input row and kernel slice that a phase reads.
struct Tap {
  const float* row;     // [pixels, Cout] at the first pixel of the block
  const float* kernel;  // [Cout, kChannels]
};

// tile[p][c] = bias[c] + sum over taps and o of row[p][o] * kernel[o][c]
CMSLAP_FOR_EACH_ISA
void multiply(const Tap* taps, int64_t tap_count, int64_t depth, const float* bias, Tile& tile) {
  Vec sum[kPixels][kVecs];
#pragma GCC unroll 6
  for (int64_t p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVecs; ++v) sum[p][v] = reinterpret_cast<const Vec*>(bias)[v];
  for (int64_t t = 0; t < tap_count; ++t) {
    const float* row = taps[t].row;
    const Vec* kernel = reinterpret_cast<const Vec*>(taps[t].kernel);
    for (int64_t o = 0; o < depth; ++o, ++row, kernel += kVecs)
#pragma GCC unroll 6
      for (int64_t p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVecs; ++v) sum[p][v] += row[p * depth] * kernel[v];
  }
#pragma GCC unroll 6
  for (int64_t p = 0; p < kPixels; ++p)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVecs; ++v) reinterpret_cast<Vec*>(tile[p])[v] = sum[p][v];
}

// A [N, C, H, W] tensor of any strides.
template <class T>
struct View {
  T* data;
  int64_t n, c, h, w;                      // sizes
  int64_t stride_n, stride_c, stride_h, stride_w;

  View(T* data, const Tensor& t)
      : data(data), n(t.size(0)), c(t.size(1)), h(t.size(2)), w(t.size(3)),
        stride_n(t.stride(0)), stride_c(t.stride(1)), stride_h(t.stride(2)), stride_w(t.stride(3)) {}

  T* pixel(int64_t in, int64_t ih, int64_t iw) const { return data + in * stride_n + ih * stride_h + iw * stride_w; }
};

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The kernel as the inner loop reads it: [channel block][3*3 tap][Cout][kChannels], zeros past Cin.
std::vector<float> pack_kernel(const View<const float>& w) {
  const int64_t out = w.n, in = w.c;
  std::vector<float> packed(round_up(in, kChannels) * 9 * out, 0.0f);
  for (int64_t c = 0; c < in; ++c)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t o = 0; o < out; ++o) {
        const int64_t at = ((c / kChannels * 9 + tap) * out + o) * kChannels + c % kChannels;
        packed[at] = w.pixel(o, tap / 3, tap % 3)[c * w.stride_c];
      }
  return packed;
}

// One input row as [1 + W rounded up, Cout]: the column left of the image is zero, and so are those right of it.
void pack_row(const View<const float>& a, int64_t n, int64_t i, std::vector<float>& row) {
  for (int64_t j = 0; j < a.w; ++j) {
    const float* pixel = a.pixel(n, i, j);
    float* packed = row.data() + (1 + j) * a.c;
    for (int64_t c = 0; c < a.c; ++c) packed[c] = pixel[c * a.stride_c];
  }
}

// One block of pixels j, j+1, ... of one phase, all channels.
void write_phase(
    const View<float>& out, int64_t n, int64_t y, int64_t odd_x, int64_t j, const float* kernel, const float* bias,
    int64_t depth, const std::array<const float*, 2>& rows, const std::array<int64_t, 2>& kernel_rows,
    int64_t row_count) {
  // Columns as rows: an even column meets l = 0 from pixel j and l = 2 from pixel j-1, an odd one l = 1 from j.
  const int64_t column_count = odd_x ? 1 : 2;
  const int64_t pixels = std::min(kPixels, out.w / 2 - j);
  for (int64_t block = 0; block * kChannels < out.c; ++block) {
    Tap taps[4];
    int64_t count = 0;
    for (int64_t r = 0; r < row_count; ++r)
      for (int64_t s = 0; s < column_count; ++s) {
        const int64_t l = odd_x ? 1 : 2 * s;
        taps[count++] = {
            rows[r] + (1 + j - s) * depth,
            kernel + ((block * 9 + kernel_rows[r] * 3 + l) * depth) * kChannels};
      }
    Tile tile;
    multiply(taps, count, depth, bias + block * kChannels, tile);
    const int64_t channels = std::min(kChannels, out.c - block * kChannels);
    for (int64_t p = 0; p < pixels; ++p) {
      float* pixel = out.pixel(n, y, 2 * (j + p) + odd_x) + block * kChannels * out.stride_c;
      if (out.stride_c == 1) {
        std::copy_n(tile[p], channels, pixel);
      } else {
        for (int64_t c = 0; c < channels; ++c) pixel[c * out.stride_c] = tile[p][c];
      }
    }
  }
}

}  // namespace

void tied_conv_transpose2d(
    const Tensor& a_tensor, const Tensor& weight, const std::optional<Tensor>& bias, Tensor out_tensor) {
  const View<const float> a(static_cast<const float*>(a_tensor.const_data_ptr()), a_tensor);
  const View<const float> w(static_cast<const float*>(weight.const_data_ptr()), weight);
  const View<float> out(static_cast<float*>(out_tensor.mutable_data_ptr()), out_tensor);
  const int64_t depth = a.c;

  const std::vector<float> kernel = pack_kernel(w);
  std::vector<float> offsets(round_up(out.c, kChannels), 0.0f);
  if (bias)
    for (int64_t c = 0; c < out.c; ++c)
      offsets[c] = static_cast<const float*>(bias->const_data_ptr())[c * bias->stride(0)];

  // One piece of work is an input row: the output rows 2i and 2i+1.
  torch::stable::parallel_for(0, a.n * a.h, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> above((1 + round_up(a.w, kPixels)) * depth, 0.0f), row(above);
    for (int64_t work = begin; work < end; ++work) {
      const int64_t n = work / a.h, i = work % a.h;
      if (i > 0 && work > begin) {
        std::swap(above, row);
      } else if (i > 0) {
        pack_row(a, n, i - 1, above);
      }
      pack_row(a, n, i, row);
      for (int64_t j = 0; j < a.w; j += kPixels)
        for (int64_t odd_x = 0; odd_x < 2; ++odd_x) {
          const std::array<const float*, 2> rows{row.data(), above.data()};
          write_phase(out, n, 2 * i, odd_x, j, kernel.data(), offsets.data(), depth, rows, {0, 2}, i > 0 ? 2 : 1);
          write_phase(out, n, 2 * i + 1, odd_x, j, kernel.data(), offsets.data(), depth, rows, {1, 1}, 1);
        }
    }
  });
}

}  // namespace cmslap::cpu
