// The CPU kernels as operators on tensors, as csrc/library.cpp lists them.
//
// Everything is float32, but where multiplies_bfloat16() and nothing is saved, the features of a forward operation may be bfloat16.
// Images are [N, C, H, W] in channels_last memory; kernels, biases and `saved` are contiguous. Results go to tensors the caller
// made; gradients of parameters are added to what theirs hold.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace cmslap::cpu {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool multiplies_bfloat16();

void conv2d_lrelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
                  double negative_slope, Tensor out);

// Writes grad_skip, which is also the gradient before the activation. The other gradients are optional, those of weight and
// bias together.
void conv2d_lrelu_backward(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& grad, double negative_slope,
                           OptionalTensor grad_x, OptionalTensor grad_weight, OptionalTensor grad_bias, Tensor grad_skip);

// saved is [R·D, N, H, W, C], with recompute [R, N, H, W, C]; empty when no gradient will be asked for.
void recursive_embedding(const Tensor& u, const Tensor& weights, const Tensor& biases, int64_t recursions,
                         double negative_slope, bool recompute, Tensor saved, Tensor out);

void recursive_embedding_backward(const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope,
                                  bool recompute, const Tensor& saved, const Tensor& out, const Tensor& grad, Tensor grad_u,
                                  Tensor grad_weights, Tensor grad_biases);

void tied_conv_transpose2d(const Tensor& a, const Tensor& weight, const OptionalTensor& bias, Tensor out);

// Gradients are optional, those of weight and bias together.
void tied_conv_transpose2d_backward(const Tensor& a, const Tensor& weight, const Tensor& grad, OptionalTensor grad_a,
                                    OptionalTensor grad_weight, OptionalTensor grad_bias);

// saved is one image longer than the recursive embedding's: the last one is the embedding's result.
void lapsrn_level(const Tensor& u, const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight,
                  const Tensor& upsample_bias, int64_t recursions, double negative_slope, bool recompute, Tensor saved,
                  Tensor out);

// grad_upsample_weight may be a part of grad_weights.
void lapsrn_level_backward(const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight, int64_t recursions,
                           double negative_slope, bool recompute, const Tensor& saved, const Tensor& grad, Tensor grad_u,
                           Tensor grad_weights, Tensor grad_biases, Tensor grad_upsample_weight, Tensor grad_upsample_bias);

void residual_head(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& residual_bias,
                   const Tensor& image_weight, Tensor out);

void residual_head_backward(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& image_weight,
                            const Tensor& grad, Tensor grad_f, Tensor grad_image, Tensor grad_residual_weight,
                            Tensor grad_residual_bias, Tensor grad_image_weight);

// Level and residual head in one, without the features between them and without gradients.
void lapsrn_last_level(const Tensor& u, const Tensor& image, const Tensor& weights, const Tensor& biases,
                       const Tensor& upsample_weight, const Tensor& upsample_bias, int64_t recursions, double negative_slope,
                       const Tensor& residual_weight, const Tensor& residual_bias, const Tensor& image_weight, Tensor out);

}  // namespace cmslap::cpu
