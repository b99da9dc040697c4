// The CPU operations, for whoever binds them: plain pointers in, plain pointers out.
//
// Images are dense NHWC float32; weights are [out, in, 3, 3], contiguous but for a convolution's. Gradients are added
// to what their buffers hold, except those of images and those that conv_backward and upsampling_backward make, which
// are written. A pointer said to be optional may be null.
#pragma once

#include <cstdint>

namespace cmslap::cpu {

struct Size {  // of a batch of images
  int64_t batch, height, width;
  int64_t pixels() const { return batch * height * width; }
};

// How a weight [out, in, 3, 3] and its gradient lie: contiguous, or with {1, in} in channels_last memory.
struct WeightLayout {
  int64_t in_stride = 9, tap_stride = 1;
};

struct Conv {  // φ(W ⋆ x + b + skip); slope 1 is no activation
  int64_t in, out;
  const float* weight;  // [out, in, 3, 3]
  const float* bias;    // [out], optional
  float slope;
  WeightLayout layout = {};
};

enum class Save {  // what the forward pass of a recursive embedding keeps for the backward pass
  kNothing,
  kRecursions,    // the input of each recursion; the rest is computed again
  kConvolutions,  // the input of each convolution
};

struct Embedding {  // φ(h_R) of h_0 = u, h_r = (conv ∘ φ)^depth(h_{r-1}) + u
  int64_t channels, depth, recursions;
  const float* weights;  // [depth, channels, channels, 3, 3]
  const float* biases;   // [depth, channels]
  float slope;
  Save save;

  int64_t convolutions() const { return depth * recursions; }
  int64_t saved_images() const {  // how many images `saved` holds
    return save == Save::kNothing ? 0 : save == Save::kRecursions ? recursions : convolutions();
  }
};

struct Upsampling {  // U(a) + b
  int64_t in, out;
  const float* weight;  // [in, out, 3, 3]
  const float* bias;    // [out], optional
};

struct ResidualHead {  // K ⋆ᵀ I + (W_res ⋆ f + b_res)
  int64_t channels;
  const float* weight;        // [1, channels, 3, 3]
  const float* bias;          // [1]
  const float* image_weight;  // [1, 1, 4, 4]
};

template <class Number>
struct DenseParameters {  // of a light-weight residual dense block: C channels, growth G
  Number* depthwise1;     // [C, 3, 3]
  Number* pointwise1;     // [G, C]
  Number* bias1;          // [G]
  Number* depthwise2;     // [C + G, 3, 3]
  Number* pointwise2;     // [G, C + G]
  Number* bias2;          // [G]
  Number* pointwise3;     // [C, C + 2G]
  Number* bias3;          // [C]
};

struct DenseRecursion {  // x ← x + P₃ [x, a, b], `recursions` times; a = φ(P₁ D₁ x), b = φ(P₂ D₂ [x, a])
  int64_t channels, growth, recursions;
  DenseParameters<const float> parameters;
  float slope;

  static constexpr int64_t kPart = 16;  // each part of [x, a, b] is padded to it with zeros
  int64_t padded_channels() const { return (channels + kPart - 1) / kPart * kPart; }
  int64_t padded_growth() const { return (growth + kPart - 1) / kPart * kPart; }
  int64_t dense() const { return padded_channels() + padded_growth(); }
  int64_t record() const { return dense() + padded_growth(); }  // floats of a pixel's [x, a, b]
};

struct DenseNetwork {  // tail ⋆ recursion(head ⋆ image): one channel in, a few out
  DenseRecursion recursion;
  int64_t outputs;
  const float *head_weight, *head_bias;  // [C, 1, 3, 3], [C]
  const float *tail_weight, *tail_bias;  // [outputs, C, 3, 3], [outputs]
};

struct Kernels {
  const char* name;  // of the instruction set

  void (*conv)(const Conv&, Size, const float* x, const float* skip /* optional */, float* y);
  // y is the forward pass's output. grad_skip is φ'(y) grad_y. Gradients are optional, weight and bias together.
  void (*conv_backward)(const Conv&, Size, const float* x, const float* y, const float* grad_y, float* grad_x,
                        float* grad_weight, float* grad_bias, float* grad_skip);

  // saved: Embedding::saved_images() images.
  void (*embedding)(const Embedding&, Size, const float* u, float* saved, float* a);
  void (*embedding_backward)(const Embedding&, Size, const float* saved, const float* a, const float* grad_a,
                             float* grad_u, float* grad_weights, float* grad_biases);

  void (*upsampling)(const Upsampling&, Size, const float* a, float* f);
  // grad_a is optional, weight and bias gradient are so together.
  void (*upsampling_backward)(const Upsampling&, Size, const float* a, const float* grad_f, float* grad_a,
                              float* grad_weight, float* grad_bias);

  // The embedding followed by the upsampling; a, φ(h_R), is the backward pass's to keep.
  void (*level)(const Embedding&, const Upsampling&, Size, const float* u, float* saved, float* a, float* f);
  // grad_upsample_weight may point into grad_weights: that is how the tied weight is trained.
  void (*level_backward)(const Embedding&, const Upsampling&, Size, const float* saved, const float* a,
                         const float* grad_f, float* grad_u, float* grad_weights, float* grad_biases,
                         float* grad_upsample_weight, float* grad_upsample_bias);

  // size is that of the image; f and out are twice as large.
  void (*residual_head)(const ResidualHead&, Size, const float* f, const float* image, float* out);
  void (*residual_head_backward)(const ResidualHead&, Size, const float* f, const float* image, const float* grad_out,
                                 float* grad_f, float* grad_image, float* grad_weight, float* grad_bias,
                                 float* grad_image_weight);

  // saved, optional: [recursions, N, H + 2, W + 2, record()], what the backward pass reads.
  void (*dense_recursion)(const DenseRecursion&, Size, const float* u, float* saved, float* y);
  void (*dense_recursion_backward)(const DenseRecursion&, Size, const float* saved, const float* grad_y, float* grad_u,
                                   const DenseParameters<float>& gradients);
  void (*dense_network)(const DenseNetwork&, Size, const float* image, float* out);

  // Level and residual head without gradients and without the upsampled features: the last level of a network at
  // inference.
  void (*last_level)(const Embedding&, const Upsampling&, const ResidualHead&, Size, const float* u, const float* image,
                     float* out);
};

struct BFloat16 {
  uint16_t bits;
};

// Training stays in float32. Of a convolution's 6,500 cycles a tile of 64 channels (Zen 5, each of the three passes)
// the products take 4,600; bfloat16's 49 points at twice the rate would take 3,100, while the transforms grow by the
// same 49 / 36. With transforms for nothing more than today's that is 1.3 times as fast at most.
//
// Inference on images of bfloat16, for processors that multiply them. Weights and biases, the image that goes into the
// residual head and the one that comes out of it are float32. Embedding::save must be kNothing.
struct BFloat16Kernels {
  void (*conv)(const Conv&, Size, const BFloat16* x, const BFloat16* skip /* optional */, BFloat16* y);
  void (*embedding)(const Embedding&, Size, const BFloat16* u, BFloat16* a);
  void (*upsampling)(const Upsampling&, Size, const BFloat16* a, BFloat16* f);
  void (*level)(const Embedding&, const Upsampling&, Size, const BFloat16* u, BFloat16* f);
  void (*residual_head)(const ResidualHead&, Size, const BFloat16* f, const float* image, float* out);
  // Rounds to bfloat16 what the block's pointwise convolutions multiply, and nothing else.
  void (*dense_network)(const DenseNetwork&, Size, const float* image, float* out);
  void (*last_level)(const Embedding&, const Upsampling&, const ResidualHead&, Size, const BFloat16* u,
                     const float* image, float* out);
};

// The best kernels this processor runs; the environment variable CMSLAP_ISA (avx512_bf16, avx512, avx2, portable)
// forces others. Throws std::invalid_argument when the forced ones are unknown or not runnable here.
const Kernels& kernels();

// Those for bfloat16, or null where the processor, or the instruction set that is forced, has none.
const BFloat16Kernels* bfloat16_kernels();

}  // namespace cmslap::cpu
