// The CUDA kernels as operators on tensors, as csrc/cuda/library.cpp lists them.
//
// Maps are bfloat16 or float16, [N, C, H, W] in channels_last memory, 16-byte aligned; kernels are contiguous and of the same
// dtype, biases and the parameters of image_conv and residual_head contiguous float32. Results go to tensors the caller made;
// gradients of parameters are float32 and are added to what theirs hold. Work is queued on `stream`, a cudaStream_t of the current
// device, on which PyTorch's allocator gives out memory. A tensor said to be optional may be None.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace cmslap::cuda {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

void conv2d_lrelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
                  double negative_slope, int64_t stream, Tensor out);

// Writes grad_skip, which is also the gradient before the activation.
void conv2d_lrelu_backward(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& grad, double negative_slope,
                           int64_t stream, OptionalTensor grad_x, OptionalTensor grad_weight, OptionalTensor grad_bias,
                           Tensor grad_skip);

// conv2d_lrelu of one input channel, without a skip.
void image_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double negative_slope, int64_t stream,
                  Tensor out);

// grad_before: of the value before the activation. grad_parameters [C, 10]: of each channel's 9 weights and its bias.
void image_conv_backward(const Tensor& x, const Tensor& out, const Tensor& grad, double negative_slope, int64_t stream,
                           Tensor grad_before, Tensor grad_parameters);

// saved is [R·D, N, H, W, C], with recompute [R, N, H, W, C]; None when no gradient will be asked for.
void recursive_embedding(const Tensor& u, const Tensor& weights, const Tensor& biases, int64_t recursions,
                         double negative_slope, bool recompute, int64_t stream, OptionalTensor saved, Tensor out);

void recursive_embedding_backward(const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope,
                                  bool recompute, const Tensor& saved, const Tensor& out, const Tensor& grad, int64_t stream,
                                  Tensor grad_u, Tensor grad_weights, Tensor grad_biases);

void tied_conv_transpose2d(const Tensor& a, const Tensor& weight, const OptionalTensor& bias, int64_t stream, Tensor out);

void tied_conv_transpose2d_backward(const Tensor& a, const Tensor& weight, const Tensor& grad, int64_t stream,
                                    OptionalTensor grad_a, OptionalTensor grad_weight, OptionalTensor grad_bias);

// saved is one map longer than the recursive embedding's: the last one is the embedding's result.
void lapsrn_level(const Tensor& u, const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight,
                  const Tensor& upsample_bias, int64_t recursions, double negative_slope, bool recompute, int64_t stream,
                  OptionalTensor saved, Tensor out);

// grad_upsample_weight may be a part of grad_weights.
void lapsrn_level_backward(const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight, int64_t recursions,
                           double negative_slope, bool recompute, const Tensor& saved, const Tensor& grad, int64_t stream,
                           Tensor grad_u, Tensor grad_weights, Tensor grad_biases, Tensor grad_upsample_weight,
                           Tensor grad_upsample_bias);

void residual_head(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& residual_bias,
                   const Tensor& image_weight, int64_t stream, Tensor out);

// grad_parameters [9·C + 17]: of residual_weight, residual_bias, image_weight.
void residual_head_backward(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& image_weight,
                            const Tensor& grad, int64_t stream, OptionalTensor grad_f, OptionalTensor grad_image,
                            Tensor grad_parameters);

}  // namespace cmslap::cuda
