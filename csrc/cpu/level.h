// A pyramid level: the recursive embedding, then the upsampling with the weight of one of its convolutions.
//
// Activations are numbered: a_0 = φ(u), and convolution i (1 to depth·recursions) makes a_i of a_{i-1}. Since φ keeps
// signs, they are all that the backward pass needs: a_{i-1} for the weight gradient, its sign for φ'.
#pragma once

#include <vector>

#include "conv.h"
#include "fast_upsampling_gradient.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Where each activation lives: the last one in `last`, those to keep in `saved`. Those between two recursions' inputs
// have buffers here, as the backward pass of a recursion needs them together. When nothing is kept, one buffer and
// `last` take turns, so that inference holds u and two images.
template <class Number>
class Activations {
 public:
  Activations(const Embedding& op, Size size, Number* saved, Number* last)
      : op_(op), count_(size.pixels() * op.channels), saved_(saved), last_(last) {
    const int64_t spare = op.save == Save::kNothing ? 1 : op.save == Save::kRecursions ? op.depth - 1 : 0;
    for (int64_t i = 0; i < spare; ++i) spare_.emplace_back(count_);
  }

  Number* operator[](int64_t i) const {
    const int64_t remaining = op_.convolutions() - i, d = i % op_.depth;
    if (remaining == 0) return last_;
    switch (op_.save) {
      case Save::kConvolutions: return saved_ + i * count_;
      case Save::kRecursions: return d == 0 ? saved_ + i / op_.depth * count_ : spare_[d - 1].data();
      default: return remaining % 2 == 0 ? last_ : spare_[0].data();
    }
  }

 private:
  Embedding op_;
  int64_t count_;
  Number *saved_, *last_;
  std::vector<Array<Number>> spare_;
};

// Convolution d of the recursive block.
inline Conv block_conv(const Embedding& op, int64_t d) {
  const int64_t weight_floats = op.channels * op.channels * 9;
  return {op.channels, op.channels, op.weights + d * weight_floats, op.biases + d * op.channels, op.slope};
}

// The convolutions of the recursive block, packed once for all recursions.
template <class Number>
class RecursiveBlock {
 public:
  RecursiveBlock(ThreadPool& pool, const Embedding& op, Size size) {
    for (int64_t d = 0; d < op.depth; ++d) convolutions_.emplace_back(pool, size, WeightView::of(block_conv(op, d)));
  }
  const Convolution<Number>& operator[](int64_t d) const { return convolutions_[d]; }

 private:
  std::vector<Convolution<Number>> convolutions_;
};

// Activation i of activation i - 1.
template <class Number>
void embedding_step(ThreadPool& pool, const Embedding& op, const RecursiveBlock<Number>& block,
                    const Activations<Number>& a, int64_t i, const Number* u) {
  const int64_t d = (i - 1) % op.depth;
  const Number* skip = d == op.depth - 1 ? u : nullptr;
  block[d].run(pool, a[i - 1], Activate<Number>{op.biases + d * op.channels, skip, op.slope}, a[i]);
}

template <class Number>
void embedding_forward(ThreadPool& pool, const Embedding& op, Size size, const Number* u,
                       const Activations<Number>& a) {
  const RecursiveBlock<Number> block(pool, op, size);
  activate(pool, u, op.slope, size.pixels() * op.channels, a[0]);
  for (int64_t i = 1; i <= op.convolutions(); ++i) embedding_step(pool, op, block, a, i, u);
}

// gradient: that of h_R, which is overwritten. grad_u: holds it too, and receives what comes through every skip.
inline void embedding_backward(ThreadPool& pool, const Embedding& op, Size size, const Activations<float>& a,
                               Buffer gradient, float* grad_u, float* grad_weights, float* grad_biases) {
  std::optional<RecursiveBlock<float>> forward;
  if (op.save == Save::kRecursions) forward.emplace(pool, op, size);
  std::vector<ConvolutionGradient> gradients;
  for (int64_t d = 0; d < op.depth; ++d)
    gradients.emplace_back(pool, size, block_conv(op, d), true, grad_weights + d * op.channels * op.channels * 9,
                           grad_biases + d * op.channels);

  Buffer next(gradient.size());
  for (int64_t r = op.recursions - 1; r >= 0; --r) {
    if (forward)
      for (int64_t d = 1; d < op.depth; ++d) embedding_step<float>(pool, op, *forward, a, r * op.depth + d, nullptr);
    for (int64_t d = op.depth - 1; d >= 0; --d) {
      const float* input = a[r * op.depth + d];
      gradients[d].add(pool, input, gradient.data(), Differentiate{input, d == 0 ? grad_u : nullptr, op.slope},
                       next.data());
      std::swap(gradient, next);
    }
  }
  for (const ConvolutionGradient& of_conv : gradients) of_conv.finish(pool, true);
}

template <class Number>
void embedding(const Embedding& op, Size size, const Number* u, Number* saved, Number* a) {
  ThreadPool pool;
  embedding_forward(pool, op, size, u, Activations<Number>(op, size, saved, a));
}

inline void embedding_backward(const Embedding& op, Size size, const float* saved, const float* a, const float* grad_a,
                               float* grad_u, float* grad_weights, float* grad_biases) {
  ThreadPool pool;
  Buffer gradient(size.pixels() * op.channels);
  differentiate(pool, grad_a, a, op.slope, gradient.size(), gradient.data());
  std::memcpy(grad_u, gradient.data(), gradient.size() * sizeof(float));
  embedding_backward(pool, op, size, Activations<float>(op, size, const_cast<float*>(saved), const_cast<float*>(a)),
                     std::move(gradient), grad_u, grad_weights, grad_biases);
}

template <class Number>
void upsampling(const Upsampling& op, Size size, const Number* a, Number* f) {
  ThreadPool pool;
  upsampling(pool, op, size, a, f);
}

inline void upsampling_backward(const Upsampling& op, Size size, const float* a, const float* grad_f, float* grad_a,
                                float* grad_weight, float* grad_bias) {
  ThreadPool pool;
  if (grad_weight) clear(op, grad_weight, grad_bias);
  upsampling_gradients(pool, op, size, a, grad_f, Differentiate{nullptr, nullptr, 1.0f}, grad_a, grad_weight,
                       grad_bias);
}

template <class Number>
void level(const Embedding& op, const Upsampling& up, Size size, const Number* u, Number* saved, Number* a, Number* f) {
  ThreadPool pool;
  embedding_forward(pool, op, size, u, Activations<Number>(op, size, saved, a));
  upsampling(pool, up, size, a, f);
}

inline void level_backward(const Embedding& op, const Upsampling& up, Size size, const float* saved, const float* a,
                           const float* grad_f, float* grad_u, float* grad_weights, float* grad_biases,
                           float* grad_upsample_weight, float* grad_upsample_bias) {
  ThreadPool pool;
  Buffer gradient(size.pixels() * op.channels);
  std::memset(grad_u, 0, gradient.size() * sizeof(float));
  upsampling_gradients(pool, up, size, a, grad_f, Differentiate{a, grad_u, op.slope}, gradient.data(),
                       grad_upsample_weight, grad_upsample_bias);
  embedding_backward(pool, op, size, Activations<float>(op, size, const_cast<float*>(saved), const_cast<float*>(a)),
                     std::move(gradient), grad_u, grad_weights, grad_biases);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
