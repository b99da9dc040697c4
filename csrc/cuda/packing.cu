// Weights of convolutions as a matrix a tap, once a call: some hundred kilobytes, so the stores are coalesced and the
// loads are left to the caches.
#include "kernels.h"
#include "launch.h"
#include "tiling.h"
#include "vector_io.h"

namespace cmslap::cuda {

// A thread takes the nine taps of one (out, in); `columns` orders the threads along out instead of in.
__global__ void __launch_bounds__(256)
    pack_kernel(const uint16_t* weights, int count, int out, int in, bool columns, uint16_t* matrices) {
  const int64_t number = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, elements = int64_t{out} * in;
  if (number >= count * elements) return;
  const int64_t kernel = number / elements, element = number % elements;
  const int64_t from = columns ? element % out * in + element / out : element;
  for (int tap = 0; tap < 9; ++tap)
    matrices[(kernel * 9 + tap) * elements + element] = weights[(kernel * elements + from) * 9 + tap];
}

void pack_weights(Type, const void* weights, int count, int out, int in, void* rows, void* columns,
                  cudaStream_t stream) {
  const dim3 grid(unsigned(ceil_div(int64_t{count} * out * in, 256)));
  for (void* matrices : {rows, columns})
    if (matrices != nullptr)
      launch(pack_kernel, grid, dim3(256), 0, stream, halves(weights), count, out, in, matrices == columns,
             halves(matrices));
}

}  // namespace cmslap::cuda
