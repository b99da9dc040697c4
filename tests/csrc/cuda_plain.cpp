// The launchers of csrc/cuda/kernels.h as plain loops on the CPU: what the operations of csrc/cuda/level.cpp are tested with
// apart from the kernels.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

#include "cuda/kernels.h"

namespace cmslap::cuda {
namespace {

constexpr int kRows = 3;  // into which every sum is split
constexpr int kSplits = 2;

// 16-bit numbers.
struct Values {
  Type type;
  void* data;

  Values(Type type, const void* data) : type(type), data(const_cast<void*>(data)) {}
  explicit operator bool() const { return data; }
  float operator[](int64_t i) const {
    if (type == Type::kBFloat16) return static_cast<c10::BFloat16*>(data)[i];
    return static_cast<c10::Half*>(data)[i];
  }
  void set(int64_t i, float value) const {
    if (type == Type::kBFloat16)
      static_cast<c10::BFloat16*>(data)[i] = value;
    else
      static_cast<c10::Half*>(data)[i] = value;
  }
};

// Element (n, i, j, c) of [N, H, W, C], or -1 outside.
int64_t at(Size size, int channels, int n, int i, int j, int c) {
  if (i < 0 || i >= size.height || j < 0 || j >= size.width) return -1;
  return ((int64_t{n} * size.height + i) * size.width + j) * channels + c;
}

Size doubled(Size size) { return {size.batch, 2 * size.height, 2 * size.width}; }

template <class Body>
void each_pixel(Size size, Body body) {
  for (int n = 0; n < size.batch; ++n)
    for (int i = 0; i < size.height; ++i)
      for (int j = 0; j < size.width; ++j) body(n, i, j);
}

float activated(float value, float slope) { return value > 0 ? value : slope * value; }
float derivative(float saved, float slope) { return saved > 0 ? 1.0f : slope; }

// Rows of sums over the pixels of a map, pixel p in row p % kRows.
void sum_rows(const Values& map, int64_t pixels, int channels, float* sums) {
  std::fill_n(sums, kRows * channels, 0.0f);
  for (int64_t p = 0; p < pixels; ++p)
    for (int c = 0; c < channels; ++c) sums[p % kRows * channels + c] += map[p * channels + c];
}

// Everything in the first row, nothing in the others.
void only_row(const std::vector<float>& sum, float* sums) {
  std::fill_n(sums, kRows * sum.size(), 0.0f);
  std::copy(sum.begin(), sum.end(), sums);
}

}  // namespace

void pack_kernels(Type type, const void* weights, int count, int out, int in, void* rows, void* columns, cudaStream_t) {
  const Values w(type, weights), r(type, rows), c(type, columns);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i)
        for (int64_t tap = 0; tap < 9; ++tap) {
          const float value = w[((k * out + o) * in + i) * 9 + tap];
          if (r) r.set(((k * 9 + tap) * out + o) * in + i, value);
          if (c) c.set(((k * 9 + tap) * in + i) * out + o, value);
        }
}

void conv(const Conv& op, cudaStream_t) {
  const Values x(op.type, op.x), w(op.type, op.matrices), skip(op.type, op.skip), saved(op.type, op.saved), y(op.type, op.y),
      total(op.type, op.total);
  std::vector<float> sum(op.out);
  each_pixel(op.size, [&](int n, int i, int j) {
    for (int o = 0; o < op.out; ++o) {
      float value = op.bias ? op.bias[o] : 0.0f;
      for (int tap = 0; tap < 9; ++tap)
        for (int c = 0; c < op.in; ++c) {
          const int64_t from = at(op.size, op.in, n, i + tap / 3 - 1, j + tap % 3 - 1, c);
          if (from >= 0) value += x[from] * w[(int64_t{op.flipped ? 8 - tap : tap} * op.out + o) * op.in + c];
        }
      const int64_t to = at(op.size, op.out, n, i, j, o);
      if (saved)
        value *= derivative(saved[to], op.slope);
      else
        value = activated(value + (skip ? skip[to] : 0.0f), op.slope);
      if (y) y.set(to, value);
      if (total) total.set(to, value + skip[to]);
      sum[o] += value;
    }
  });
  if (op.sums) only_row(sum, op.sums);
}
int conv_sum_rows(const Conv&) { return kRows; }

void transposed_conv(const TransposedConv& op, cudaStream_t) {
  const Values a(op.type, op.a), w(op.type, op.matrices), y(op.type, op.y);
  const Size large = doubled(op.size);
  each_pixel(large, [&](int n, int i, int j) {
    for (int o = 0; o < op.out; ++o) {
      float value = op.bias ? op.bias[o] : 0.0f;
      for (int tap = 0; tap < 9; ++tap)
        for (int c = 0; c < op.in; ++c) {
          const int row = i - tap / 3, column = j - tap % 3;
          if (row % 2 || column % 2) continue;
          const int64_t from = at(op.size, op.in, n, row / 2, column / 2, c);
          if (from >= 0) value += a[from] * w[(int64_t{tap} * op.out + o) * op.in + c];
        }
      y.set(at(large, op.out, n, i, j, o), value);
    }
  });
}

void transposed_conv_gradient(const TransposedConvGradient& op, cudaStream_t) {
  const Values grad(op.type, op.grad), w(op.type, op.matrices), saved(op.type, op.saved), y(op.type, op.y);
  std::vector<float> sum(op.in);
  each_pixel(op.size, [&](int n, int i, int j) {
    for (int c = 0; c < op.in; ++c) {
      float value = 0.0f;
      for (int tap = 0; tap < 9; ++tap)
        for (int o = 0; o < op.out; ++o) {
          const int64_t from = at(doubled(op.size), op.out, n, 2 * i + tap / 3, 2 * j + tap % 3, o);
          if (from >= 0) value += grad[from] * w[(int64_t{tap} * op.in + c) * op.out + o];
        }
      const int64_t to = at(op.size, op.in, n, i, j, c);
      if (saved) value *= derivative(saved[to], op.slope);
      y.set(to, value);
      sum[c] += value;
    }
  });
  if (op.sums) only_row(sum, op.sums);
}
int transposed_conv_gradient_sum_rows(const TransposedConvGradient&) { return kRows; }

void weight_gradient(const WeightGradient& op, cudaStream_t) {
  const int64_t matrix = int64_t{op.rows} * op.columns, padding = op.stride == 1;
  const Size right_size = op.stride == 1 ? op.size : doubled(op.size);
  if (!op.accumulate) std::fill_n(op.partials, op.splits * op.maps * 9 * matrix, 0.0f);
  for (int map = 0; map < op.maps; ++map) {
    const Values left(op.type, static_cast<const char*>(op.left) + 2 * map * op.size.pixels() * op.rows),
        right(op.type, static_cast<const char*>(op.right) + 2 * map * right_size.pixels() * op.columns);
    each_pixel(op.size, [&](int n, int i, int j) {
      float* partials = op.partials + ((i + j) % op.splits * op.maps + map) * 9 * matrix;
      for (int tap = 0; tap < 9; ++tap)
        for (int row = 0; row < op.rows; ++row)
          for (int column = 0; column < op.columns; ++column) {
            const int64_t from = at(right_size, op.columns, n, op.stride * i + tap / 3 - padding,
                                    op.stride * j + tap % 3 - padding, column);
            if (from >= 0)
              partials[tap * matrix + row * op.columns + column] += left[at(op.size, op.rows, n, i, j, row)] * right[from];
          }
    });
  }
}
int weight_gradient_splits(const WeightGradient&) { return kSplits; }

void reduce_weight_gradient(const float* partials, int splits, int maps, int rows, int columns, float* grad, cudaStream_t) {
  const int64_t matrix = int64_t{rows} * columns;
  for (int64_t split = 0; split < splits; ++split)
    for (int64_t map = 0; map < maps; ++map)
      for (int64_t tap = 0; tap < 9; ++tap)
        for (int64_t k = 0; k < matrix; ++k)
          grad[(map * matrix + k) * 9 + tap] += partials[((split * maps + map) * 9 + tap) * matrix + k];
}

void activate(Type type, const void* x, int64_t elements, float slope, void* y, cudaStream_t) {
  for (int64_t i = 0; i < elements; ++i) Values(type, y).set(i, activated(Values(type, x)[i], slope));
}

void differentiate(Type type, const void* grad, const void* saved, int64_t elements, float slope, void* y, cudaStream_t) {
  for (int64_t i = 0; i < elements; ++i)
    Values(type, y).set(i, Values(type, grad)[i] * derivative(Values(type, saved)[i], slope));
}

void sum_pixels(Type type, const void* map, int64_t pixels, int channels, float* sums, cudaStream_t) {
  sum_rows({type, map}, pixels, channels, sums);
}
int pixel_sum_rows(int64_t, int) { return kRows; }

void reduce_rows(const float* sums, int rows, int columns, float* out, cudaStream_t) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < columns; ++i) out[i] += sums[row * columns + i];
}

void picture_conv(const PictureConv& op, cudaStream_t) {
  const Values x(op.type, op.x), y(op.type, op.y);
  each_pixel(op.size, [&](int n, int i, int j) {
    for (int o = 0; o < op.out; ++o) {
      float value = op.bias ? op.bias[o] : 0.0f;
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t from = at(op.size, 1, n, i + tap / 3 - 1, j + tap % 3 - 1, 0);
        if (from >= 0) value += x[from] * op.weight[o * 9 + tap];
      }
      y.set(at(op.size, op.out, n, i, j, o), activated(value, op.slope));
    }
  });
}

void picture_conv_weight_gradient(Type type, Size size, int out, const void* x_data, const void* grad_data, float* sums,
                                  cudaStream_t) {
  const Values x(type, x_data), grad(type, grad_data);
  std::vector<float> sum(out * 10);
  each_pixel(size, [&](int n, int i, int j) {
    for (int o = 0; o < out; ++o) {
      const float g = grad[at(size, out, n, i, j, o)];
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t from = at(size, 1, n, i + tap / 3 - 1, j + tap % 3 - 1, 0);
        if (from >= 0) sum[o * 10 + tap] += g * x[from];
      }
      sum[o * 10 + 9] += g;
    }
  });
  only_row(sum, sums);
}
int picture_sum_rows(Size) { return kRows; }

void residual_head(const ResidualHead& op, cudaStream_t) {
  const Values f(op.type, op.f), image(op.type, op.image), y(op.type, op.y);
  const Size large = doubled(op.size);
  each_pixel(large, [&](int n, int i, int j) {
    float value = op.bias[0];
    for (int tap = 0; tap < 9; ++tap)
      for (int c = 0; c < op.channels; ++c) {
        const int64_t from = at(large, op.channels, n, i + tap / 3 - 1, j + tap % 3 - 1, c);
        if (from >= 0) value += f[from] * op.weight[c * 9 + tap];
      }
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 4; ++l) {
        const int row = i + 1 - k, column = j + 1 - l;
        const int64_t from = row % 2 || column % 2 ? -1 : at(op.size, 1, n, row / 2, column / 2, 0);
        if (from >= 0) value += image[from] * op.image_weight[k * 4 + l];
      }
    y.set(at(large, 1, n, i, j, 0), value);
  });
}

void residual_head_gradient(const ResidualHeadGradient& op, cudaStream_t) {
  const Values f(op.type, op.f), image(op.type, op.image), grad(op.type, op.grad), grad_f(op.type, op.grad_f),
      grad_image(op.type, op.grad_image);
  const Size large = doubled(op.size);
  std::vector<float> sum(op.channels * 9 + 17);
  each_pixel(large, [&](int n, int i, int j) {
    const float g = grad[at(large, 1, n, i, j, 0)];
    for (int c = 0; c < op.channels; ++c) {
      float value = 0.0f;
      for (int tap = 0; tap < 9; ++tap) {
        const int64_t from = at(large, 1, n, i - tap / 3 + 1, j - tap % 3 + 1, 0);
        if (from >= 0) value += grad[from] * op.weight[c * 9 + tap];
        const int64_t read = at(large, op.channels, n, i + tap / 3 - 1, j + tap % 3 - 1, c);
        if (read >= 0) sum[c * 9 + tap] += g * f[read];
      }
      if (grad_f) grad_f.set(at(large, op.channels, n, i, j, c), value);
    }
    sum[op.channels * 9] += g;
  });
  each_pixel(op.size, [&](int n, int i, int j) {
    float value = 0.0f;
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 4; ++l) {
        const int64_t to = at(large, 1, n, 2 * i + k - 1, 2 * j + l - 1, 0);
        if (to < 0) continue;
        value += grad[to] * op.image_weight[k * 4 + l];
        sum[op.channels * 9 + 1 + k * 4 + l] += grad[to] * image[at(op.size, 1, n, i, j, 0)];
      }
    if (grad_image) grad_image.set(at(op.size, 1, n, i, j, 0), value);
  });
  if (op.sums) only_row(sum, op.sums);
}

}  // namespace cmslap::cuda
