// The CPU kernels, as csrc/library.cpp registers them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace cmslap::cpu {

// 2x upsampling of a [N, Cout, H, W] with a convolution's kernel, weight [Cout, Cin, 3, 3], and bias [Cin],
// into out [N, Cin, 2H, 2W]. float32, any strides.
void tied_conv_transpose2d(
    const torch::stable::Tensor& a,
    const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias,
    torch::stable::Tensor out);

}  // namespace cmslap::cpu
