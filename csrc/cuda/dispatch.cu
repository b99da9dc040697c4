// The one place that chooses between the implementations of the matrix kernels.
#include <cstdlib>
#include <cstring>

#include "implementations.h"

namespace cmslap::cuda {

// CMSLAP_CUDA_KERNELS=sm80 keeps a Hopper device from its own kernels, to test and to compare the others there.
static bool takes_sm90(int in, int out) {
  static const char* const wanted = std::getenv("CMSLAP_CUDA_KERNELS");
  static const bool allowed = wanted == nullptr || std::strcmp(wanted, "sm80") != 0;
  return allowed && sm90::serves(in, out);
}

void conv(const Conv& c, cudaStream_t stream) {
  takes_sm90(c.in, c.out) ? sm90::conv(c, stream) : sm80::conv(c, stream);
}

int conv_sum_rows(const Conv& c) { return takes_sm90(c.in, c.out) ? sm90::conv_sum_rows(c) : sm80::conv_sum_rows(c); }

void transposed_conv(const TransposedConv& c, cudaStream_t stream) {
  takes_sm90(c.in, c.out) ? sm90::transposed_conv(c, stream) : sm80::transposed_conv(c, stream);
}

void transposed_conv_gradient(const TransposedConvGradient& c, cudaStream_t stream) {
  takes_sm90(c.in, c.out) ? sm90::transposed_conv_gradient(c, stream) : sm80::transposed_conv_gradient(c, stream);
}

int transposed_conv_gradient_sum_rows(const TransposedConvGradient& c) {
  return takes_sm90(c.in, c.out) ? sm90::transposed_conv_gradient_sum_rows(c)
                                 : sm80::transposed_conv_gradient_sum_rows(c);
}

void weight_gradient(const WeightGradient& g, cudaStream_t stream) {
  takes_sm90(g.rows, g.columns) ? sm90::weight_gradient(g, stream) : sm80::weight_gradient(g, stream);
}

int weight_gradient_splits(const WeightGradient& g) {
  return takes_sm90(g.rows, g.columns) ? sm90::weight_gradient_splits(g) : sm80::weight_gradient_splits(g);
}

}  // namespace cmslap::cuda
