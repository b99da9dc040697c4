// Between images, maps of one channel, and feature maps: conv_in and the residual head, with their gradients. A tensor
// core has little to do here; each kernel reads or writes one feature map once, at 1152 FLOP for its 2 bytes a channel
// of 64.
#include <algorithm>
#include <cstring>

#include "indexing_image.h"
#include "kernels.h"
#include "launch.h"
#include "vector_io.h"

namespace cmslap::cuda {

using namespace image_indexing;

constexpr int kThreads = 256;

// What the elements of a map are in memory.
template <class T>
struct Stored {
  using Element = uint16_t;
};
template <>
struct Stored<float> {
  using Element = float;
};

template <class T>
DEVICE void load_eight(const float* from, float (&values)[8]) {
  const uint4 halves[2] = {load_16(from), load_16(from + 4)};
  memcpy(values, halves, sizeof values);
}

template <class T>
DEVICE void store_eight(float* to, const float (&values)[8]) {
  uint4 halves[2];
  memcpy(halves, values, sizeof values);
  store_16(to, halves[0]);
  store_16(to + 4, halves[1]);
}

struct Plane {
  const float* data;
  int height, width;
};

DEVICE float pixel(const Plane& plane, int image, int y, int x) {
  if (y < 0 || y >= plane.height || x < 0 || x >= plane.width) return 0.0f;
  return plane.data[(int64_t{image} * plane.height + y) * plane.width + x];
}

// The 3×3 pixels around a place that walks down a column.
struct Neighbourhood {
  float values[9];
  const Plane& plane;
  int image, y, x;

  DEVICE Neighbourhood(const Plane& plane, int image, int y, int x) : plane(plane), image(image), y(y - 1), x(x) {
#pragma unroll
    for (int i = 0; i < 9; ++i) values[i] = i < 3 ? 0.0f : pixel(plane, image, y - 2 + i / 3, x - 1 + i % 3);
    down();
  }
  DEVICE void down() {
    ++y;
#pragma unroll
    for (int i = 0; i < 6; ++i) values[i] = values[i + 3];
#pragma unroll
    for (int l = 0; l < 3; ++l) values[6 + l] = pixel(plane, image, y + 1, x - 1 + l);
  }
};

// ---- One channel to many: φ(W ⋆ x + b), and W_res's data gradient ----

struct SpreadParameters {
  Plane x;
  int batch, channels;
  const float* weight;  // [channels, 9]
  bool flipped;
  const float* bias;  // [channels], optional
  float slope;
  void* y;  // [N, H, W, channels]
};

// A thread makes eight channels, whose 72 weights it keeps, of the pixels of a strip.
template <class T>
__global__ void __launch_bounds__(kThreads) spread_kernel(const __grid_constant__ SpreadParameters p) {
  const Strips strips(p.batch, p.x.height, p.x.width, p.channels);
  const int lane = threadIdx.x / strips.eights, channel = threadIdx.x % strips.eights * 8;
  if (lane >= strips.lanes) return;
  float weight[8][9], bias[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    bias[c] = p.bias != nullptr ? p.bias[channel + c] : 0.0f;
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) weight[c][tap] = p.weight[(channel + c) * 9 + (p.flipped ? 8 - tap : tap)];
  }
  for (int64_t number = blockIdx.x; number < strips.count; number += gridDim.x) {
    const Strip strip = strips.at(number, lane);
    if (strip.x >= p.x.width) continue;
    Neighbourhood near(p.x, strip.image, strip.y, strip.x);
    for (; near.y < strip.end; near.down()) {
      float values[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        values[c] = bias[c];
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) values[c] += weight[c][tap] * near.values[tap];
        values[c] *= values[c] > 0.0f ? 1.0f : p.slope;
      }
      const int64_t place = (int64_t{strip.image} * p.x.height + near.y) * p.x.width + strip.x;
      store_eight<T>(static_cast<typename Stored<T>::Element*>(p.y) + place * p.channels + channel, values);
    }
  }
}

static void spread(Type type, const SpreadParameters& p, cudaStream_t stream) {
  const int64_t strips = Strips(p.batch, p.x.height, p.x.width, p.channels).count;
  const int64_t most = 8 * device_attribute(cudaDevAttrMultiProcessorCount);
  const auto kernel = type == Type::kFloat32    ? spread_kernel<float>
                      : type == Type::kBFloat16 ? spread_kernel<BFloat16>
                                                : spread_kernel<Float16>;
  launch(kernel, dim3(unsigned(std::min(strips, most))), dim3(kThreads), 0, stream, p);
}

void image_conv(const ImageConv& c, cudaStream_t stream) {
  spread(c.type, {{c.x, c.size.height, c.size.width}, c.size.batch, c.out, c.weight, false, c.bias, c.slope, c.y},
         stream);
}

// ---- Sums over pixels of many channels times one: the weight gradients of both ----

struct CorrelateParameters {
  Plane x;
  int batch, channels;
  const void* map;    // [N, H, W, channels]
  const void* saved;  // [N, H, W, channels], optional: an activation whose signs say φ', which multiplies the map
  float slope;
  bool flipped;
  int taps;   // a channel of a row: 10 with the sum of the map itself, or 9
  int pitch;  // of the rows of sums
  float* sums;
};

// A thread sums eight channels × nine taps over the pixels of its strips; then those of the same channels are added in
// order.
template <class T>
__global__ void __launch_bounds__(kThreads) correlate_kernel(const __grid_constant__ CorrelateParameters p) {
  SHARED_MEMORY(smem);
  float* shared = reinterpret_cast<float*>(smem);  // [lanes, channels]
  const Strips strips(p.batch, p.x.height, p.x.width, p.channels);
  const int lane = threadIdx.x / strips.eights, channel = threadIdx.x % strips.eights * 8;
  const auto* map = static_cast<const typename Stored<T>::Element*>(p.map);
  const auto* saved = static_cast<const typename Stored<T>::Element*>(p.saved);
  float own[10][8] = {};
  for (int64_t number = blockIdx.x; number < strips.count && lane < strips.lanes; number += gridDim.x) {
    const Strip strip = strips.at(number, lane);
    if (strip.x >= p.x.width) continue;
    Neighbourhood near(p.x, strip.image, strip.y, strip.x);
    for (; near.y < strip.end; near.down()) {
      float values[8], activations[8];
      const int64_t place = (int64_t{strip.image} * p.x.height + near.y) * p.x.width + strip.x;
      load_eight<T>(map + place * p.channels + channel, values);
      if (saved != nullptr) load_eight<T>(saved + place * p.channels + channel, activations);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if (saved != nullptr) values[c] *= activations[c] > 0.0f ? 1.0f : p.slope;
#pragma unroll
        for (int tap = 0; tap < 9; ++tap) own[tap][c] += values[c] * near.values[tap];
        own[9][c] += values[c];
      }
    }
  }
#pragma unroll
  for (int tap = 0; tap < 10; ++tap) {
    if (tap >= p.taps) break;
    __syncthreads();
    if (lane < strips.lanes) {
#pragma unroll
      for (int c = 0; c < 8; ++c) shared[lane * p.channels + channel + c] = own[tap][c];
    }
    __syncthreads();
    const int place = p.flipped && tap < 9 ? 8 - tap : tap;
    for (int c = threadIdx.x; c < p.channels; c += kThreads) {
      float sum = 0.0f;
      for (int l = 0; l < strips.lanes; ++l) sum += shared[l * p.channels + c];
      p.sums[int64_t{blockIdx.x} * p.pitch + c * p.taps + place] = sum;
    }
  }
}

int image_sum_rows(Size size) {
  const int64_t most = 2 * device_attribute(cudaDevAttrMultiProcessorCount);
  return int(std::clamp<int64_t>(size.pixels() / 1024, 1, most));
}

static void correlate(Type type, const CorrelateParameters& p, int rows, cudaStream_t stream) {
  const auto kernel = type == Type::kFloat32    ? correlate_kernel<float>
                      : type == Type::kBFloat16 ? correlate_kernel<BFloat16>
                                                : correlate_kernel<Float16>;
  launch(kernel, dim3(rows), dim3(kThreads), kThreads * 8 * sizeof(float), stream, p);
}

void image_conv_weight_gradient(Type type, Size size, int out, const float* x, const void* grad, const void* y,
                                float slope, float* sums, cudaStream_t stream) {
  correlate(type, {{x, size.height, size.width}, size.batch, out, grad, y, slope, false, 10, 10 * out, sums},
            image_sum_rows(size), stream);
}

// ---- Residual head ----

struct HeadParameters {
  int batch, height, width, channels;  // of f
  int down, across;                    // tiles of an image
  const uint16_t* f;
  const float *image, *weight, *bias, *image_weight;
  float* y;
};

// Which products a lane's eight successive channels take part in: word 2·s + b of them is register b of step s.
template <class T>
DEVICE uint32_t head_matrix_word(const float* weight, int channel, int tap) {
  return tap < 9 ? pack<T>(weight[channel * 9 + tap], weight[channel * 9 + 9 + tap]) : 0u;
}

// K ⋆ᵀ I at pixel (y, x).
DEVICE float upsampled(const HeadParameters& p, int batch, int y, int x) {
  const Plane plane{p.image, p.height / 2, p.width / 2};
  float sum = 0.0f;
#pragma unroll
  for (int a = 0; a < 2; ++a)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int k = image_tap(y, a), l = image_tap(x, b);
      sum += p.image_weight[4 * k + l] * pixel(plane, batch, image_pixel(y, k), image_pixel(x, l));
    }
  return sum;
}

// A block makes 16×32 pixels. First a matrix product [pixels of the halo tile, channels] · [channels, 9 taps], the
// pixels read from memory straight into fragments, eight successive channels a lane; then each pixel adds up its nine
// neighbours' products.
template <class T>
__global__ void __launch_bounds__(kThreads) residual_head_kernel(const __grid_constant__ HeadParameters p) {
  SHARED_MEMORY(smem);
  float* products = reinterpret_cast<float*>(smem);  // [9, kHeadHalo]
  uint32_t* matrix =
      reinterpret_cast<uint32_t*>(products + 9 * kHeadHalo);  // [channels / 32, 32 lanes, step, n, register]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = (p.channels + 31) / 32;
  const int64_t tile = blockIdx.x;
  const int batch = int(tile / (p.down * p.across));
  const int top = int(tile / p.across % p.down) * kHeadHeight, left = int(tile % p.across) * kHeadWidth;

  for (int i = threadIdx.x; i < groups * 32 * 8; i += kThreads) {
    const HeadWord word(i);
    matrix[i] = word.channel < p.channels ? head_matrix_word<T>(p.weight, word.channel, word.tap) : 0u;
  }
  __syncthreads();

  for (int first = warp * 16; first < kHeadHalo; first += kThreads / 32 * 16) {
    const uint16_t* pixels[2];  // those of this lane's rows, or null
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int place = first + 8 * half + lane / 4;
      const int y = top - 1 + place / kHeadHaloWidth, x = left - 1 + place % kHeadHaloWidth;
      const bool inside = place < kHeadHalo && y >= 0 && y < p.height && x >= 0 && x < p.width;
      pixels[half] =
          inside ? p.f + ((int64_t{batch} * p.height + y) * p.width + x) * p.channels + lane % 4 * 8 : nullptr;
    }
    float sums[2][4] = {};
#pragma unroll 2
    for (int g = 0; g < groups; ++g) {
      const bool some = g * 32 + lane % 4 * 8 < p.channels;
      uint4 row[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        row[half] = some && pixels[half] != nullptr ? load_16(pixels[half] + g * 32) : make_uint4(0, 0, 0, 0);
      const uint4* words = reinterpret_cast<const uint4*>(matrix + (g * 32 + lane) * 8);
      const uint4 step[2] = {words[0], words[1]};
      const uint32_t a[2][4] = {{row[0].x, row[1].x, row[0].y, row[1].y}, {row[0].z, row[1].z, row[0].w, row[1].w}};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t taps[2] = {step[s].x, step[s].y}, last[2] = {step[s].z, step[s].w};
        mma_m16n8k16<T>(sums[0], a[s], taps);
        mma_m16n8k16<T>(sums[1], a[s], last);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place = first + 8 * (i / 2) + lane / 4, tap = lane % 4 * 2 + i % 2;
      if (place >= kHeadHalo) continue;
      products[tap * kHeadHalo + place] = sums[0][i];
      if (tap == 0) products[8 * kHeadHalo + place] = sums[1][i];
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < kHeadHeight * kHeadWidth; i += kThreads) {
    const int row = i / kHeadWidth, column = i % kHeadWidth, y = top + row, x = left + column;
    if (y >= p.height || x >= p.width) continue;
    float value = *p.bias + upsampled(p, batch, y, x);
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
      value += products[tap * kHeadHalo + (row + tap / 3) * kHeadHaloWidth + column + tap % 3];
    p.y[(int64_t{batch} * p.height + y) * p.width + x] = value;
  }
}

void residual_head(const ResidualHead& h, cudaStream_t stream) {
  const int height = 2 * h.size.height, width = 2 * h.size.width;
  const int down = (height + kHeadHeight - 1) / kHeadHeight, across = (width + kHeadWidth - 1) / kHeadWidth;
  const HeadParameters p{h.size.batch, height,  width,    h.channels, down,           across,
                         halves(h.f),  h.image, h.weight, h.bias,     h.image_weight, h.y};
  const size_t bytes = 9 * kHeadHalo * sizeof(float) + (h.channels + 31) / 32 * 32 * 8 * sizeof(uint32_t);
  launch(h.type == Type::kBFloat16 ? residual_head_kernel<BFloat16> : residual_head_kernel<Float16>,
         dim3(unsigned(h.size.batch * down * across)), dim3(kThreads), bytes, stream, p);
}

// ---- The image's side of the residual head's gradient ----

struct ImageGradientParameters {
  Plane image, grad;
  int batch;
  const float* weight;
  float* grad_image;  // optional
  float* sums;        // of b_res and K, optional
  int pitch;          // of the rows of sums
};

// A thread takes pixels of the image: each meets 4×4 pixels of the gradient, four of them its own.
__global__ void __launch_bounds__(kThreads) image_gradient_kernel(const __grid_constant__ ImageGradientParameters p) {
  SHARED_MEMORY(smem);
  float* shared = reinterpret_cast<float*>(smem);  // [17, warps]
  const int64_t pixels = int64_t{p.batch} * p.image.height * p.image.width;
  float own[17] = {};
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < pixels; i += int64_t{gridDim.x} * kThreads) {
    const int x = int(i % p.image.width), y = int(i / p.image.width % p.image.height);
    const int batch = int(i / p.image.width / p.image.height);
    const float value = p.image.data[i];
    float sum = 0.0f;
#pragma unroll
    for (int tap = 0; tap < 16; ++tap) {
      const float grad = pixel(p.grad, batch, 2 * y + tap / 4 - 1, 2 * x + tap % 4 - 1);
      sum += p.weight[tap] * grad;
      own[1 + tap] += value * grad;
      if (tap / 4 % 3 != 0 && tap % 4 % 3 != 0) own[0] += grad;
    }
    if (p.grad_image != nullptr) p.grad_image[i] = sum;
  }
  if (p.sums == nullptr) return;
#pragma unroll
  for (int s = 0; s < 17; ++s) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) own[s] += __shfl_xor_sync(0xffffffff, own[s], apart);
    if (threadIdx.x % 32 == 0) shared[s * (kThreads / 32) + threadIdx.x / 32] = own[s];
  }
  __syncthreads();
  if (threadIdx.x >= 17) return;
  float sum = 0.0f;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += shared[threadIdx.x * (kThreads / 32) + warp];
  p.sums[int64_t{blockIdx.x} * p.pitch + threadIdx.x] = sum;
}

void residual_head_gradient(const ResidualHeadGradient& g, cudaStream_t stream) {
  const Size large{g.size.batch, 2 * g.size.height, 2 * g.size.width};
  const Plane grad{g.grad, large.height, large.width};
  const int rows = image_sum_rows(large), pitch = 9 * g.channels + 1 + 16;
  if (g.grad_f != nullptr)
    spread(g.type, {grad, g.size.batch, g.channels, g.weight, true, nullptr, 1.0f, g.grad_f}, stream);
  if (g.sums != nullptr)
    correlate(g.type, {grad, g.size.batch, g.channels, g.f, nullptr, 1.0f, true, 9, pitch, g.sums}, rows, stream);
  if (g.grad_image == nullptr && g.sums == nullptr) return;
  const ImageGradientParameters p{{g.image, g.size.height, g.size.width},
                                  grad,
                                  g.size.batch,
                                  g.image_weight,
                                  g.grad_image,
                                  g.sums != nullptr ? g.sums + 9 * g.channels : nullptr,
                                  pitch};
  launch(image_gradient_kernel, dim3(rows), dim3(kThreads), 17 * (kThreads / 32) * sizeof(float), stream, p);
}

}  // namespace cmslap::cuda
