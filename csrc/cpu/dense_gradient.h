// The gradient of the recursion of light-weight residual dense blocks.
//
// With g = ∂y of a block:  [∂x, ∂a, ∂b] = [g, 0, 0] + P₃ᵀ g;  [∂x, ∂a] += D₂ᵀ P₂ᵀ φ'(b) ∂b;  ∂x += D₁ᵀ P₁ᵀ φ'(a) ∂a.
// Only the depthwise kernels look at neighbours, so a block is two passes over the pixels, each from one D ᵀ to the
// next; what they leave to each other is P₂ᵀ φ'(b) ∂b, P₁ᵀ φ'(a) ∂a and the sum so far. In a segment of a row all else
// is in L1 and L2. Each of a fixed number of slices of the rows adds up its own gradients of the parameters, for all
// blocks.
#pragma once

#include "dense_recursion.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int64_t kGradientSegment = 48;  // pixels of a row at once

// Σ over a segment's pixels of gradient · in, shifted by each tap, added to sums [9, channels].
template <int kCount>
CMSLAP_INLINE void add_depthwise_gradient(const float* const in[3], int64_t pitch, const float* gradient,
                                          int64_t gradient_pitch, int64_t pixels, int64_t c, Vec (&sums)[9]) {
  for (int64_t x = 0; x < pixels; x += kCount) {
    Vec gradients[kCount];
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) gradients[p] = load(gradient + (x + p) * gradient_pitch + c);
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      Vec row[kCount + 2];
#pragma GCC unroll 8
      for (int p = 0; p < kCount + 2; ++p) row[p] = load(in[k] + (x + p - 1) * pitch + c);
#pragma GCC unroll 3
      for (int l = 0; l < 3; ++l)
#pragma GCC unroll 8
        for (int p = 0; p < kCount; ++p) sums[3 * k + l] = multiply_add(row[p + l], gradients[p], sums[3 * k + l]);
    }
  }
}

inline void add_depthwise_gradient(const float* const in[3], int64_t pitch, const float* gradient,
                                   int64_t gradient_pitch, int64_t pixels, int64_t channels, float* sums) {
  constexpr int kCount = 4;
  const int64_t whole = pixels / kCount * kCount;
  const float* const rest[3] = {in[0] + whole * pitch, in[1] + whole * pitch, in[2] + whole * pitch};
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec taps[9];
    for (int64_t t = 0; t < 9; ++t) taps[t] = load(sums + t * channels + c);
    add_depthwise_gradient<kCount>(in, pitch, gradient, gradient_pitch, whole, c, taps);
    add_depthwise_gradient<1>(rest, pitch, gradient + whole * gradient_pitch, gradient_pitch, pixels - whole, c, taps);
    for (int64_t t = 0; t < 9; ++t) store(sums + t * channels + c, taps[t]);
  }
}

// A slice's sums: of each pointwise weight [out, in], of each depthwise one [9, channels], of the biases.
struct DenseSums {
  float *pointwise1, *pointwise2, *pointwise3, *depthwise1, *depthwise2, *bias1, *bias2, *bias3;

  static int64_t floats(const PackedDenseBlock& block) {
    return block.x * block.a + block.dense() * block.a + block.record() * block.x + 9 * (block.x + block.dense()) +
           block.record();
  }
  DenseSums(const PackedDenseBlock& block, float* memory) {
    const auto take = [&](int64_t floats) { return (memory += floats) - floats; };
    pointwise1 = take(block.x * block.a);
    pointwise2 = take(block.dense() * block.a);
    pointwise3 = take(block.record() * block.x);
    depthwise1 = take(9 * block.x);
    depthwise2 = take(9 * block.dense());
    bias1 = take(block.a);
    bias2 = take(block.a);
    bias3 = take(block.x);
  }
};

class DenseGradient {
 public:
  DenseGradient(ThreadPool& pool, const DenseRecursion& op, Size size, const float* saved, const float* grad_y)
      : pool_(pool),
        op_(op),
        block_(op),
        size_(size),
        records_(block_, size, const_cast<float*>(saved)),
        grad_y_(grad_y),
        slices_(min(kSlices, size.batch * size.height)),
        plane_floats_(Plane::floats(size, 1)),
        sums_(slices_ * DenseSums::floats(block_)),
        first_(size.batch * plane_floats_ * block_.x),
        second_(size.batch * plane_floats_ * block_.dense()),
        sum_(size.batch * plane_floats_ * block_.dense()) {
    std::memset(sums_.data(), 0, sums_.size() * sizeof(float));
  }

  void run(float* grad_u) {
    for_segments([&](int64_t, int64_t image, int64_t y, int64_t begin, int64_t, float*) {
      if (begin > 0) return;
      clear_margin(first(image), size_, y);
      clear_margin(second(image), size_, y);
    });
    for (int64_t r = op_.recursions - 1; r >= 0; --r) {
      for_segments([&](auto... where) { second_growth(r, where...); });
      for_segments([&](auto... where) { first_growth(r, where...); });
    }
    for_segments([&](int64_t, int64_t image, int64_t y, int64_t begin, int64_t end, float* scratch) {
      input_gradient(image, y, begin, end, scratch);
      write_pixels(scratch, block_.x, size_, op_.channels, image, y, begin, end, grad_u);
    });
  }

  // Adds the slices' sums to the gradients.
  void finish(const DenseParameters<float>& to) const {
    const int64_t channels = op_.channels, growth = op_.growth;
    for (int64_t slice = 0; slice < slices_; ++slice) {
      const DenseSums from = sums(slice);
      add_pointwise(from.pointwise1, block_.x, channels, growth, to.pointwise1);
      add_pointwise(from.pointwise2, block_.dense(), channels + growth, growth, to.pointwise2);
      add_pointwise(from.pointwise3, block_.record(), channels + 2 * growth, channels, to.pointwise3);
      add_depthwise(from.depthwise1, block_.x, channels, to.depthwise1);
      add_depthwise(from.depthwise2, block_.dense(), channels + growth, to.depthwise2);
      for (int64_t c = 0; c < growth; ++c) to.bias1[c] += from.bias1[c];
      for (int64_t c = 0; c < growth; ++c) to.bias2[c] += from.bias2[c];
      for (int64_t c = 0; c < channels; ++c) to.bias3[c] += from.bias3[c];
    }
  }

 private:
  Plane first(int64_t image) const { return plane(first_, image, block_.x); }          // P₁ᵀ φ'(a) ∂a
  Plane second(int64_t image) const { return plane(second_, image, block_.dense()); }  // P₂ᵀ φ'(b) ∂b
  Plane sum(int64_t image) const { return plane(sum_, image, block_.dense()); }        // of [∂x, ∂a], so far
  Plane plane(const Buffer& buffer, int64_t image, int64_t pitch) const {
    return Plane::whole(buffer.data() + image * plane_floats_ * pitch, size_, pitch);
  }
  DenseSums sums(int64_t slice) const { return {block_, sums_.data() + slice * DenseSums::floats(block_)}; }

  // body(slice, image, y, begin, end, scratch) for the segments of every row.
  template <class Body>
  void for_segments(const Body& body) const {
    const int64_t rows = size_.batch * size_.height;
    for_blocks(pool_, slices_, kGradientSegment * 4 * block_.record(), [&](int64_t slice, float* scratch) {
      for (int64_t row = slice * rows / slices_; row < (slice + 1) * rows / slices_; ++row)
        for (int64_t x = 0; x < size_.width; x += kGradientSegment)
          body(slice, row / size_.height, row % size_.height, x, min(x + kGradientSegment, size_.width), scratch);
    });
  }

  // ∂x of the block whose gradients are in sum_ and first_: the gradient of the block before it.
  void input_gradient(int64_t image, int64_t y, int64_t begin, int64_t end, float* to) const {
    const Plane sum = this->sum(image);
    depthwise(first(image), y, begin, end, block_.depthwise1.flipped(), block_.x, &sum, to);
  }

  // D · plane, added to `start` where it is given.
  static void depthwise(const Plane& plane, int64_t y, int64_t begin, int64_t end, DepthwiseWeight weight,
                        int64_t channels, const Plane* start, float* to) {
    for_strips(begin, end, [&](auto count, int64_t x) {
      const float* in[3] = {plane.at(y - 1, x), plane.at(y, x), plane.at(y + 1, x)};
      depthwise_strip<count.value>(in, plane.pitch, weight, channels, start ? start->at(y, x) : nullptr,
                                   start ? start->pitch : 0, to + (x - begin) * channels, channels);
    });
  }

  // From ∂y to P₂ᵀ φ'(b) ∂b.
  void second_growth(int64_t r, int64_t slice, int64_t image, int64_t y, int64_t begin, int64_t end,
                     float* scratch) const {
    const DenseSums sums = this->sums(slice);
    const int64_t pixels = end - begin, wide = block_.record(), dense = block_.dense();
    float *g = scratch, *products = g + pixels * block_.x, *depthwise_sums = products + pixels * wide;
    const Plane records = records_.plane(r, image), sum = this->sum(image), second = this->second(image);
    if (r == op_.recursions - 1)
      read_pixels(grad_y_, size_, op_.channels, block_.x, image, y, begin, end, g, block_.x);
    else
      input_gradient(image, y, begin, end, g);
    add_outer(g, block_.x, block_.x, records.at(y, begin), wide, wide, pixels, sums.pointwise3, sums.bias3);
    multiply(g, block_.x, block_.pointwise3, pixels, products, wide);

    for (int64_t x = 0; x < pixels; ++x) {
      float *product = products + x * wide, *to = sum.at(y, begin + x);
      const float* b = records.at(y, begin + x) + dense;
      for (int64_t c = 0; c < block_.x; c += kLanes) store(to + c, load(product + c) + load(g + x * block_.x + c));
      for (int64_t c = block_.x; c < dense; c += kLanes) store(to + c, load(product + c));
      for (int64_t c = 0; c < block_.a; c += kLanes)
        store(product + dense + c, leaky_relu_gradient(load(product + dense + c), load(b + c), block_.slope));
    }
    depthwise(records, y, begin, end, block_.depthwise2, dense, nullptr, depthwise_sums);
    add_outer(products + dense, wide, block_.a, depthwise_sums, dense, dense, pixels, sums.pointwise2, sums.bias2);
    multiply(products + dense, wide, block_.pointwise2, pixels, second.at(y, begin), dense);
    add_taps(records, y, begin, pixels, second, dense, sums.depthwise2);
  }

  // From D₂ᵀ to P₁ᵀ φ'(a) ∂a.
  void first_growth(int64_t r, int64_t slice, int64_t image, int64_t y, int64_t begin, int64_t end,
                    float* scratch) const {
    const DenseSums sums = this->sums(slice);
    const int64_t pixels = end - begin, dense = block_.dense();
    float *gradient = scratch, *depthwise_sums = scratch + pixels * dense;
    const Plane records = records_.plane(r, image), sum = this->sum(image), first = this->first(image);
    depthwise(second(image), y, begin, end, block_.depthwise2.flipped(), dense, &sum, gradient);
    for (int64_t x = 0; x < pixels; ++x) {
      float *from = gradient + x * dense, *to = sum.at(y, begin + x);
      const float* a = records.at(y, begin + x) + block_.x;
      for (int64_t c = 0; c < block_.x; c += kLanes) store(to + c, load(from + c));
      for (int64_t c = 0; c < block_.a; c += kLanes)
        store(from + block_.x + c, leaky_relu_gradient(load(from + block_.x + c), load(a + c), block_.slope));
    }
    depthwise(records, y, begin, end, block_.depthwise1, block_.x, nullptr, depthwise_sums);
    add_outer(gradient + block_.x, dense, block_.a, depthwise_sums, block_.x, block_.x, pixels, sums.pointwise1,
              sums.bias1);
    multiply(gradient + block_.x, dense, block_.pointwise1, pixels, first.at(y, begin), block_.x);
    add_taps(records, y, begin, pixels, first, block_.x, sums.depthwise1);
  }

  // Pᵀ · gradient for each pixel.
  static void multiply(const float* gradient, int64_t pitch, const PointwiseWeight& weight, int64_t pixels, float* to,
                       int64_t to_pitch) {
    gemm({gradient, pitch, 1}, {weight.backward, weight.in, kPanel}, {to, to_pitch}, pixels, weight.in, weight.out,
         false);
  }

  // Adds Σ over pixels of gradient ⊗ in to a pointwise weight's sums [out, in], and of gradient to its bias's.
  static void add_outer(const float* gradient, int64_t gradient_pitch, int64_t out, const float* in, int64_t in_pitch,
                        int64_t in_channels, int64_t pixels, float* weight, float* bias) {
    gemm({gradient, 1, gradient_pitch}, {in, in_pitch, kPanel}, {weight, in_channels}, out, in_channels, pixels, true);
    for (int64_t c = 0; c < out; c += kLanes) {
      Vec total = load(bias + c);
      for (int64_t x = 0; x < pixels; ++x) total += load(gradient + x * gradient_pitch + c);
      store(bias + c, total);
    }
  }

  static void add_taps(const Plane& in, int64_t y, int64_t begin, int64_t pixels, const Plane& gradient,
                       int64_t channels, float* sums) {
    const float* const rows[3] = {in.at(y - 1, begin), in.at(y, begin), in.at(y + 1, begin)};
    add_depthwise_gradient(rows, in.pitch, gradient.at(y, begin), gradient.pitch, pixels, channels, sums);
  }

  void add_pointwise(const float* from, int64_t width, int64_t in, int64_t out, float* to) const {
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) to[o * in + i] += from[o * width + place(op_, i)];
  }
  void add_depthwise(const float* from, int64_t width, int64_t channels, float* to) const {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < 9; ++t) to[c * 9 + t] += from[t * width + place(op_, c)];
  }

  ThreadPool& pool_;
  const DenseRecursion& op_;
  PackedDenseBlock block_;
  Size size_;
  SavedRecords records_;
  const float* grad_y_;
  int64_t slices_, plane_floats_;
  Buffer sums_, first_, second_, sum_;
};

inline void dense_recursion_backward(const DenseRecursion& op, Size size, const float* saved, const float* grad_y,
                                     float* grad_u, const DenseParameters<float>& gradients) {
  ThreadPool pool;
  DenseGradient gradient(pool, op, size, saved, grad_y);
  gradient.run(grad_u);
  gradient.finish(gradients);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
