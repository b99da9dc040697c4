// 3×3 convolution, stride 1, padding 1, by Winograd's F(4×4, 3×3), and its weight gradient.
//
// A block of tiles goes through input transform, 36 matrix products and output transform while it lies in L2: 24 tiles of 64
// channels take 2 · 216 KiB beside the kernel's 576 KiB, and make each 16 KiB panel of the kernel, once in L1, worth 6000 cycles.
#pragma once

#include "image.h"
#include "winograd.h"

namespace cmslap::cpu::CMSLAP_ISA {

// The images of a batch cut into 4×4 tiles, numbered row by row.
struct TileGrid {
  Size size;
  int64_t rows, columns;

  explicit TileGrid(Size size) : size(size), rows(ceil_div(size.height, kTile)), columns(ceil_div(size.width, kTile)) {}
  int64_t tiles() const { return size.batch * rows * columns; }
};

struct Tile {
  int64_t image, y, x;  // of its first pixel

  Tile(const TileGrid& grid, int64_t number)
      : image(number / (grid.rows * grid.columns)),
        y(number / grid.columns % grid.rows * kTile),
        x(number % grid.columns * kTile) {}
};

// Pointers to a kSide×kSide window of pixels; those outside the image point to zeros.
template <int kSide>
struct Window {
  const float* pixel[kSide][kSide];

  CMSLAP_INLINE Window(const float* images, Size size, int64_t channels, const Tile& tile, int64_t offset, const float* zeros) {
    for (int i = 0; i < kSide; ++i) {
      const int64_t y = tile.y + offset + i;
      const bool inside = y >= 0 && y < size.height;
      const float* row = images + (tile.image * size.height + y) * size.width * channels;
      for (int j = 0; j < kSide; ++j) {
        const int64_t x = tile.x + offset + j;
        pixel[i][j] = inside && x >= 0 && x < size.width ? row + x * channels : zeros;
      }
    }
  }
};

// Transformed tiles: 36 matrices [tiles, channels]. One vector more than needed lies between two of them, or all 36 stores
// of a tile would fall into the same few sets of L1.
struct TransformedTiles {
  float* data;
  int64_t row_stride, matrix_stride;

  TransformedTiles(float* data, int64_t tiles, int64_t channels)
      : data(data), row_stride(padded(channels)), matrix_stride(floats(tiles, channels) / kPositions) {}
  static int64_t floats(int64_t tiles, int64_t channels) { return kPositions * (tiles * padded(channels) + kLanes); }
  float* at(int64_t position, int64_t tile) const { return data + position * matrix_stride + tile * row_stride; }
};

inline PackedKernel pack_winograd(Team& team, KernelView kernel) {
  PackedKernel packed(kPositions, kernel);
  for_blocks(team, kernel.in, 0, [&](int64_t i, float*) {
    for (int64_t o = 0; o < kernel.out; o += kLanes)
      transform_2d<3, 6, transform_kernel>(
          [&](int k, int l) { return kernel.tap(3 * k + l, i, o); },
          [&](int p, int q, Vec u) { store(packed.at(kPatch * p + q, i, o), u); });
  });
  return packed;
}

// V = Bᵀ d B of one tile.
inline void transform_patch(const Window<kPatch>& patch, int64_t channels, const TransformedTiles& out, int64_t tile) {
  for_channels(channels, [&](int64_t c, auto part) {
    transform_2d<6, 6, transform_input>([&](int i, int j) { return load(patch.pixel[i][j] + c, part); },
                                        [&](int p, int q, Vec v) { store(out.at(kPatch * p + q, tile) + c, v); });
  });
}

// Aᵀ M A of one tile, through the epilogue, to those of its 16 pixels that lie inside the image.
template <class Epilogue>
void store_tile(const TransformedTiles& products, int64_t row, const Tile& tile, Size size, int64_t channels,
                const Epilogue& epilogue, float* out) {
  const int64_t height = least(kTile, size.height - tile.y), width = least(kTile, size.width - tile.x);
  const int64_t first = ((tile.image * size.height + tile.y) * size.width + tile.x) * channels;
  const int64_t pitch = size.width * channels;
  for_channels(channels, [&](int64_t c, auto part) {
    Vec y[kTile][kTile];
    transform_2d<6, 4, transform_output>([&](int p, int q) { return load(products.at(kPatch * p + q, row) + c); },
                                         [&](int i, int j, Vec value) { y[i][j] = value; });
    const auto store_pixel = [&](int i, int j) {
      const int64_t pixel = first + i * pitch + j * channels;
      store(out + pixel + c, epilogue(y[i][j], pixel, c, part), part);
    };
    if (height == kTile && width == kTile) {
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) store_pixel(i, j);
    } else {
      for (int i = 0; i < height; ++i)
        for (int j = 0; j < width; ++j) store_pixel(i, j);
    }
  });
}

// Asks for a tile's 4×4 pixels, moved by `offset`, to be in L2 soon.
CMSLAP_INLINE void prefetch_tile(const float* images, Size size, int64_t channels, const Tile& tile, int64_t offset) {
  const int64_t width = least(kTile, size.width - tile.x - offset) * channels;
  for (int64_t y = tile.y + offset; y < least(tile.y + offset + kTile, size.height); ++y) {
    const float* row = images + ((tile.image * size.height + y) * size.width + tile.x + offset) * channels;
    for (int64_t i = 0; i < width; i += kCacheLine) __builtin_prefetch(row + i, 0, 2);
  }
}

// The convolution of one group of tiles after the other; the memory idles during the matrix products, so that is when the
// pixels of the coming transforms are asked for.
template <class Epilogue>
void winograd_conv(Team& team, const float* in, Size size, const PackedKernel& kernel, const Epilogue& epilogue,
                   float* out) {
  const TileGrid grid(size);
  const int64_t fitting = 48 * 64 / (padded(kernel.in) + padded(kernel.out)) / kStrip * kStrip;
  const int64_t fair = ceil_div(ceil_div(grid.tiles(), team.size()), kStrip) * kStrip;
  const int64_t group = most(kStrip, least(fitting, fair));
  const int64_t groups = ceil_div(grid.tiles(), group);
  const int64_t block = most(1, least(8, groups / (8 * team.size())));  // groups a worker takes at once
  const int64_t input_floats = TransformedTiles::floats(group, kernel.in);
  const int64_t product_floats = TransformedTiles::floats(group, kernel.out);
  const int64_t scratch_floats = input_floats + product_floats + kernel.in;

  for_blocks(team, ceil_div(groups, block), scratch_floats, [&](int64_t b, float* scratch) {
    const TransformedTiles inputs(scratch, group, kernel.in);
    const TransformedTiles products(scratch + input_floats, group, kernel.out);
    float* zeros = scratch + input_floats + product_floats;
    std::memset(zeros, 0, kernel.in * sizeof(float));

    const int64_t end = least((b + 1) * block * group, grid.tiles());
    for (int64_t first = b * block * group; first < end; first += group) {
      const int64_t count = least(group, end - first);
      for (int64_t t = 0; t < count; ++t)
        transform_patch(Window<kPatch>(in, size, kernel.in, Tile(grid, first + t), -1, zeros), kernel.in, inputs, t);
      for (int64_t p = 0; p < kPositions; ++p) {
        gemm({inputs.at(p, 0), inputs.row_stride, 1}, kernel.matrix(p), {products.at(p, 0), products.row_stride}, count,
             kernel.out, kernel.in, false);
        for (int64_t t = first + p * count / kPositions; t < first + (p + 1) * count / kPositions; ++t) {
          prefetch_tile(out, size, kernel.out, Tile(grid, t), 0);
          epilogue.for_images([&](const float* image) { prefetch_tile(image, size, kernel.out, Tile(grid, t), 0); });
          if (t + group < end) prefetch_tile(in, size, kernel.in, Tile(grid, t + group), 1);
        }
      }
      for (int64_t t = 0; t < count; ++t)
        store_tile(products, t, Tile(grid, first + t), size, kernel.out, epilogue, out);
    }
  });
}

// Sums over tiles are taken a chunk at a time: all workers transform it, then each multiplies some of its 36 matrices.
// So every sum has one owner and one order, whatever the number of threads.
constexpr int64_t kChunk = 192;   // tiles
constexpr int64_t kStep = 24;     // tiles a worker transforms at once
constexpr int64_t kDepth = 48;    // tiles in one matrix product: both its operands stay in L1

// The weight gradient in the transform domain. dW = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ x B) ] G is linear in the bracket, so the recursions that
// share a kernel share the sum, and G is applied once.
class WinogradWeightGradient {
 public:
  WinogradWeightGradient(int64_t in, int64_t out) : in_(in), out_(out), sums_(kPositions * out * padded(in)) {
    std::memset(sums_.data(), 0, sums_.size() * sizeof(float));
  }

  // Adds the gradient of one convolution; and its bias's to bias_gradient [out] unless that is null.
  void add(Team& team, const float* in, const float* out_gradient, Size size, float* bias_gradient) {
    const TileGrid grid(size);
    const int64_t input_floats = TransformedTiles::floats(kChunk, in_);
    const Buffer tiles(input_floats + TransformedTiles::floats(kChunk, out_));
    const TransformedTiles inputs(tiles.data(), kChunk, in_), gradients(tiles.data() + input_floats, kChunk, out_);
    const Buffer partial(ceil_div(kChunk, kStep) * padded(out_));  // bias gradient of each step

    for (int64_t chunk = 0; chunk < grid.tiles(); chunk += kChunk) {
      const int64_t count = least(kChunk, grid.tiles() - chunk), steps = ceil_div(count, kStep);
      for_blocks(team, steps, most(in_, out_), [&](int64_t step, float* zeros) {
        std::memset(zeros, 0, most(in_, out_) * sizeof(float));
        float* bias = partial.data() + step * padded(out_);
        std::memset(bias, 0, padded(out_) * sizeof(float));
        for (int64_t t = step * kStep; t < least((step + 1) * kStep, count); ++t) {
          const Tile tile(grid, chunk + t);
          transform_patch(Window<kPatch>(in, size, in_, tile, -1, zeros), in_, inputs, t);
          transform_gradient(Window<kTile>(out_gradient, size, out_, tile, 0, zeros), gradients, t, bias);
        }
      });
      for_blocks(team, kPositions, 0, [&](int64_t p, float*) {
        for (int64_t t = 0; t < count; t += kDepth)
          gemm({gradients.at(p, t), 1, gradients.row_stride}, {inputs.at(p, t), inputs.row_stride, kPanel},
               {sums_.data() + p * out_ * padded(in_), padded(in_)}, out_, in_, least(kDepth, count - t), true);
      });
      if (bias_gradient)
        for (int64_t step = 0; step < steps; ++step)
          for (int64_t o = 0; o < out_; ++o) bias_gradient[o] += partial.data()[step * padded(out_) + o];
    }
  }

  // Adds Gᵀ sum G to weight_gradient [out, in, 3, 3].
  void finish(Team& team, float* weight_gradient) const {
    for_blocks(team, out_, 0, [&](int64_t o, float*) {
      for (int64_t i = 0; i < in_; i += kLanes)
        transform_2d<6, 3, transform_kernel_gradient>(
            [&](int p, int q) { return load(sums_.data() + ((kPatch * p + q) * out_ + o) * padded(in_) + i); },
            [&](int k, int l, Vec taps) {
              for (int64_t lane = 0; lane < least(kLanes, in_ - i); ++lane)
                weight_gradient[(o * in_ + i + lane) * 9 + 3 * k + l] += taps[lane];
            });
    });
  }

 private:
  // A dy Aᵀ of one tile, and its pixels' sum.
  void transform_gradient(const Window<kTile>& window, const TransformedTiles& to, int64_t tile, float* bias) const {
    for_channels(out_, [&](int64_t c, auto part) {
      Vec total = load(bias + c);
      transform_2d<4, 6, transform_output_gradient>(
          [&](int i, int j) {
            const Vec dy = load(window.pixel[i][j] + c, part);
            total += dy;
            return dy;
          },
          [&](int p, int q, Vec m) { store(to.at(kPatch * p + q, tile) + c, m); });
      store(bias + c, total);
    });
  }

  int64_t in_, out_;
  Buffer sums_;  // [36, out, in]
};

}  // namespace cmslap::cpu::CMSLAP_ISA
