// The last level at inference: U and W_res folded into one transposed convolution, 64 → 1 channels, 5×5, stride 2.
//
// Nothing lies between them but a bias, so  W_res ⋆ (U(a) + b_u) = Σ E[k - m] a  with  E[s] = Σ_{k-m=s} W[k] W_res[m],
// s = -1 … 3, a dimension. The features at twice the resolution, four times the largest image otherwise alive, never
// exist. At the border:
// - outside the features are zero, so b_u reaches the output only through the taps of W_res that lie inside;
// - U crops what tap k = 2 of the last row makes, so that row (and column, and corner) has a folded weight without it.
#pragma once

#include "level.h"
#include "residual_head.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int64_t kFold = 5;
constexpr int64_t kBandRows = 8, kBandColumns = 64;  // pixels of `a` a worker folds at once

class FoldedUpsampling {
 public:
  FoldedUpsampling(ThreadPool& pool, const Upsampling& up, const ResidualHead& head)
      : weights_(4, up.in, kFold * kFold) {
    for_blocks(pool, up.in, 0, [&](int64_t i, float*) { fold(up, head, i); });
    for (int row = 0; row < 3; ++row)
      for (int column = 0; column < 3; ++column) bias_[row][column] = fold_bias(up, head, row, column);
  }

  // [25] products of a pixel with the folded weight; pixels of the last row and column have their own.
  MatrixB<float> weight(bool last_row, bool last_column) const { return weights_.matrix(2 * last_row + last_column); }

  // The bias of output pixel (y, x): its row is the first, an inner or the last one, its column likewise.
  float bias(Size fine, int64_t y, int64_t x) const { return bias_[place(y, fine.height)][place(x, fine.width)]; }

 private:
  static int place(int64_t y, int64_t height) { return y == 0 ? 0 : y == height - 1 ? 2 : 1; }

  void fold(const Upsampling& up, const ResidualHead& head, int64_t i) {
    for (int last_row = 0; last_row < 2; ++last_row)
      for (int last_column = 0; last_column < 2; ++last_column) {
        double folded[kPanel > 25 ? kPanel : 25 + kPanel] = {};
        for (int k = 0; k < 3 - last_row; ++k)
          for (int l = 0; l < 3 - last_column; ++l)
            for (int m = 0; m < 3; ++m)
              for (int n = 0; n < 3; ++n)
                for (int64_t o = 0; o < up.out; ++o)
                  folded[(k - m + 2) * kFold + l - n + 2] +=
                      double(up.weight[(i * up.out + o) * 9 + 3 * k + l]) * head.weight[o * 9 + 3 * m + n];
        for (int64_t tap = 0; tap < padded(kFold * kFold); ++tap)
          *weights_.at(2 * last_row + last_column, i, tap) = static_cast<float>(folded[tap]);
      }
  }

  static float fold_bias(const Upsampling& up, const ResidualHead& head, int row, int column) {
    double bias = head.bias[0];
    for (int m = row == 0; m < 3 - (row == 2); ++m)
      for (int n = column == 0; n < 3 - (column == 2); ++n)
        for (int64_t o = 0; o < up.out && up.bias; ++o) bias += double(up.bias[o]) * head.weight[o * 9 + 3 * m + n];
    return static_cast<float>(bias);
  }

  PackedWeight<float> weights_;
  float bias_[3][3];
};

// Products of a band of pixels and a margin of one around it; outside the image they are zero.
struct BandProducts {
  float* data;
  static constexpr int64_t kPitch = (kFold * kFold + kLanes - 1) / kLanes * kLanes;
  static constexpr int64_t kFloats = (kBandRows + 2) * (kBandColumns + 2) * kPitch;

  // Of pixel (i, j), counted from the band's first.
  float* at(int64_t i, int64_t j) const { return data + ((i + 1) * (kBandColumns + 2) + j + 1) * kPitch; }
};

// A row of a band in float32: its few products need no faster ones.
inline MatrixA<float> band_row(const float* row, int64_t, int64_t channels, float*) { return {row, channels, 1}; }
#ifdef CMSLAP_BFLOAT16
inline MatrixA<float> band_row(const BFloat16* row, int64_t width, int64_t channels, float* to) {
  for_channels(width * channels, [&](int64_t i, auto part) { store(to + i, load(row + i, part), part); });
  return {to, channels, 1};
}
#endif

template <class Number>
void multiply_band(const FoldedUpsampling& folded, const Number* a, Size size, int64_t channels, int64_t image,
                   int64_t y, int64_t x, const BandProducts& products, float* scratch) {
  std::memset(products.data, 0, BandProducts::kFloats * sizeof(float));
  const int64_t first = max(x - 1, 0), end = min(x + kBandColumns + 1, size.width);
  for (int64_t i = max(y - 1, 0); i < min(y + kBandRows + 1, size.height); ++i) {
    const Number* pixels = a + ((image * size.height + i) * size.width + first) * channels;
    const MatrixA<float> row = band_row(pixels, end - first, channels, scratch);
    const bool last_row = i == size.height - 1;
    const int64_t inner = min(end, size.width - 1) - first;
    gemm(row, folded.weight(last_row, false), {products.at(i - y, first - x), BandProducts::kPitch}, inner,
         kFold * kFold, channels, false);
    if (end == size.width)
      gemm({row.data + inner * channels, channels, 1}, folded.weight(last_row, true),
           {products.at(i - y, end - 1 - x), BandProducts::kPitch}, 1, kFold * kFold, channels, false);
  }
}

// Σ over the products that reach output pixel (2i + p, 2j + q): those of pixel i - before, tap s = p + 2 before.
CMSLAP_INLINE float gather(const BandProducts& products, int64_t i, int64_t j, int64_t p, int64_t q) {
  float sum = 0;
  for (int64_t before_i = -p; before_i < 2; ++before_i)
    for (int64_t before_j = -q; before_j < 2; ++before_j)
      sum += products.at(i - before_i, j - before_j)[(p + 2 * before_i + 1) * kFold + q + 2 * before_j + 1];
  return sum;
}

template <class Number>
void last_level(const Embedding& op, const Upsampling& up, const ResidualHead& head, Size size, const Number* u,
                const float* image, float* out) {
  ThreadPool pool;
  const Array<Number> a(size.pixels() * op.channels);
  embedding_forward(pool, op, size, u, Activations<Number>(op, size, nullptr, a.data()));

  const FoldedUpsampling folded(pool, up, head);
  const Size fine = doubled(size);
  const int64_t bands = ceil_div(size.height, kBandRows), columns = ceil_div(size.width, kBandColumns);
  const int64_t row_floats = (kBandColumns + 2) * op.channels;
  for_blocks(pool, size.batch * bands * columns, BandProducts::kFloats + row_floats,
             [&](int64_t block, float* scratch) {
               const int64_t n = block / (bands * columns);
               const int64_t y = block / columns % bands * kBandRows, x = block % columns * kBandColumns;
               const BandProducts products{scratch};
               multiply_band(folded, a.data(), size, op.channels, n, y, x, products, scratch + BandProducts::kFloats);
               for (int64_t v = 2 * y; v < 2 * min(y + kBandRows, size.height); ++v)
                 for (int64_t w = 2 * x; w < 2 * min(x + kBandColumns, size.width); ++w)
                   out[(n * fine.height + v) * fine.width + w] = upsampled_pixel(head, size, image, n, v, w) +
                                                                 folded.bias(fine, v, w) +
                                                                 gather(products, v / 2 - y, w / 2 - x, v % 2, w % 2);
             });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
