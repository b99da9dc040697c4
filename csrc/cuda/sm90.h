// The matrix kernels of kernels.h for compute capability 9.0 and 64 channels on both sides: same functions, same promises.
#pragma once

#include "kernels.h"

namespace cmslap::cuda::sm90 {

void conv(const Conv&, cudaStream_t);
int conv_sum_rows(const Conv&);
void transposed_conv(const TransposedConv&, cudaStream_t);
void transposed_conv_gradient(const TransposedConvGradient&, cudaStream_t);
int transposed_conv_gradient_sum_rows(const TransposedConvGradient&);
void weight_gradient(const WeightGradient&, cudaStream_t);
int weight_gradient_splits(const WeightGradient&);

}  // namespace cmslap::cuda::sm90
