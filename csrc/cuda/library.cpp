// The list of cmslap/_CUDA.so's operations, as csrc/library.cpp is for cmslap/_C.so: a library of its own, so that the CPU kernels
// are there whatever becomes of this one. Every device's tensors come here: cmslap/ops/cuda.py sees to it that they fit.

#include <torch/csrc/stable/library.h>

#include "bindings.h"

STABLE_TORCH_LIBRARY(cmslap_cuda, m) {
  m.def(
      "conv2d_lrelu(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, float negative_slope, int stream, Tensor(a!) out) -> ()");
  m.def(
      "conv2d_lrelu_backward(Tensor x, Tensor weight, Tensor out, Tensor grad, float negative_slope, int stream, "
      "Tensor(a!)? grad_x, Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, Tensor(d!) grad_skip) -> ()");
  m.def("image_conv(Tensor x, Tensor weight, Tensor? bias, float negative_slope, int stream, Tensor(a!) out) -> ()");
  m.def(
      "image_conv_backward(Tensor x, Tensor out, Tensor grad, float negative_slope, int stream, Tensor(a!) grad_before, "
      "Tensor(b!) grad_parameters) -> ()");
  m.def(
      "recursive_embedding(Tensor u, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
      "int stream, Tensor(a!)? saved, Tensor(b!) out) -> ()");
  m.def(
      "recursive_embedding_backward(Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
      "Tensor saved, Tensor out, Tensor grad, int stream, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases) "
      "-> ()");
  m.def("tied_conv_transpose2d(Tensor a, Tensor weight, Tensor? bias, int stream, Tensor(a!) out) -> ()");
  m.def(
      "tied_conv_transpose2d_backward(Tensor a, Tensor weight, Tensor grad, int stream, Tensor(a!)? grad_a, "
      "Tensor(b!)? grad_weight, Tensor(c!)? grad_bias) -> ()");
  m.def(
      "lapsrn_level(Tensor u, Tensor weights, Tensor biases, Tensor upsample_weight, Tensor upsample_bias, int recursions, "
      "float negative_slope, bool recompute, int stream, Tensor(a!)? saved, Tensor(b!) out) -> ()");
  m.def(
      "lapsrn_level_backward(Tensor weights, Tensor biases, Tensor upsample_weight, int recursions, float negative_slope, "
      "bool recompute, Tensor saved, Tensor grad, int stream, Tensor(a!) grad_u, Tensor(b!) grad_weights, "
      "Tensor(c!) grad_biases, Tensor(d!) grad_upsample_weight, Tensor(e!) grad_upsample_bias) -> ()");
  m.def(
      "residual_head(Tensor f, Tensor image, Tensor residual_weight, Tensor residual_bias, Tensor image_weight, int stream, "
      "Tensor(a!) out) -> ()");
  m.def(
      "residual_head_backward(Tensor f, Tensor image, Tensor residual_weight, Tensor image_weight, Tensor grad, int stream, "
      "Tensor(a!)? grad_f, Tensor(b!)? grad_image, Tensor(c!) grad_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cmslap_cuda, CompositeExplicitAutograd, m) {
  using namespace cmslap::cuda;
  m.impl("conv2d_lrelu", TORCH_BOX(&conv2d_lrelu));
  m.impl("conv2d_lrelu_backward", TORCH_BOX(&conv2d_lrelu_backward));
  m.impl("image_conv", TORCH_BOX(&image_conv));
  m.impl("image_conv_backward", TORCH_BOX(&image_conv_backward));
  m.impl("recursive_embedding", TORCH_BOX(&recursive_embedding));
  m.impl("recursive_embedding_backward", TORCH_BOX(&recursive_embedding_backward));
  m.impl("tied_conv_transpose2d", TORCH_BOX(&tied_conv_transpose2d));
  m.impl("tied_conv_transpose2d_backward", TORCH_BOX(&tied_conv_transpose2d_backward));
  m.impl("lapsrn_level", TORCH_BOX(&lapsrn_level));
  m.impl("lapsrn_level_backward", TORCH_BOX(&lapsrn_level_backward));
  m.impl("residual_head", TORCH_BOX(&residual_head));
  m.impl("residual_head_backward", TORCH_BOX(&residual_head_backward));
}
