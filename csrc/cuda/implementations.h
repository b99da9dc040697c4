// The matrix kernels exist once for each generation of tensor cores; dispatch.cu chooses. What the functions do:
// kernels.h.
#pragma once

#include "kernels.h"

// cp.async, ldmatrix and mma.sync: compute capability 8.0 and later, any channels.
namespace cmslap::cuda::sm80 {
void conv(const Conv&, cudaStream_t);
int conv_sum_rows(const Conv&);
void transposed_conv(const TransposedConv&, cudaStream_t);
void transposed_conv_gradient(const TransposedConvGradient&, cudaStream_t);
int transposed_conv_gradient_sum_rows(const TransposedConvGradient&);
void weight_gradient(const WeightGradient&, cudaStream_t);
int weight_gradient_splits(const WeightGradient&);
}  // namespace cmslap::cuda::sm80

// TMA, mbarrier and wgmma: compute capability 9.0.
namespace cmslap::cuda::sm90 {
bool serves(int in,
            int out);  // whether this binary's kernels take these channels and were compiled for the current device
void conv(const Conv&, cudaStream_t);
int conv_sum_rows(const Conv&);
void transposed_conv(const TransposedConv&, cudaStream_t);
void transposed_conv_gradient(const TransposedConvGradient&, cudaStream_t);
int transposed_conv_gradient_sum_rows(const TransposedConvGradient&);
void weight_gradient(const WeightGradient&, cudaStream_t);
int weight_gradient_splits(const WeightGradient&);
}  // namespace cmslap::cuda::sm90
