// What the convolutions share: images, packed kernels, and what happens to an output before it is stored.
//
// Images are NHWC: a pixel's channels lie together, so that vectors run over channels and no transform shuffles lanes.
#pragma once

#include "gemm.h"
#include "kernels.h"
#include "simd.h"
#include "team.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Team::run for a lambda body(block, scratch).
template <class Body>
void for_blocks(Team& team, int64_t blocks, int64_t scratch_floats, const Body& body) {
  team.run(
      blocks, scratch_floats,
      [](const void* context, int64_t block, float* scratch) { (*static_cast<const Body*>(context))(block, scratch); },
      &body);
}

// How a kernel [out, in, 3, 3] is read. A convolution's data gradient is the convolution with its kernel transposed and
// flipped; a transposed convolution has `in` and `out` exchanged.
struct KernelView {
  const float* data;
  int64_t in, out;
  int64_t in_stride, out_stride, tap_stride;

  static KernelView plain(const float* weight, int64_t in, int64_t out) { return {weight, in, out, 9, in * 9, 1}; }
  KernelView transposed() const { return {data, out, in, out_stride, in_stride, tap_stride}; }
  KernelView flipped() const { return {data + 8 * tap_stride, in, out, in_stride, out_stride, -tap_stride}; }
  // Tap t of the kernels from input channel i to output channels o, o + 1, ...
  Vec tap(int64_t t, int64_t i, int64_t o) const {
    Vec taps{};
    for (int64_t lane = 0; lane < least(kLanes, out - o); ++lane)
      taps[lane] = data[(o + lane) * out_stride + i * in_stride + t * tap_stride];
    return taps;
  }
};

// One matrix [in, out] for each tap (or each point of the Winograd transform), columns in panels as gemm wants them.
struct PackedKernel {
  int64_t in, out, matrices;
  Buffer data;

  PackedKernel(int64_t matrices, KernelView kernel)
      : in(kernel.in), out(kernel.out), matrices(matrices), data(matrices * matrix_size()) {}
  int64_t matrix_size() const { return ceil_div(out, kPanel) * in * kPanel; }
  float* at(int64_t matrix, int64_t i, int64_t o) const {
    return data.data() + matrix * matrix_size() + o / kPanel * in * kPanel + i * kPanel + o % kPanel;
  }
  MatrixB matrix(int64_t m) const { return {at(m, 0, 0), kPanel, in * kPanel}; }
};

// Forward: φ(y + bias + skip).
struct Activate {
  const float* bias;  // [C] or null
  const float* skip;  // like the output, or null
  float slope;

  template <class Part>
  CMSLAP_INLINE Vec operator()(Vec y, int64_t pixel, int64_t channel, Part part) const {
    if (bias) y += load(bias + channel, part);
    if (skip) y += load(skip + pixel + channel, part);
    return leaky_relu(y, slope);
  }
  template <class Body>
  CMSLAP_INLINE void for_images(Body&& body) const {  // that it reads
    if (skip) body(skip);
  }
};

// Backward: y φ'(saved activated tensor), added to the source skip's gradient where a recursion ends.
struct Differentiate {
  const float* activated;  // like the output, or null
  float* skip_gradient;    // like the output, or null
  float slope;

  template <class Part>
  CMSLAP_INLINE Vec operator()(Vec y, int64_t pixel, int64_t channel, Part part) const {
    if (activated) y = leaky_relu_gradient(y, load(activated + pixel + channel, part), slope);
    if (skip_gradient) {
      float* gradient = skip_gradient + pixel + channel;
      store(gradient, load(gradient, part) + y, part);
    }
    return y;
  }
  template <class Body>
  CMSLAP_INLINE void for_images(Body&& body) const {
    if (activated) body(activated);
    if (skip_gradient) body(skip_gradient);
  }
};

}  // namespace cmslap::cpu::CMSLAP_ISA
