// The upsampling U and its gradients, phase by phase: what a tile's outputs with even or odd rows and columns are made of. The
// gradients share one pass over the image four times the size of the other, since those of a and of the kernel both need its
// transformed tiles.
#pragma once

#include "direct_conv.h"
#include "fast_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int kPhaseMatrices = 36;  // kernels of all phases

// Rows and columns are TwoTaps or OneTap. A point's row and column number either its kernel or, where there is one kernel for
// all, a copy: the copies of all tiles are the rows of one matrix.
template <class RowScheme, class ColumnScheme, int kMatricesBefore>
struct Phase {
  using Rows = RowScheme;
  using Columns = ColumnScheme;
  static constexpr int kMatrices = Rows::kKernels * Columns::kKernels, kFirstMatrix = kMatricesBefore;
  static constexpr int kPoints = Rows::kPoints * Columns::kPoints;
  static constexpr int kCopies = kPoints / kMatrices;
  static constexpr bool kLast = kFirstMatrix + kMatrices == kPhaseMatrices;

  static constexpr int matrix(int p, int q) { return p % Rows::kKernels * Columns::kKernels + q % Columns::kKernels; }
  static constexpr int copy(int p, int q) {
    return p / Rows::kKernels * (Columns::kPoints / Columns::kKernels) + q / Columns::kKernels;
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
template <class P>
float* point(const TransformedTiles<>& tiles, int64_t tile, int p, int q) {
  return tiles.at(P::matrix(p, q), tile * P::kCopies + P::copy(p, q));
}
inline int64_t phase_floats(int64_t tiles, int64_t channels) {  // of the largest one
  return EvenEven::kPoints * (tiles * padded(channels) + kLanes);
}

// The taps of a correlation's kernel at every point, phase after phase.
inline PackedKernel<float> pack_phases(ThreadPool& pool, KernelView kernel) {
  PackedKernel<float> packed(kPhaseMatrices, kernel);
  for_blocks(pool, kernel.in, 0, [&](int64_t i, float*) {
    for (int64_t o = 0; o < kernel.out; o += kLanes)
      for_phases([&](auto phase) {
        using P = decltype(phase);
        using R = typename P::Rows;
        using C = typename P::Columns;
        transform_2d<R::kTaps, R::kKernels, R::kernel, C::kTaps, C::kKernels, C::kernel>(
            [&](int k, int l) { return kernel.tap(3 * R::kTap[k] + C::kTap[l], i, o); },
            [&](int p, int q, Vec u) { store(packed.at(P::kFirstMatrix + P::matrix(p, q), i, o), u); });
      });
  });
  return packed;
}

template <class P>
using PhaseWindow = Pixels<P::Rows::kWindow, P::Columns::kWindow>;
using CoarseTile = Pixels<kPhaseSide>;

template <int kRows, int kColumns>
CMSLAP_INLINE void prefetch(const Pixels<kRows, kColumns>& pixels, int64_t channels) {
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j)
      for (int64_t c = 0; c < channels; c += kCacheLineBytes / sizeof(float)) __builtin_prefetch(pixels.at[i][j] + c, 0, 2);
}

template <class P>
void transform_phase(const PhaseWindow<P>& window, int64_t channels, const TransformedTiles<>& to, int64_t tile) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  for_channels(channels, [&](int64_t c, auto part) {
    transform_2d<R::kWindow, R::kPoints, R::input, C::kWindow, C::kPoints, C::input>(
        [&](int i, int j) { return load(window.at[i][j] + c, part); },
        [&](int p, int q, Vec v) { store(point<P>(to, tile, p, q) + c, v); });
  });
}

template <class P>
void transform_phase_gradient(const CoarseTile& pixels, int64_t channels, const TransformedTiles<>& to, int64_t tile) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  for_channels(channels, [&](int64_t c, auto part) {
    transform_2d<kPhaseSide, R::kPoints, R::output_gradient, kPhaseSide, C::kPoints, C::output_gradient>(
        [&](int i, int j) { return load(pixels.at[i][j] + c, part); },
        [&](int p, int q, Vec m) { store(point<P>(to, tile, p, q) + c, m); });
  });
}

// out(i, j, value) for the 4×4 outputs of one phase, sixteen channels or so from c on.
template <class P, class Out>
CMSLAP_INLINE void phase_outputs(const TransformedTiles<>& products, int64_t tile, int64_t c, Out&& out) {
  using R = typename P::Rows;
  using C = typename P::Columns;
  transform_2d<R::kPoints, kPhaseSide, R::output, C::kPoints, kPhaseSide, C::output>(
      [&](int p, int q) { return load(point<P>(products, tile, p, q) + c); }, out);
}

// How many tiles a worker takes through all phases at once, so that they stay in L2.
inline int64_t phase_group(int64_t floats_a_tile) {
  constexpr int64_t kGroupFloats = 100 << 10;
  return max(kStrip, kGroupFloats / floats_a_tile / kStrip * kStrip);
}

// U's kernel [in, out, 3, 3] is that of the stride-2 correlation, from f to a, whose transpose U is.
inline KernelView upsampling_kernel(const Upsampling& op) { return KernelView::plain(op.weight, op.out, op.in); }

#ifdef CMSLAP_BFLOAT16
inline void upsampling(ThreadPool& pool, const Upsampling& op, Size size, const BFloat16* a, BFloat16* f) {
  const PackedKernel kernel = pack_kernel<Doubling, BFloat16>(pool, upsampling_kernel(op).transposed());
  fast_conv<Doubling>(pool, a, size, kernel, Activate<BFloat16>{op.bias, nullptr, 1.0f}, f);
}
#endif

inline void upsampling(ThreadPool& pool, const Upsampling& op, Size size, const float* a, float* f) {
  const PackedKernel<float> kernel = pack_phases(pool, upsampling_kernel(op).transposed().flipped());
  const PhaseGrid grid(size);
  const int64_t fair = ceil_div(ceil_div(grid.tiles(), pool.size()), kStrip) * kStrip;
  const int64_t group = min(phase_group(EvenEven::kPoints * (padded(op.in) + padded(op.out))), fair);
  const int64_t groups = ceil_div(grid.tiles(), group);
  const int64_t block = max(1, min(8, groups / (8 * pool.size())));  // groups a worker takes at once
  const int64_t input_floats = phase_floats(group, op.in), product_floats = phase_floats(group, op.out);
  const bool streamed = reinterpret_cast<uintptr_t>(f) % CMSLAP_VECTOR_BYTES == 0 && op.out % kLanes == 0;

  for_blocks(pool, ceil_div(groups, block), input_floats + product_floats + op.in, [&](int64_t b, float* scratch) {
    float* zeros = scratch + input_floats + product_floats;
    std::memset(zeros, 0, op.in * sizeof(float));
    const int64_t end = min((b + 1) * block * group, grid.tiles());
    for (int64_t first = b * block * group; first < end; first += group) {
      const int64_t count = min(group, end - first);
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
        for (int64_t m = 0; m < P::kMatrices; ++m) {
          gemm({inputs.at(m, 0), inputs.row_stride, 1}, kernel.matrix(P::kFirstMatrix + m),
               {products.at(m, 0), products.row_stride}, count * P::kCopies, op.out, op.in, false);
          const int64_t step = P::kFirstMatrix + m;
          for (int64_t t = step * count / kPhaseMatrices; t < (step + 1) * count / kPhaseMatrices; ++t) {
            const int64_t next = first + group + t;
            if (next < end) prefetch<kPhaseSide>(a, size, op.in, grid.coarse(next));
          }
        }
        for (int64_t t = 0; t < count; ++t) {
          const Square tile = grid.coarse(first + t);
          const int64_t height = min(kPhaseSide, size.height - tile.y), width = min(kPhaseSide, size.width - tile.x);
          const int64_t pitch = 2 * size.width * op.out;
          float* out = f + (tile.image * 2 * size.height + 2 * tile.y + kOddRow) * pitch + (2 * tile.x + kOddColumn) * op.out;
          for_channels(op.out, [&](int64_t c, auto part) {
            const Vec bias = op.bias ? load(op.bias + c, part) : Vec{};
            phase_outputs<P>(products, t, c, [&](int i, int j, Vec value) {
              if (i >= height || j >= width) return;
              float* pixel = out + 2 * i * pitch + 2 * j * op.out + c;
              if (streamed)
                stream(pixel, value + bias);
              else
                store(pixel, value + bias, part);
            });
          });
        }
      });
    }
    finish_streaming();
  });
}

// grad_a is optional, grad_weight and grad_bias are so together.
//
// A slice of the tiles has its own sums and is what a worker takes: so workers meet once, and thread counts do not matter. It
// goes through one phase after the other, so that a phase's kernels and sums stay in L2; meanwhile grad_a holds the sum over
// the phases.
template <class Epilogue>
void upsampling_gradients(ThreadPool& pool, const Upsampling& op, Size size, const float* a, const float* grad_f,
                          const Epilogue& epilogue, float* grad_a, float* grad_weight, float* grad_bias) {
  constexpr int64_t kMostSlices = 8, kSliceTiles = 48;
  const Size fine = doubled(size);
  const PhaseGrid grid(size);
  const int64_t most_tiles = phase_group(EvenEven::kPoints * (padded(op.out) + padded(op.in)));
  const int64_t slices = min(kMostSlices, ceil_div(grid.tiles(), kSliceTiles));

  const PackedKernel<float> kernel = pack_phases(pool, upsampling_kernel(op));
  const int64_t matrix_floats = op.in * padded(op.out), slice_floats = kPhaseMatrices * matrix_floats;
  const Buffer sums(grad_weight ? slices * slice_floats : 0), bias_sums(slices * padded(op.out));
  const int64_t fine_floats = phase_floats(most_tiles, op.out), coarse_floats = phase_floats(most_tiles, op.in);

  for_blocks(pool, slices, fine_floats + coarse_floats + op.in + op.out, [&](int64_t slice, float* scratch) {
    float* zeros = scratch + fine_floats + coarse_floats;
    std::memset(zeros, 0, (op.in + op.out) * sizeof(float));
    float *sum = sums.data() + slice * slice_floats, *bias_sum = bias_sums.data() + slice * padded(op.out);
    std::memset(bias_sum, 0, padded(op.out) * sizeof(float));

    const int64_t begin = slice * grid.tiles() / slices, tiles = (slice + 1) * grid.tiles() / slices - begin;
    const int64_t groups = ceil_div(tiles, most_tiles);
    for_phases([&](auto phase) {
      using P = decltype(phase);
      const auto window = [&](int64_t tile) {
        Square square = grid.fine(tile);
        square.y += P::Rows::kOffset;
        square.x += P::Columns::kOffset;
        return PhaseWindow<P>(grad_f, fine, op.out, square, zeros, 2);
      };
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = begin + g * tiles / groups, next = begin + (g + 1) * tiles / groups, count = next - first;
        const int64_t after = begin + min(g + 2, groups) * tiles / groups;
        const TransformedTiles<> gradients = phase_tiles<P>(scratch, count, op.out);
        const TransformedTiles<> coarse = phase_tiles<P>(scratch + fine_floats, count, op.in);  // a, then products
        for (int64_t t = 0; t < count; ++t) {
          const PhaseWindow<P> pixels = window(first + t);
          transform_phase<P>(pixels, op.out, gradients, t);
          if (!grad_weight) continue;
          add_pixels<kPhaseSide>(pixels, op.out, bias_sum);
          transform_phase_gradient<P>({a, size, op.in, grid.coarse(first + t), zeros}, op.in, coarse, t);
        }
        const auto prefetch_next = [&](int64_t step) {
          constexpr int64_t kSteps = 2 * P::kMatrices;
          for (int64_t t = next + step * (after - next) / kSteps; t < next + (step + 1) * (after - next) / kSteps; ++t) {
            prefetch(window(t), op.out);
            prefetch<kPhaseSide>(a, size, op.in, grid.coarse(t));
          }
        };
        for (int64_t m = 0; grad_weight && m < P::kMatrices; ++m) {
          gemm({coarse.at(m, 0), 1, coarse.row_stride}, {gradients.at(m, 0), gradients.row_stride, kPanel},
               {sum + (P::kFirstMatrix + m) * matrix_floats, padded(op.out)}, op.in, op.out, count * P::kCopies, g > 0);
          prefetch_next(m);
        }
        for (int64_t m = 0; grad_a && m < P::kMatrices; ++m) {
          gemm({gradients.at(m, 0), gradients.row_stride, 1}, kernel.matrix(P::kFirstMatrix + m),
               {coarse.at(m, 0), coarse.row_stride}, count * P::kCopies, op.in, op.out, false);
          prefetch_next(P::kMatrices + m);
        }
        for (int64_t t = 0; grad_a && t < count; ++t) {
          const Square tile = grid.coarse(first + t);
          const int64_t height = min(kPhaseSide, size.height - tile.y), width = min(kPhaseSide, size.width - tile.x);
          const int64_t corner = ((tile.image * size.height + tile.y) * size.width + tile.x) * op.in;
          for_channels(op.in, [&](int64_t c, auto part) {
            phase_outputs<P>(coarse, t, c, [&](int i, int j, Vec value) {
              if (i >= height || j >= width) return;
              const int64_t pixel = corner + (i * size.width + j) * op.in;
              if (P::kFirstMatrix > 0) value += load(grad_a + pixel + c, part);
              store(grad_a + pixel + c, P::kLast ? epilogue(value, pixel, c, part) : value, part);
            });
          });
        }
      }
    });
  });
  if (!grad_weight) return;
  for_blocks(pool, op.in, 0, [&](int64_t i, float*) {
    for (int64_t o = 0; o < op.out; o += kLanes)
      for_phases([&](auto phase) {
        using P = decltype(phase);
        using R = typename P::Rows;
        using C = typename P::Columns;
        transform_2d<R::kKernels, R::kTaps, R::kernel_gradient, C::kKernels, C::kTaps, C::kernel_gradient>(
            [&](int p, int q) {
              const float* summand = sums.data() + (P::kFirstMatrix + P::matrix(p, q)) * matrix_floats + i * padded(op.out) + o;
              Vec total = load(summand);
              for (int64_t slice = 1; slice < slices; ++slice) total += load(summand + slice * slice_floats);
              return total;
            },
            [&](int k, int l, Vec taps) {
              float* gradient = grad_weight + (i * op.out + o) * 9 + 3 * R::kTap[k] + C::kTap[l];
              for (int64_t lane = 0; lane < min(kLanes, op.out - o); ++lane) gradient[9 * lane] += taps[lane];
            });
      });
  });
  for (int64_t slice = 0; slice < slices; ++slice)
    for (int64_t o = 0; o < op.out; ++o) grad_bias[o] += bias_sums.data()[slice * padded(op.out) + o];
}

}  // namespace cmslap::cpu::CMSLAP_ISA
