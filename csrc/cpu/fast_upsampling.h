// The upsampling U, phase by phase: what a tile's outputs with even or odd rows and columns are made of.
#pragma once

#include "fast_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int kPhaseMatrices = 36;  // weights of all phases

// Rows and columns are TwoTaps or OneTap. A point's row and column number either its weight or, where there is one
// weight for all, a copy: the copies of all tiles are the rows of one matrix.
template <class RowScheme, class ColumnScheme, int kMatricesBefore>
struct Phase {
  using Rows = RowScheme;
  using Columns = ColumnScheme;
  static constexpr int kMatrices = Rows::kWeights * Columns::kWeights, kFirstMatrix = kMatricesBefore;
  static constexpr int kPoints = Rows::kPoints * Columns::kPoints;
  static constexpr int kCopies = kPoints / kMatrices;
  static constexpr bool kLast = kFirstMatrix + kMatrices == kPhaseMatrices;

  static constexpr int matrix(int p, int q) { return p % Rows::kWeights * Columns::kWeights + q % Columns::kWeights; }
  static constexpr int copy(int p, int q) {
    return p / Rows::kWeights * (Columns::kPoints / Columns::kWeights) + q / Columns::kWeights;
  }
};

using EvenEven = Phase<TwoTaps, TwoTaps, 0>;
using EvenOdd = Phase<TwoTaps, OneTap, 25>;
using OddEven = Phase<OneTap, TwoTaps, 30>;
using OddOdd = Phase<OneTap, OneTap, 35>;
constexpr int kPhaseSide = 4;  // pixels of the smaller image a tile is wide

template <class Body>
CMSLAP_INLINE void for_phases(Body&& body) {
  body(EvenEven{});
  body(EvenOdd{});
  body(OddEven{});
  body(OddOdd{});
}

struct PhaseGrid {
  int64_t batch, rows, columns;

  explicit PhaseGrid(Size coarse)
      : batch(coarse.batch), rows(ceil_div(coarse.height, kPhaseSide)), columns(ceil_div(coarse.width, kPhaseSide)) {}
  int64_t tiles() const { return batch * rows * columns; }
  Square coarse(int64_t tile) const {
    return {tile / (rows * columns), tile / columns % rows * kPhaseSide, tile % columns * kPhaseSide};
  }
  Square fine(int64_t tile) const {
    const Square square = coarse(tile);
    return {square.image, 2 * square.y, 2 * square.x};
  }
};

// The transformed tiles of one phase.
template <class P>
TransformedTiles<> phase_tiles(float* data, int64_t tiles, int64_t channels) {
  return {data, tiles * P::kCopies, channels};
}
// Where point (p, q) of a tile lies behind its first one.
template <class P>
CMSLAP_INLINE int64_t point(const TransformedTiles<>& tiles, int p, int q) {
  return P::matrix(p, q) * tiles.matrix_stride + P::copy(p, q) * tiles.row_stride;
}
inline int64_t phase_floats(int64_t tiles, int64_t channels) {  // of the largest one
  return EvenEven::kPoints * (tiles * padded(channels) + kLanes);
}

// The taps of a correlation's weight at every point, phase after phase.
inline PackedWeight<float> pack_phases(ThreadPool& pool, WeightView weight) {
  PackedWeight<float> packed(kPhaseMatrices, weight.in, weight.out);
  for_blocks(pool, weight.in, 0, [&](int64_t i, float*) {
    for (int64_t o = 0; o < weight.out; o += kLanes)
      for_phases([&](auto phase) {
        using P = decltype(phase);
        using R = typename P::Rows;
        using C = typename P::Columns;
        transform_2d<R::kTaps, R::kWeights, R::weight, C::kTaps, C::kWeights, C::weight>(
            [&](int k, int l) { return weight.tap(3 * R::kTap[k] + C::kTap[l], i, o); },
            [&](int p, int q, Vec u) { store(packed.at(P::kFirstMatrix + P::matrix(p, q), i, o), u); });
      });
  });
  return packed;
}

template <class P>
using PhaseWindow = Pixels<P::Rows::kWindow, P::Columns::kWindow>;
using CoarseTile = Pixels<kPhaseSide>;

template <class P>
CMSLAP_TRANSFORM void transform_phase(const PhaseWindow<P>& window, int64_t channels, TransformedTiles<> to,
                                      int64_t tile) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
    float* first = to.at(0, tile * P::kCopies) + c;
    transform_2d<R::kWindow, R::kPoints, R::input, C::kWindow, C::kPoints, C::input>(
        [&](int i, int j) CMSLAP_ALWAYS_INLINE { return load(window.at[i][j] + c, part); },
        [&](int p, int q, Vec v) CMSLAP_ALWAYS_INLINE { store(first + point<P>(to, p, q), v); });
  });
}

template <class P>
CMSLAP_TRANSFORM void transform_phase_gradient(const CoarseTile& pixels, int64_t channels, TransformedTiles<> to,
                                               int64_t tile) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
    float* first = to.at(0, tile * P::kCopies) + c;
    transform_2d<kPhaseSide, R::kPoints, R::output_gradient, kPhaseSide, C::kPoints, C::output_gradient>(
        [&](int i, int j) CMSLAP_ALWAYS_INLINE { return load(pixels.at[i][j] + c, part); },
        [&](int p, int q, Vec m) CMSLAP_ALWAYS_INLINE { store(first + point<P>(to, p, q), m); });
  });
}

// store_pixel(i, j, value, c, part) for the 4×4 outputs of one tile and phase.
template <class P, class StorePixel>
CMSLAP_TRANSFORM void store_phase(TransformedTiles<> products, int64_t tile, int64_t channels, StorePixel store_pixel) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
    const float* first = products.at(0, tile * P::kCopies) + c;
    transform_2d<R::kPoints, kPhaseSide, R::output, C::kPoints, kPhaseSide, C::output>(
        [&](int p, int q) CMSLAP_ALWAYS_INLINE { return load(first + point<P>(products, p, q)); },
        [&](int i, int j, Vec value) CMSLAP_ALWAYS_INLINE { store_pixel(i, j, value, c, part); });
  });
}

// How many tiles a worker takes through all phases at once, so that they stay in L2.
inline int64_t phase_group(int64_t floats_a_tile) {
  constexpr int64_t kGroupFloats = 100 << 10;
  return max(kStrip, kGroupFloats / floats_a_tile / kStrip * kStrip);
}

// U's weight [in, out, 3, 3] is that of the stride-2 correlation, from f to a, whose transpose U is.
inline WeightView upsampling_weight(const Upsampling& op) { return WeightView::plain(op.weight, op.out, op.in); }

#ifdef CMSLAP_BFLOAT16
inline void upsampling(ThreadPool& pool, const Upsampling& op, Size size, const BFloat16* a, BFloat16* f) {
  const PackedWeight weight = pack_weight<Doubling, BFloat16>(pool, upsampling_weight(op).transposed());
  run_blocks(pool, fast_conv<Doubling>(pool.size(), a, size, weight, Activate<BFloat16>{op.bias, nullptr, 1.0f}, f));
}
#endif

inline void upsampling(ThreadPool& pool, const Upsampling& op, Size size, const float* a, float* f) {
  const PackedWeight<float> weight = pack_phases(pool, upsampling_weight(op).transposed().flipped());
  const PhaseGrid grid(size);
  const int64_t fitting = phase_group(EvenEven::kPoints * (padded(op.in) + padded(op.out)));
  const int64_t groups = ceil_div(ceil_div(grid.tiles(), fitting), pool.size()) * pool.size();
  const int64_t most = ceil_div(grid.tiles(), groups);  // tiles in a group
  const int64_t input_floats = phase_floats(most, op.in), product_floats = phase_floats(most, op.out);
  const bool streamed = is_streamed(f, doubled(size), op.out);

  for_blocks(pool, groups, input_floats + product_floats + op.in, [&](int64_t group, float* scratch) {
    float* zeros = scratch + input_floats + product_floats;
    std::memset(zeros, 0, op.in * sizeof(float));
    const int64_t first = group * grid.tiles() / groups, count = (group + 1) * grid.tiles() / groups - first;
    for_phases([&](auto phase) {
      using P = decltype(phase);
      constexpr int64_t kOddRow = P::Rows::kOffset, kOddColumn = P::Columns::kOffset;
      const TransformedTiles<> inputs = phase_tiles<P>(scratch, count, op.in);
      const TransformedTiles<> products = phase_tiles<P>(scratch + input_floats, count, op.out);
      for (int64_t t = 0; t < count; ++t) {
        const Square tile = grid.coarse(first + t);
        const Square window{tile.image, tile.y + kOddRow - 1, tile.x + kOddColumn - 1};
        transform_phase<P>({a, size, op.in, window, zeros}, op.in, inputs, t);
      }
      for (int64_t m = 0; m < P::kMatrices; ++m)
        gemm({inputs.at(m, 0), inputs.row_stride, 1}, weight.matrix(P::kFirstMatrix + m),
             {products.at(m, 0), products.row_stride}, count * P::kCopies, op.out, op.in, false);
      for (int64_t t = 0; t < count; ++t) {
        const Square tile = grid.coarse(first + t);
        const int64_t height = min(kPhaseSide, size.height - tile.y), width = min(kPhaseSide, size.width - tile.x);
        const int64_t pitch = 2 * size.width * op.out;
        const int64_t row = tile.image * 2 * size.height + 2 * tile.y + kOddRow;
        float* out = f + row * pitch + (2 * tile.x + kOddColumn) * op.out;
        const auto store_pixel = [=](int i, int j, Vec value, int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
          if (i >= height || j >= width) return;
          float* pixel = out + 2 * i * pitch + 2 * j * op.out + c;
          if (op.bias) value += load(op.bias + c, part);
          if (streamed)
            stream(pixel, value);
          else
            store(pixel, value, part);
        };
        store_phase<P>(products, t, op.out, store_pixel);
      }
    });
    finish_streaming();
  });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
