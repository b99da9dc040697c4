// Convolutions and their weight gradients by a scheme of fast_schemes.h.
//
// A group of tiles goes through input transform, matrix products and output transform while it lies in L2: 18 tiles of
// Winograd's with 64 channels take 162 KiB, or twice that, beside the weight's 576 KiB, and make each 16 KiB matrix of
// the weight, once in L1, worth 2,300 cycles. With more channels the weight comes from beyond L2, and fewer tiles would
// not be worth that; with fewer channels a group has more tiles.
#pragma once

#include "fast_schemes.h"
#include "image.h"

namespace cmslap::cpu::CMSLAP_ISA {

template <class Scheme>
constexpr int kMatrices = Scheme::kPositions * Scheme::kPositions;

// The images of a batch cut into tiles, numbered row by row.
template <class Scheme>
struct TileGrid {
  int64_t batch, rows, columns;

  explicit TileGrid(Size in)
      : batch(in.batch),
        rows(ceil_div(Scheme::output_size(in).height, Scheme::kOutputs)),
        columns(ceil_div(Scheme::output_size(in).width, Scheme::kOutputs)) {}
  int64_t tiles() const { return batch * rows * columns; }
};

// A square of pixels, which may reach beyond the image.
struct Square {
  int64_t image, y, x;

  template <class Scheme>
  static Square window(const TileGrid<Scheme>& grid, int64_t tile) {  // what a tile is made of
    return at(grid, tile, Scheme::kInputs, Scheme::kOffset);
  }
  template <class Scheme>
  static Square outputs(const TileGrid<Scheme>& grid, int64_t tile) {
    return at(grid, tile, Scheme::kOutputs, 0);
  }
  // Of its window the kInputs rows and columns that no tile above it or to its left has.
  template <class Scheme>
  static Square new_inputs(const TileGrid<Scheme>& grid, int64_t tile) {
    return at(grid, tile, Scheme::kInputs, Scheme::kOffset + Scheme::kWindow - Scheme::kInputs);
  }

 private:
  template <class Grid>
  static Square at(const Grid& grid, int64_t tile, int64_t step, int64_t offset) {
    return {tile / (grid.rows * grid.columns), tile / grid.columns % grid.rows * step + offset,
            tile % grid.columns * step + offset};
  }
};

// Pointers to pixels from a square's first on, every step-th in both directions; those outside the image point to
// zeros.
template <int kRows, int kColumns = kRows, class Number = float>
struct Pixels {
  const Number* at[kRows][kColumns];

  CMSLAP_INLINE Pixels(const Number* images, Size size, int64_t channels, const Square& square, const Number* zeros,
                       int64_t step = 1) {
    for (int i = 0; i < kRows; ++i) {
      const int64_t y = square.y + step * i;
      const bool inside = y >= 0 && y < size.height;
      const Number* row = images + (square.image * size.height + y) * size.width * channels;
      for (int j = 0; j < kColumns; ++j) {
        const int64_t x = square.x + step * j;
        at[i][j] = inside && x >= 0 && x < size.width ? row + x * channels : zeros;
      }
    }
  }
};

// Asks for the pixels of tiles before they are needed, sixteen cache lines a call: between the strips of a product, as
// a core waits for some two dozen, and more at once would hold it up. square(tile) gives the side × side pixels of one
// of [tile, end).
template <class Number, class SquareOf>
class Prefetch {
  static constexpr int64_t kLine = kCacheLineBytes / sizeof(Number), kMost = 16 * kLine;

 public:
  Prefetch(const Number* images, Size size, int64_t channels, int64_t side, int64_t tile, int64_t end,
           const SquareOf& square)
      : images_(images), size_(size), channels_(channels), side_(side), tile_(tile), end_(end), square_of_(square) {}

  // Inlined: GCC drops calls of functions that do nothing but prefetch, as if without effect.
  CMSLAP_INLINE void operator()() {
    if (tile_ >= end_) return;
    if (row_ == 0) square_ = square_of_(tile_);
    const int64_t numbers = side_ * channels_, done = min(numbers, asked_ + kMost);
    if (square_.y + row_ < size_.height) {
      const int64_t pixel = (square_.image * size_.height + square_.y + row_) * size_.width + square_.x;
      for (; asked_ < done; asked_ += kLine) __builtin_prefetch(images_ + pixel * channels_ + asked_);
    }
    if (done < numbers) return;
    asked_ = 0;
    if (++row_ < side_) return;
    row_ = 0;
    ++tile_;
  }

 private:
  const Number* images_;
  Size size_;
  int64_t channels_, side_, tile_, end_, row_ = 0, asked_ = 0;  // numbers of the row
  Square square_{};
  SquareOf square_of_;
};

// Transformed tiles: the matrices [tiles, channels] of an operand. One vector more than needed lies between two of
// them, or all stores of a tile would fall into the same few sets of L1.
template <class Number = float>
struct TransformedTiles {
  Number* data;
  int64_t row_stride, matrix_stride;

  TransformedTiles(float* memory, int64_t tiles, int64_t channels)
      : data(reinterpret_cast<Number*>(memory)), row_stride(padded(channels)), matrix_stride(stride(tiles, channels)) {}
  static int64_t floats(int64_t matrices, int64_t tiles, int64_t channels) {
    return Array<Number>::floats(matrices * stride(tiles, channels));
  }
  Number* at(int64_t matrix, int64_t tile) const { return data + matrix * matrix_stride + tile * row_stride; }
  // The tiles from `tile` on, as gemm wants them.
  MatrixA<Factor<Number>> matrix(int64_t matrix, int64_t tile = 0) const {
    return {reinterpret_cast<const Factor<Number>*>(at(matrix, tile)), row_stride / FactorOf<Number>::kDepth, 1};
  }

 private:
  static int64_t stride(int64_t tiles, int64_t channels) {
    return tiles * padded(channels) + CMSLAP_VECTOR_BYTES / static_cast<int64_t>(sizeof(Number));
  }
};

template <class Scheme, class Number = float>
PackedWeight<Number> pack_weight(ThreadPool& pool, WeightView weight) {
  constexpr int kCount = Scheme::kWeight.count;
  PackedWeight<Number> packed(Scheme::kWeight.matrices(), weight.in, weight.out);
  for_inputs(pool, packed, [&](int64_t i) {
    for (int64_t o = 0; o < weight.out; o += kLanes)
      transform_2d<3, kCount, Scheme::weight>(
          [&](int k, int l) CMSLAP_ALWAYS_INLINE { return weight.tap(3 * k + l, i, o); },
          [&](int p, int q, Vec u) CMSLAP_ALWAYS_INLINE { pack(packed, kCount * p + q, i, o, u); });
  });
  return packed;
}

// V = Bᵀ d B of one tile.
template <class Scheme, class Number>
CMSLAP_TRANSFORM void transform_inputs(const Pixels<Scheme::kWindow, Scheme::kWindow, Number>& window, int64_t channels,
                                       Number* to, int64_t matrix_stride) {
  for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
    Number* first = to + c;
    transform_2d<Scheme::kWindow, Scheme::kInput.count, Scheme::input>(
        [&](int i, int j) CMSLAP_ALWAYS_INLINE { return load(window.at[i][j] + c, part); },
        [&](int p, int q, Vec v)
            CMSLAP_ALWAYS_INLINE { store(first + (Scheme::kInput.count * p + q) * matrix_stride, v); });
  });
}

// Which of a tile's pixels to store, and how: those inside the image, all, or all past the caches.
enum class Stores { kInside, kAll, kStream };

// Aᵀ M A of one tile, through the epilogue, to its pixels, of which height × width lie inside the image.
template <class Scheme, Stores kStores, class Epilogue, class Number>
CMSLAP_TRANSFORM void store_outputs(const float* products, int64_t matrix_stride, int64_t channels, Epilogue epilogue,
                                    int64_t corner, int64_t pitch, int64_t height, int64_t width, Number* out) {
  for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
    const float* first = products + c;
    transform_2d<Scheme::kProduct.count, Scheme::kOutputs, Scheme::output>(
        [&](int p, int q)
            CMSLAP_ALWAYS_INLINE { return load(first + (Scheme::kProduct.count * p + q) * matrix_stride); },
        [&](int i, int j, Vec value) CMSLAP_ALWAYS_INLINE {
          if (kStores == Stores::kInside && (i >= height || j >= width)) return;
          const int64_t number = corner + c + i * pitch + j * channels;
          value = epilogue(value, number, c, part);
          if constexpr (kStores == Stores::kStream && kStreams<Number>)
            stream(out + number, value);
          else
            store(out + number, value, part);
        });
  });
}
template <class Scheme, class Epilogue, class Number>
void store_outputs(const TransformedTiles<>& products, int64_t tile, const Square& square, Size size, int64_t channels,
                   const Epilogue& epilogue, Number* out, bool streamed) {
  constexpr int64_t kSide = Scheme::kOutputs;
  const int64_t height = min(kSide, size.height - square.y), width = min(kSide, size.width - square.x);
  const int64_t corner = ((square.image * size.height + square.y) * size.width + square.x) * channels;
  const auto store = height < kSide || width < kSide ? store_outputs<Scheme, Stores::kInside, Epilogue, Number>
                     : streamed                      ? store_outputs<Scheme, Stores::kStream, Epilogue, Number>
                                                     : store_outputs<Scheme, Stores::kAll, Epilogue, Number>;
  store(products.at(0, tile), products.matrix_stride, channels, epilogue, corner, size.width * channels, height, width,
        out);
}

// Whether every product has one input of its own, as large as itself.
template <class Scheme, class Number>
constexpr bool kInPlace = Scheme::kInput.matrices() == kMatrices<Scheme> &&
                          Scheme::kProduct.matrices() == kMatrices<Scheme> && sizeof(Number) == sizeof(float);

// The convolution of one group of tiles after the other. `weight` has to outlive the blocks.
template <class Scheme, class Number, class Epilogue>
auto fast_conv(int64_t workers, const Number* in, Size in_size, const PackedWeight<Number>& weight,
               const Epilogue& epilogue, Number* out) {
  constexpr int64_t kGroupTiles = 3 * kStrip, kGroupFloats = kGroupTiles * 36 * (64 + 64);  // at least
  const Size out_size = Scheme::output_size(in_size);
  const TileGrid<Scheme> grid(in_size);
  // A product may take its factor's place where gemm has read the whole of a strip before it stores: in one panel.
  const bool in_place = kInPlace<Scheme, Number> && weight.out <= min(kPanel, padded(weight.in));
  const int64_t tile_floats = Array<Number>::floats(Scheme::kInput.matrices() * padded(weight.in)) +
                              Scheme::kProduct.matrices() * padded(weight.out);
  const int64_t fitting = max(kGroupTiles, kGroupFloats / tile_floats / kStrip * kStrip);
  const int64_t groups = ceil_div(ceil_div(grid.tiles(), fitting), workers) * workers;
  const int64_t most = ceil_div(grid.tiles(), groups);  // tiles in a group
  const bool streamed = is_streamed(out, out_size, weight.out);
  const int64_t input_floats = TransformedTiles<Number>::floats(Scheme::kInput.matrices(), most, weight.in);
  const int64_t product_floats =
      in_place ? 0 : TransformedTiles<>::floats(Scheme::kProduct.matrices(), most, weight.out);

  const auto body = [=, &weight](int64_t group, float* scratch) {
    const TransformedTiles<Number> inputs(scratch, most, weight.in);
    const TransformedTiles<> products(in_place ? scratch : scratch + input_floats, most,
                                      in_place ? weight.in : weight.out);
    Number* zeros = reinterpret_cast<Number*>(scratch + input_floats + product_floats);
    std::memset(zeros, 0, weight.in * sizeof(Number));

    const auto begin = [&](int64_t number) { return min(number, groups) * grid.tiles() / groups; };
    const int64_t first = begin(group), end = begin(group + 1), count = end - first;
    for (int64_t t = 0; t < count; ++t)
      transform_inputs<Scheme, Number>({in, in_size, weight.in, Square::window(grid, first + t), zeros}, weight.in,
                                       inputs.at(0, t), inputs.matrix_stride);
    Prefetch next_inputs(in, in_size, weight.in, Scheme::kInputs, end, begin(group + 2),
                         [&](int64_t tile) { return Square::new_inputs(grid, tile); });
    Prefetch outputs(out, out_size, weight.out, Scheme::kOutputs, first, end,
                     [&](int64_t tile) { return Square::outputs(grid, tile); });
    const auto prefetch = [&]() CMSLAP_ALWAYS_INLINE {
      next_inputs();
      if (!streamed) outputs();
    };
    for (int64_t m = 0; m < kMatrices<Scheme>; ++m)
      gemm(inputs.matrix(Scheme::kInput.matrix(m)), weight.matrix(Scheme::kWeight.matrix(m)),
           {products.at(Scheme::kProduct.matrix(m), 0), products.row_stride}, count, weight.out, weight.depth,
           !Scheme::kProduct.first(m), prefetch);
    for (int64_t t = 0; t < count; ++t)
      store_outputs<Scheme>(products, t, Square::outputs(grid, first + t), out_size, weight.out, epilogue, out,
                            streamed);
    if (streamed) finish_streaming();
  };
  return Blocks{groups, input_floats + product_floats + Array<Number>::floats(weight.in), body};
}

// Adds the first kSide rows and columns of pixels to sum: they first among themselves, as it may be large.
template <int kSide, int kRows, int kColumns>
void add_pixels(const Pixels<kRows, kColumns>& pixels, int64_t channels, float* sum) {
  for_channels(channels, [&](int64_t c, auto part) {
    Vec total = {};
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) total += load(pixels.at[i][j] + c, part);
    store(sum + c, load(sum + c) + total);
  });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
