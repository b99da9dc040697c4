// Operations as runs of launches of kernels.h: single convolutions, recursive embeddings, pyramid levels.
//
// With a_0 = φ(u), convolution k = 1 .. R·D makes a_k = φ(W ⋆ a_{k-1} + b [+ u where a recursion ends]); a level's
// output is U(a_RD). Backward carries g_k, the gradient of the value that φ made a_k of: the data gradient's epilogue
// multiplies by φ' as it writes, so no map of a gradient before φ' ever exists. The source skip hands u the sum of the
// g_k of all recursions' ends, which the same epilogue adds up.
//
// Launches of a level for D convolutions and R recursions (D5R8 in brackets):
// forward 4 + R·D [44]: packing, φ(u), the convolutions, U;
// backward 10 + D + R·(D + 1) [63]: R·D data gradients, and a recursion one weight gradient of all its D convolutions;
// around them packing, a copy, the two gradients of U, its bias's and the sums of what blocks left. `recompute` adds
// R·D [40] to backward.
#pragma once

#include "kernels.h"

namespace cmslap::cuda {

// Memory for the length of one call, on the device.
class Workspace {
 public:
  virtual ~Workspace() = default;
  virtual void* bytes(int64_t count) = 0;  // 16-byte aligned

  void* maps(int64_t elements) { return bytes(2 * elements); }
  float* floats(int64_t count) { return static_cast<float*>(bytes(4 * count)); }
};

// Where the launches of one call go and take their memory from.
struct Queue {
  cudaStream_t stream;
  Workspace& memory;
};

// Gradients of parameters are float32 and are added to what their buffers hold; those of maps are written. Pointers to
// gradients may be null where it says optional.

struct Convolution {  // φ(W ⋆ x + b + skip)
  Type type;
  Size size;
  int in, out;
  const void* weight;  // [out, in, 3, 3]
  float slope;
};
void convolution(const Convolution&, const void* x, const float* bias, const void* skip, void* y,
                 Queue);  // bias, skip: optional
// grad_skip, which has the size of y, holds φ'(y) grad_y. The others are optional.
void convolution_backward(const Convolution&, const void* x, const void* y, const void* grad_y, void* grad_x,
                          float* grad_weight, float* grad_bias, void* grad_skip, Queue);

struct Upsampling {  // U(a) + b
  Type type;
  Size size;  // of a
  int in, out;
  const void* weight;  // [in, out, 3, 3]
};
void upsampling(const Upsampling&, const void* a, const float* bias, void* f, Queue);  // bias: optional
// All gradients are optional.
void upsampling_backward(const Upsampling&, const void* a, const void* grad_f, void* grad_a, float* grad_weight,
                         float* grad_bias, Queue);

struct Embedding {  // φ(h_R) of h_0 = u, h_r = (conv ∘ φ)^depth(h_{r-1}) + u
  Type type;
  Size size;
  int channels, depth, recursions;
  const void* weights;  // [depth, channels, channels, 3, 3]
  const float* biases;  // [depth, channels]
  float slope;
  bool recompute;  // only the input of each recursion is saved, not that of each convolution

  int convolutions() const { return depth * recursions; }
  int step() const { return recompute ? depth : 1; }  // from one saved activation to the next
  int64_t elements() const { return size.pixels() * channels; }
};
struct EmbeddingGradients {
  void* u;
  float* weights;  // [depth, channels, channels, 3, 3]
  float* biases;   // [depth, channels]
};
// saved: [convolutions() / step(), N, H, W, C], optional.
void embedding(const Embedding&, const void* u, void* saved, void* a, Queue);
void embedding_backward(const Embedding&, const void* saved, const void* a, const void* grad_a,
                        const EmbeddingGradients&, Queue);

// The embedding followed by the upsampling. saved, optional, is one map longer than the embedding's: the last one is
// φ(h_R).
void level(const Embedding&, const Upsampling&, const void* u, const float* upsample_bias, void* saved, void* f, Queue);
// grad_upsample_weight may point into gradients.weights: that is how the tied kernel is trained.
void level_backward(const Embedding&, const Upsampling&, const void* saved, const void* grad_f,
                    const EmbeddingGradients&, float* grad_upsample_weight, float* grad_upsample_bias, Queue);

// grad_parameters: as image_conv_weight_gradient's sums, summed.
void image_conv_backward(const ImageConv&, const void* grad_y, float* grad_parameters, Queue);
// grad_parameters: as ResidualHeadGradient::sums, summed.
void residual_head_backward(ResidualHeadGradient, float* grad_parameters, Queue);

}  // namespace cmslap::cuda
