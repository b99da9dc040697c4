// Elementwise passes over maps and the sums that finish gradients: each moves every byte once, as fast as memory is.
#include <algorithm>

#include "kernels.h"
#include "launch.h"
#include "tiling.h"
#include "vector_io.h"

namespace cmslap::cuda {

constexpr int kThreads = 256;

static unsigned blocks_for(int64_t threads) { return unsigned(ceil_div(threads, kThreads)); }

// Eight elements a thread: φ(x), or with `grad` φ' at x times grad.
template <class T>
__global__ void __launch_bounds__(kThreads)
    activate_kernel(const uint16_t* x, const uint16_t* grad, int64_t eights, float slope, uint16_t* y) {
  const int64_t eight = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (eight >= eights) return;
  float values[8], results[8];
  load_eight<T>(x + 8 * eight, values);
  if (grad != nullptr)
    load_eight<T>(grad + 8 * eight, results);
  else
    load_eight<T>(x + 8 * eight, results);
#pragma unroll
  for (int c = 0; c < 8; ++c) results[c] *= values[c] > 0.0f ? 1.0f : slope;
  store_eight<T>(y + 8 * eight, results);
}

static void launch_activate(Type type, const void* x, const void* grad, int64_t elements, float slope, void* y,
                            cudaStream_t stream) {
  const int64_t eights = elements / 8;
  launch(type == Type::kBFloat16 ? activate_kernel<BFloat16> : activate_kernel<Float16>, dim3(blocks_for(eights)),
         dim3(kThreads), 0, stream, halves(x), halves(grad), eights, slope, halves(y));
}

void activate(Type type, const void* x, int64_t elements, float slope, void* y, cudaStream_t stream) {
  launch_activate(type, x, nullptr, elements, slope, y, stream);
}

void differentiate(Type type, const void* grad, const void* saved, int64_t elements, float slope, void* y,
                   cudaStream_t stream) {
  launch_activate(type, saved, grad, elements, slope, y, stream);
}

// ---- Sums over pixels ----

// A block sums every gridDim.x-th group of pixels: a thread eight channels of one pixel a group, then the threads of
// the same channels are added in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_pixels_kernel(const uint16_t* map, int64_t pixels, int channels, float* sums) {
  SHARED_MEMORY(smem);
  float* shared = reinterpret_cast<float*>(smem);  // [lanes, channels]
  const int eights = channels / 8, lanes = kThreads / eights;
  const int lane = threadIdx.x / eights, channel = threadIdx.x % eights * 8;
  if (lane < lanes) {
    float own[8] = {};
#pragma unroll 4
    for (int64_t pixel = int64_t{blockIdx.x} * lanes + lane; pixel < pixels; pixel += int64_t{gridDim.x} * lanes) {
      float values[8];
      load_eight<T>(map + pixel * channels + channel, values);
#pragma unroll
      for (int c = 0; c < 8; ++c) own[c] += values[c];
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) shared[lane * channels + channel + c] = own[c];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    float sum = 0.0f;
    for (int l = 0; l < lanes; ++l) sum += shared[l * channels + c];
    sums[int64_t{blockIdx.x} * channels + c] = sum;
  }
}

int pixel_sum_rows(int64_t pixels, int channels) {
  const int64_t groups = ceil_div(pixels * (channels / 8), kThreads);  // of pixels that a block takes at once
  const int64_t max_rows = int64_t{4} * multiprocessors();
  return int(std::clamp<int64_t>(groups / 8, 1, max_rows));
}

void sum_pixels(Type type, const void* map, int64_t pixels, int channels, float* sums, cudaStream_t stream) {
  launch(type == Type::kBFloat16 ? sum_pixels_kernel<BFloat16> : sum_pixels_kernel<Float16>,
         dim3(pixel_sum_rows(pixels, channels)), dim3(kThreads), kThreads * 8 * sizeof(float), stream, halves(map),
         pixels, channels, sums);
}

// ---- Sums of partial sums, in an order that never changes ----

constexpr int kRowLanes = 16, kColumnLanes = 32;

// out[column] += Σ over rows: 16 threads a column take every 16th row each, then their sums are added in order.
__global__ void __launch_bounds__(kRowLanes* kColumnLanes)
    reduce_rows_kernel(const float* sums, int rows, int columns, float* out) {
  SHARED_MEMORY(smem);
  float* shared = reinterpret_cast<float*>(smem);  // [kRowLanes, kColumnLanes]
  const int lane = threadIdx.x / kColumnLanes, column = blockIdx.x * kColumnLanes + threadIdx.x % kColumnLanes;
  float own = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int row = lane; row < rows; row += kRowLanes) own += sums[int64_t{row} * columns + column];
  }
  shared[threadIdx.x] = own;
  __syncthreads();
  if (lane > 0 || column >= columns) return;
  float sum = 0.0f;
  for (int l = 0; l < kRowLanes; ++l) sum += shared[l * kColumnLanes + threadIdx.x];
  out[column] += sum;
}

void reduce_rows(const float* sums, int rows, int columns, float* out, cudaStream_t stream) {
  launch(reduce_rows_kernel, dim3(ceil_div(columns, kColumnLanes)), dim3(kRowLanes * kColumnLanes),
         kRowLanes * kColumnLanes * sizeof(float), stream, sums, rows, columns, out);
}

// A thread an element of the partials [splits, maps, 9, elements of a matrix]; grad is [maps, elements, 9].
__global__ void __launch_bounds__(kThreads)
    reduce_weight_gradient_kernel(const float* partials, int splits, int maps, int elements, float* grad) {
  const int64_t number = int64_t{blockIdx.x} * kThreads + threadIdx.x, numbers = int64_t{maps} * 9 * elements;
  if (number >= numbers) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int split = 0; split < splits; ++split) sum += partials[split * numbers + number];
  const int64_t matrix = number / elements, element = number % elements;
  grad[(matrix / 9 * elements + element) * 9 + matrix % 9] += sum;
}

void reduce_weight_gradient(const float* partials, int splits, int maps, int rows, int columns, float* grad,
                            cudaStream_t stream) {
  launch(reduce_weight_gradient_kernel, dim3(blocks_for(int64_t{maps} * 9 * rows * columns)), dim3(kThreads), 0, stream,
         partials, splits, maps, rows * columns, grad);
}

}  // namespace cmslap::cuda
