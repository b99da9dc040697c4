// A 3×3 convolution by the cheaper of the two ways, its gradients, and the operation conv2d_lrelu.
#pragma once

#include <optional>

#include "direct_conv.h"
#include "fast_weight_gradient.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Winograd multiplies 36 times a tile (in bfloat16 the time of 24 times) where the direct way multiplies 9 times a
// pixel, and pays for its transforms (measured: some 300 multiplications' time a channel). So it loses on a few input
// channels and on tiles that are mostly outside the image.
template <class Number>
bool winograd_pays(Size size, int64_t in, int64_t out) {
  constexpr int64_t kProducts = kMatrices<SameScheme<Number>> / FactorOf<Number>::kDepth;
  out = padded(out);
  return TileGrid<SameScheme<Number>>(size).tiles() * (kProducts * in * out + 300 * (in + out)) <
         9 * in * out * size.pixels();
}

template <class Number>
class Convolution {
  using Scheme = SameScheme<Number>;

 public:
  Convolution(ThreadPool& pool, Size size, WeightView weight) : size_(size) {
    if (winograd_pays<Number>(size, weight.in, weight.out))
      transformed_.emplace(pack_weight<Scheme, Number>(pool, weight));
    else
      taps_.emplace(pack_taps(pool, weight));
  }

  template <class Epilogue>
  void run(ThreadPool& pool, const Number* in, const Epilogue& epilogue, Number* out) const {
    if (transformed_)
      run_blocks(pool, fast_conv<Scheme>(pool.size(), in, size_, *transformed_, epilogue, out));
    else
      direct_conv(pool, in, size_, *taps_, epilogue, out);
  }

  // The same beside a weight gradient's blocks: in one parallel region where Winograd pays for both.
  template <class Blocks, class Epilogue>
  void run_beside(ThreadPool& pool, const Blocks& blocks, const Number* in, const Epilogue& epilogue,
                  Number* out) const {
    if (!transformed_) {
      run_blocks(pool, blocks);
      return run(pool, in, epilogue, out);
    }
    run_blocks(pool, blocks, fast_conv<Scheme>(pool.size(), in, size_, *transformed_, epilogue, out));
  }

 private:
  Size size_;
  std::optional<PackedWeight<Number>> transformed_;
  std::optional<PackedWeight<float>> taps_;
};

// The gradients of a convolution that is applied once or more: that of its input each time, those of weight and bias
// summed.
class ConvolutionGradient {
 public:
  // Null for what nobody wants: weight and bias gradient are so together.
  ConvolutionGradient(ThreadPool& pool, Size size, const Conv& op, bool input, float* weight_gradient,
                      float* bias_gradient)
      : size_(size),
        in_(op.in),
        out_(op.out),
        layout_(op.layout),
        weight_gradient_(weight_gradient),
        bias_gradient_(bias_gradient) {
    if (input) backward_.emplace(pool, size, WeightView::of(op).transposed().flipped());
    if (weight_gradient && winograd_pays<float>(size, in_, out_)) transformed_.emplace(size, in_, out_);
  }

  template <class Epilogue>
  void add(ThreadPool& pool, const float* in, const float* out_gradient, const Epilogue& epilogue, float* in_gradient) {
    if (transformed_ && backward_)  // whose blocks are work for the other half
      return backward_->run_beside(pool, transformed_->add(in, out_gradient, pool.size() / 2), out_gradient, epilogue,
                                   in_gradient);
    if (transformed_) {
      run_blocks(pool, transformed_->add(in, out_gradient, pool.size()));
    } else if (weight_gradient_) {
      direct_weight_gradient(pool, in, size_, in_, out_gradient, out_, weight_gradient_, layout_);
      sum_pixels(pool, out_gradient, size_.pixels(), out_, bias_gradient_);
    }
    if (backward_) backward_->run(pool, out_gradient, epilogue, in_gradient);
  }
  // add: to what the gradients of the parameters hold, or in its place.
  void finish(ThreadPool& pool, bool add) const {
    if (transformed_) transformed_->finish(pool, layout_, weight_gradient_, bias_gradient_, add);
  }

 private:
  Size size_;
  int64_t in_, out_;
  WeightLayout layout_;
  float *weight_gradient_, *bias_gradient_;
  std::optional<Convolution<float>> backward_;
  std::optional<WinogradWeightGradient> transformed_;
};

// Before what adds to the gradients of an operation's parameters.
template <class Operation>
void clear(const Operation& op, float* weight_gradient, float* bias_gradient) {
  std::memset(weight_gradient, 0, 9 * op.in * op.out * sizeof(float));
  std::memset(bias_gradient, 0, op.out * sizeof(float));
}

// out = φ'(activated) gradient for each number of an image.
inline void differentiate(ThreadPool& pool, const float* gradient, const float* activated, float slope, int64_t floats,
                          float* out) {
  constexpr int64_t kBlock = 1 << 14;
  for_blocks(pool, ceil_div(floats, kBlock), 0, [&](int64_t block, float*) {
    const int64_t first = block * kBlock;
    for_channels(min(kBlock, floats - first), [&](int64_t i, auto part) {
      store(out + first + i,
            leaky_relu_gradient(load(gradient + first + i, part), load(activated + first + i, part), slope), part);
    });
  });
}

template <class Number>
void activate(ThreadPool& pool, const Number* in, float slope, int64_t count, Number* out) {
  constexpr int64_t kBlock = 1 << 14;
  for_blocks(pool, ceil_div(count, kBlock), 0, [&](int64_t block, float*) {
    const int64_t first = block * kBlock;
    for_channels(min(kBlock, count - first), [&](int64_t i, auto part) {
      store(out + first + i, leaky_relu(load(in + first + i, part), slope), part);
    });
  });
}

template <class Number>
void conv(const Conv& op, Size size, const Number* x, const Number* skip, Number* y) {
  ThreadPool pool;
  const Activate<Number> activate{op.bias, skip, op.slope};
  if (op.out == 1)
    return conv_to_one(pool, x, size, WeightView::of(op), [&](int64_t n, int64_t i, int64_t j, float sum) {
      const int64_t pixel = (n * size.height + i) * size.width + j;
      store(y + pixel, activate(broadcast(sum), pixel, 0, Partial{1}), Partial{1});
    });
  const Convolution<Number> convolution(pool, size, WeightView::of(op));
  convolution.run(pool, x, activate, y);
}

inline void conv_backward(const Conv& op, Size size, const float* x, const float* y, const float* grad_y, float* grad_x,
                          float* grad_weight, float* grad_bias, float* grad_skip) {
  ThreadPool pool;
  const bool linear = op.slope == 1.0f && !grad_skip;
  const Buffer own(linear || grad_skip ? 0 : size.pixels() * op.out);
  float* differentiated = grad_skip ? grad_skip : own.data();
  if (!linear) differentiate(pool, grad_y, y, op.slope, size.pixels() * op.out, differentiated);
  const float* gradient_before = linear ? grad_y : differentiated;  // the activation
  if (grad_weight && !winograd_pays<float>(size, op.in, op.out))
    clear(op, grad_weight, grad_bias);  // the direct way adds
  ConvolutionGradient gradient(pool, size, op, grad_x != nullptr, grad_weight, grad_bias);
  gradient.add(pool, x, gradient_before, Differentiate{nullptr, nullptr, 1.0f}, grad_x);
  gradient.finish(pool, false);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
