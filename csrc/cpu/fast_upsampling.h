// The upsampling U by the schemes Doubling and Halving, and all its gradients in one pass over the image four times the size of the
// other: those of a and of the kernel both need Bᵀ grad_f B.
#pragma once

#include "direct_conv.h"
#include "fast_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

// U's kernel [in, out, 3, 3] is that of the stride-2 convolution, from f to a, whose transpose U is.
inline KernelView upsampling_kernel(const Upsampling& op) { return KernelView::plain(op.weight, op.out, op.in); }

template <class Number>
void upsampling(Team& team, const Upsampling& op, Size size, const Number* a, Number* f) {
  const PackedKernel kernel = pack_kernel<Doubling, Number>(team, upsampling_kernel(op).transposed());
  fast_conv<Doubling>(team, a, size, kernel, Activate<Number>{op.bias, nullptr, 1.0f}, f);
}

// grad_a is optional, grad_weight and grad_bias are so together.
//
// A slice of the tiles has its own sums and is what a worker takes: so workers meet once, and thread counts do not matter. A
// group of its tiles lies in L2 beside the kernel and the sums while everything is made of it.
template <class Epilogue>
void upsampling_gradients(Team& team, const Upsampling& op, Size size, const float* a, const float* grad_f,
                          const Epilogue& epilogue, float* grad_a, float* grad_weight, float* grad_bias) {
  using Scheme = Halving;
  constexpr Operand kInput = Scheme::kInput, kKernel = Scheme::kKernel, kProduct = Scheme::kProduct;
  constexpr int64_t kGroupFloats = 36 * (25 * 64 + 9 * (64 + 64));  // tiles of grad_f, a and the products
  const Size fine = Doubling::output_size(size);
  const TileGrid<Scheme> grid(fine);
  const int64_t tile_floats = kInput.matrices() * padded(op.out) + 2 * kProduct.matrices() * padded(op.in);
  const int64_t group = most(kStrip, kGroupFloats / tile_floats / kStrip * kStrip);
  const int64_t groups = ceil_div(grid.tiles(), group), slices = least(kSlices, ceil_div(groups, 2));

  const PackedKernel kernel = pack_kernel<Scheme>(team, upsampling_kernel(op));
  const int64_t matrix_floats = op.in * padded(op.out), slice_floats = kKernel.matrices() * matrix_floats;
  const Buffer sums(slices * slice_floats), bias_sums(slices * padded(op.out));
  const int64_t fine_floats = TransformedTiles<>::floats(kInput, group, op.out);
  const int64_t coarse_floats = TransformedTiles<>::floats(kProduct, group, op.in);

  for_blocks(team, slices, fine_floats + 2 * coarse_floats + op.in + op.out, [&](int64_t slice, float* scratch) {
    const TransformedTiles<> gradients(scratch, group, op.out), inputs(scratch + fine_floats, group, op.in);
    const TransformedTiles<> products(scratch + fine_floats + coarse_floats, group, op.in);
    float* zeros = scratch + fine_floats + 2 * coarse_floats;
    std::memset(zeros, 0, (op.in + op.out) * sizeof(float));
    float *sum = sums.data() + slice * slice_floats, *bias_sum = bias_sums.data() + slice * padded(op.out);
    std::memset(bias_sum, 0, padded(op.out) * sizeof(float));

    const int64_t begin = slice * groups / slices * group, end = least((slice + 1) * groups / slices * group, grid.tiles());
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = least(group, end - first);
      for (int64_t t = 0; t < count; ++t) {
        const Pixels<Scheme::kWindow> window(grad_f, fine, op.out, Square::window(grid, first + t), zeros);
        transform_inputs<Scheme, float>(window, op.out, gradients, t);
        if (!grad_weight) continue;
        add_pixels<Scheme::kInputs>(window, op.out, bias_sum);
        transform_gradient<Scheme>({a, size, op.in, Square::outputs(grid, first + t), zeros}, op.in, inputs, t);
      }
      for (int64_t m = 0; m < kMatrices<Scheme>; ++m) {
        const float* gradient = gradients.at(kInput.matrix(m), 0);
        const int64_t pitch = gradients.row_stride;
        if (grad_weight)
          gemm({inputs.at(kProduct.matrix(m), 0), 1, inputs.row_stride}, {gradient, pitch, kPanel},
               {sum + kKernel.matrix(m) * matrix_floats, padded(op.out)}, op.in, op.out, count,
               first > begin || !kKernel.first(m));
        if (grad_a)
          gemm({gradient, pitch, 1}, kernel.matrix(kKernel.matrix(m)),
               {products.at(kProduct.matrix(m), 0), products.row_stride}, count, op.in, op.out, !kProduct.first(m));
        for (int64_t t = m * count / kMatrices<Scheme>; t < (m + 1) * count / kMatrices<Scheme>; ++t) {
          const int64_t next = first + group + t;
          if (next >= end) break;
          prefetch<Scheme::kInputs>(grad_f, fine, op.out, Square::new_inputs(grid, next));
          prefetch<Scheme::kOutputs>(a, size, op.in, Square::outputs(grid, next));
        }
      }
      for (int64_t t = 0; grad_a && t < count; ++t)
        store_outputs<Scheme>(products, t, Square::outputs(grid, first + t), size, op.in, epilogue, grad_a);
    }
  });
  if (!grad_weight) return;
  add_weight_gradient<Scheme>(team, sums.data(), slices, op.out, op.in, grad_weight);
  for (int64_t slice = 0; slice < slices; ++slice)
    for (int64_t o = 0; o < op.out; ++o) grad_bias[o] += bias_sums.data()[slice * padded(op.out) + o];
}

}  // namespace cmslap::cpu::CMSLAP_ISA
