// I' = K ⋆ᵀ I + (W_res ⋆ f + b_res).
#pragma once

#include "conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

// K ⋆ᵀ I (4×4, stride 2, padding 1) meets two pixels a dimension: tap[p][n] of neighbour kNeighbour[p][n], for the
// output's parity p.
constexpr int64_t kImageTap[2][2] = {{1, 3}, {2, 0}};
constexpr int64_t kImageNeighbour[2][2] = {{0, -1}, {0, 1}};

// body(index of the image's pixel, tap of K) for the pixels that output pixel (y, x) is made of.
template <class Body>
CMSLAP_INLINE void for_image_taps(Size size, int64_t image, int64_t y, int64_t x, Body&& body) {
  for (int n = 0; n < 2; ++n) {
    const int64_t i = y / 2 + kImageNeighbour[y % 2][n];
    if (i < 0 || i >= size.height) continue;
    for (int m = 0; m < 2; ++m) {
      const int64_t j = x / 2 + kImageNeighbour[x % 2][m];
      if (j < 0 || j >= size.width) continue;
      body((image * size.height + i) * size.width + j, kImageTap[y % 2][n] * 4 + kImageTap[x % 2][m]);
    }
  }
}

CMSLAP_INLINE float upsampled_pixel(const ResidualHead& head, Size size, const float* images, int64_t image, int64_t y,
                                    int64_t x) {
  float sum = 0;
  for_image_taps(size, image, y, x, [&](int64_t pixel, int64_t tap) { sum += images[pixel] * head.image_weight[tap]; });
  return sum;
}

template <class Number>
void residual_head(const ResidualHead& head, Size size, const Number* f, const float* image, float* out) {
  ThreadPool pool;
  const Size fine = doubled(size);
  conv_to_one(pool, f, fine, WeightView::plain(head.weight, head.channels, 1),
              [&](int64_t n, int64_t y, int64_t x, float sum) {
                out[(n * fine.height + y) * fine.width + x] =
                    upsampled_pixel(head, size, image, n, y, x) + (sum + head.bias[0]);
              });
}

inline void residual_head_backward(const ResidualHead& head, Size size, const float* f, const float* image,
                                   const float* grad_out, float* grad_f, float* grad_image, float* grad_weight,
                                   float* grad_bias, float* grad_image_weight) {
  ThreadPool pool;
  const Size fine = doubled(size);
  const WeightView weight = WeightView::plain(head.weight, head.channels, 1).transposed().flipped();
  direct_conv(pool, grad_out, fine, pack_taps(pool, weight), Differentiate{nullptr, nullptr, 1.0f}, grad_f);
  direct_weight_gradient(pool, f, fine, head.channels, grad_out, 1, grad_weight);

  // The image has one channel: two plain passes over it, not worth threads of their own.
  double bias = 0, taps[16] = {};
  std::memset(grad_image, 0, size.pixels() * sizeof(float));
  const float* gradient = grad_out;
  for (int64_t n = 0; n < fine.batch; ++n)
    for (int64_t y = 0; y < fine.height; ++y)
      for (int64_t x = 0; x < fine.width; ++x, ++gradient) {
        bias += *gradient;
        for_image_taps(size, n, y, x, [&](int64_t pixel, int64_t tap) {
          grad_image[pixel] += *gradient * head.image_weight[tap];
          taps[tap] += double(*gradient) * image[pixel];
        });
      }
  grad_bias[0] += static_cast<float>(bias);
  for (int tap = 0; tap < 16; ++tap) grad_image_weight[tap] += static_cast<float>(taps[tap]);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
