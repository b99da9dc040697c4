// The list of cmslap/_C.so's operations: their schemas and the CPU kernels behind them. csrc/cuda/library.cpp lists those of the
// CUDA kernels in the same way.
//
// Only the LibTorch stable ABI is used (torch/csrc/stable, torch/headeronly) and nothing of CPython's, so one
// binary serves every later version of both. Python loads it with torch.ops.load_library. Callers outside
// cmslap.ops use the operators of the `cmslap` namespace, registered in cmslap/ops/registration.py.

#include <torch/csrc/stable/library.h>

#include "cpu/bindings.h"

STABLE_TORCH_LIBRARY(cmslap_cpu, m) {
  m.def("multiplies_bfloat16() -> bool");
  m.def("conv2d_lrelu(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, float negative_slope, Tensor(a!) out) -> ()");
  m.def(
      "conv2d_lrelu_backward(Tensor x, Tensor weight, Tensor out, Tensor grad, float negative_slope, Tensor(a!)? grad_x, "
      "Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, Tensor(d!) grad_skip) -> ()");
  m.def(
      "recursive_embedding(Tensor u, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
      "Tensor(a!) saved, Tensor(b!) out) -> ()");
  m.def(
      "recursive_embedding_backward(Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
      "Tensor saved, Tensor out, Tensor grad, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases) -> ()");
  m.def("tied_conv_transpose2d(Tensor a, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def(
      "tied_conv_transpose2d_backward(Tensor a, Tensor weight, Tensor grad, Tensor(a!)? grad_a, Tensor(b!)? grad_weight, "
      "Tensor(c!)? grad_bias) -> ()");
  m.def(
      "lapsrn_level(Tensor u, Tensor weights, Tensor biases, Tensor upsample_weight, Tensor upsample_bias, int recursions, "
      "float negative_slope, bool recompute, Tensor(a!) saved, Tensor(b!) out) -> ()");
  m.def(
      "lapsrn_level_backward(Tensor weights, Tensor biases, Tensor upsample_weight, int recursions, float negative_slope, "
      "bool recompute, Tensor saved, Tensor grad, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases, "
      "Tensor(d!) grad_upsample_weight, Tensor(e!) grad_upsample_bias) -> ()");
  m.def(
      "residual_head(Tensor f, Tensor image, Tensor residual_weight, Tensor residual_bias, Tensor image_weight, "
      "Tensor(a!) out) -> ()");
  m.def(
      "residual_head_backward(Tensor f, Tensor image, Tensor residual_weight, Tensor image_weight, Tensor grad, "
      "Tensor(a!) grad_f, Tensor(b!) grad_image, Tensor(c!) grad_residual_weight, Tensor(d!) grad_residual_bias, "
      "Tensor(e!) grad_image_weight) -> ()");
  m.def(
      "lapsrn_last_level(Tensor u, Tensor image, Tensor weights, Tensor biases, Tensor upsample_weight, "
      "Tensor upsample_bias, int recursions, float negative_slope, Tensor residual_weight, Tensor residual_bias, "
      "Tensor image_weight, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cmslap_cpu, CPU, m) {
  using namespace cmslap::cpu;
  m.impl("conv2d_lrelu", TORCH_BOX(&conv2d_lrelu));
  m.impl("conv2d_lrelu_backward", TORCH_BOX(&conv2d_lrelu_backward));
  m.impl("recursive_embedding", TORCH_BOX(&recursive_embedding));
  m.impl("recursive_embedding_backward", TORCH_BOX(&recursive_embedding_backward));
  m.impl("tied_conv_transpose2d", TORCH_BOX(&tied_conv_transpose2d));
  m.impl("tied_conv_transpose2d_backward", TORCH_BOX(&tied_conv_transpose2d_backward));
  m.impl("lapsrn_level", TORCH_BOX(&lapsrn_level));
  m.impl("lapsrn_level_backward", TORCH_BOX(&lapsrn_level_backward));
  m.impl("residual_head", TORCH_BOX(&residual_head));
  m.impl("residual_head_backward", TORCH_BOX(&residual_head_backward));
  m.impl("lapsrn_last_level", TORCH_BOX(&lapsrn_last_level));
}

STABLE_TORCH_LIBRARY_IMPL(cmslap_cpu, CompositeExplicitAutograd, m) {
  m.impl("multiplies_bfloat16", TORCH_BOX(&cmslap::cpu::multiplies_bfloat16));  // has no tensor to say it is the CPU's
}
