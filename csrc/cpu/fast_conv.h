// Convolutions and their weight gradients by a scheme of fast_schemes.h.
//
// A group of tiles goes through input transform, matrix products and output transform while it lies in L2: 24 tiles of Winograd's
// with 64 channels take 2 · 216 KiB beside the kernel's 576 KiB, and make each 16 KiB matrix of the kernel, once in L1, worth
// 6000 cycles.
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
  static Square new_inputs(const TileGrid<Scheme>& grid, int64_t tile) {  // its part that no tile before it needed
    return at(grid, tile, Scheme::kInputs, Scheme::kOffset + Scheme::kWindow - Scheme::kInputs);
  }
  template <class Scheme>
  static Square outputs(const TileGrid<Scheme>& grid, int64_t tile) {
    return at(grid, tile, Scheme::kOutputs, 0);
  }

 private:
  template <class Grid>
  static Square at(const Grid& grid, int64_t tile, int64_t step, int64_t offset) {
    return {tile / (grid.rows * grid.columns), tile / grid.columns % grid.rows * step + offset,
            tile % grid.columns * step + offset};
  }
};

// Pointers to pixels from a square's first on, every step-th in both directions; those outside the image point to zeros.
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

// Transformed tiles: the matrices [tiles, channels] of an operand. One vector more than needed lies between two of them, or
// all stores of a tile would fall into the same few sets of L1.
template <class Number = float>
struct TransformedTiles {
  Number* data;
  int64_t row_stride, matrix_stride;

  TransformedTiles(float* memory, int64_t tiles, int64_t channels)
      : data(reinterpret_cast<Number*>(memory)), row_stride(padded(channels)), matrix_stride(stride(tiles, channels)) {}
  static int64_t floats(const Operand& operand, int64_t tiles, int64_t channels) {
    return Array<Number>::floats(operand.matrices() * stride(tiles, channels));
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
PackedKernel<Number> pack_kernel(ThreadPool& pool, KernelView kernel) {
  constexpr int kCount = Scheme::kKernel.count;
  PackedKernel<Number> packed(Scheme::kKernel.matrices(), kernel);
  for_inputs(pool, packed, [&](int64_t i) {
    for (int64_t o = 0; o < kernel.out; o += kLanes)
      transform_2d<3, kCount, Scheme::kernel>(
          [&](int k, int l) { return kernel.tap(3 * k + l, i, o); },
          [&](int p, int q, Vec u) { pack(packed, kCount * p + q, i, o, u); });
  });
  return packed;
}

// V = Bᵀ d B of one tile.
template <class Scheme, class Number>
void transform_inputs(const Pixels<Scheme::kWindow, Scheme::kWindow, Number>& window, int64_t channels, const TransformedTiles<Number>& to,
                      int64_t tile) {
  for_channels(channels, [&](int64_t c, auto part) {
    transform_2d<Scheme::kWindow, Scheme::kInput.count, Scheme::input>(
        [&](int i, int j) { return load(window.at[i][j] + c, part); },
        [&](int p, int q, Vec v) { store(to.at(Scheme::kInput.count * p + q, tile) + c, v); });
  });
}

// Aᵀ M A of one tile, through the epilogue, to those of its pixels that lie inside the image.
template <class Scheme, class Epilogue, class Number>
void store_outputs(const TransformedTiles<>& products, int64_t tile, const Square& square, Size size, int64_t channels,
                   const Epilogue& epilogue, Number* out) {
  constexpr int kSide = Scheme::kOutputs;
  const int64_t height = min(kSide, size.height - square.y), width = min(kSide, size.width - square.x);
  const int64_t first = ((square.image * size.height + square.y) * size.width + square.x) * channels;
  const int64_t pitch = size.width * channels;
  for_channels(channels, [&](int64_t c, auto part) {
    const auto product = [&](int p, int q) { return load(products.at(Scheme::kProduct.count * p + q, tile) + c); };
    const auto store_pixel = [&](int i, int j, Vec value) {
      const int64_t pixel = first + i * pitch + j * channels;
      store(out + pixel + c, epilogue(value, pixel, c, part), part);
    };
    if (height == kSide && width == kSide)
      transform_2d<Scheme::kProduct.count, kSide, Scheme::output>(product, store_pixel);
    else
      transform_2d<Scheme::kProduct.count, kSide, Scheme::output>(product, [&](int i, int j, Vec value) {
        if (i < height && j < width) store_pixel(i, j, value);
      });
  });
}

// Asks for the part of a square that lies inside the image to be in L2 soon.
template <int kSide, class Number>
CMSLAP_INLINE void prefetch(const Number* images, Size size, int64_t channels, const Square& square) {
  constexpr int64_t kLine = kCacheLineBytes / sizeof(Number);
  const int64_t width = min(kSide, size.width - square.x) * channels;
  for (int64_t y = square.y; y < min(square.y + kSide, size.height); ++y) {
    const Number* row = images + ((square.image * size.height + y) * size.width + square.x) * channels;
    for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i, 0, 2);
  }
}

// The convolution of one group of tiles after the other; the memory idles during the matrix products, so that is when the
// pixels of the coming transforms are asked for.
template <class Scheme, class Number, class Epilogue>
void fast_conv(ThreadPool& pool, const Number* in, Size in_size, const PackedKernel<Number>& kernel, const Epilogue& epilogue,
               Number* out) {
  constexpr int64_t kGroupFloats = 36 * 24 * (64 + 64);  // inputs and products of a group
  const Size out_size = Scheme::output_size(in_size);
  const TileGrid<Scheme> grid(in_size);
  const int64_t tile_floats =
      Array<Number>::floats(Scheme::kInput.matrices() * padded(kernel.in)) + Scheme::kProduct.matrices() * padded(kernel.out);
  const int64_t fitting = kGroupFloats / tile_floats / kStrip * kStrip;
  const int64_t fair = ceil_div(ceil_div(grid.tiles(), pool.size()), kStrip) * kStrip;
  const int64_t group = max(kStrip, min(fitting, fair));
  const int64_t groups = ceil_div(grid.tiles(), group);
  const int64_t block = max(1, min(8, groups / (8 * pool.size())));  // groups a worker takes at once
  const int64_t input_floats = TransformedTiles<Number>::floats(Scheme::kInput, group, kernel.in);
  const int64_t product_floats = TransformedTiles<>::floats(Scheme::kProduct, group, kernel.out);
  const int64_t scratch_floats = input_floats + product_floats + Array<Number>::floats(kernel.in);

  for_blocks(pool, ceil_div(groups, block), scratch_floats, [&](int64_t b, float* scratch) {
    const TransformedTiles<Number> inputs(scratch, group, kernel.in);
    const TransformedTiles<> products(scratch + input_floats, group, kernel.out);
    Number* zeros = reinterpret_cast<Number*>(scratch + input_floats + product_floats);
    std::memset(zeros, 0, kernel.in * sizeof(Number));

    const int64_t end = min((b + 1) * block * group, grid.tiles());
    for (int64_t first = b * block * group; first < end; first += group) {
      const int64_t count = min(group, end - first);
      for (int64_t t = 0; t < count; ++t)
        transform_inputs<Scheme, Number>({in, in_size, kernel.in, Square::window(grid, first + t), zeros}, kernel.in, inputs,
                                         t);
      for (int64_t m = 0; m < kMatrices<Scheme>; ++m) {
        gemm(inputs.matrix(Scheme::kInput.matrix(m)), kernel.matrix(Scheme::kKernel.matrix(m)),
             {products.at(Scheme::kProduct.matrix(m), 0), products.row_stride}, count, kernel.out, kernel.depth,
             !Scheme::kProduct.first(m));
        for (int64_t t = m * count / kMatrices<Scheme>; t < (m + 1) * count / kMatrices<Scheme>; ++t) {
          const auto prefetch_outputs = [&](const auto* images) {
            prefetch<Scheme::kOutputs>(images, out_size, kernel.out, Square::outputs(grid, first + t));
          };
          prefetch_outputs(out);
          epilogue.for_images(prefetch_outputs);
          const int64_t next = first + group + t;
          if (next < end) prefetch<Scheme::kInputs>(in, in_size, kernel.in, Square::new_inputs(grid, next));
        }
      }
      for (int64_t t = 0; t < count; ++t)
        store_outputs<Scheme>(products, t, Square::outputs(grid, first + t), out_size, kernel.out, epilogue, out);
    }
  });
}

// A dy Aᵀ of one tile.
template <class Scheme>
void transform_gradient(const Pixels<Scheme::kOutputs>& pixels, int64_t channels, const TransformedTiles<>& to, int64_t tile) {
  for_channels(channels, [&](int64_t c, auto part) {
    transform_2d<Scheme::kOutputs, Scheme::kProduct.count, Scheme::output_gradient>(
        [&](int i, int j) { return load(pixels.at[i][j] + c, part); },
        [&](int p, int q, Vec m) { store(to.at(Scheme::kProduct.count * p + q, tile) + c, m); });
  });
}

// Adds the first kSide rows and columns of pixels to sum.
template <int kSide, int kRows, int kColumns>
void add_pixels(const Pixels<kRows, kColumns>& pixels, int64_t channels, float* sum) {
  for_channels(channels, [&](int64_t c, auto part) {
    Vec total = load(sum + c);
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; ++j) total += load(pixels.at[i][j] + c, part);
    store(sum + c, total);
  });
}

// Adds Gᵀ Σ G to weight_gradient [out, in, 3, 3], for the sum Σ of sums [slices, matrices, out, padded in].
template <class Scheme>
void add_weight_gradient(ThreadPool& pool, const float* sums, int64_t slices, int64_t in, int64_t out, float* weight_gradient) {
  constexpr Operand kKernel = Scheme::kKernel;
  for_blocks(pool, out, 0, [&](int64_t o, float*) {
    for (int64_t i = 0; i < in; i += kLanes)
      transform_2d<kKernel.count, 3, Scheme::kernel_gradient>(
          [&](int p, int q) {
            const float* summand = sums + ((kKernel.count * p + q) * out + o) * padded(in) + i;
            Vec total = load(summand);
            for (int64_t slice = 1; slice < slices; ++slice)
              total += load(summand + slice * kKernel.matrices() * out * padded(in));
            return total;
          },
          [&](int k, int l, Vec taps) {
            for (int64_t lane = 0; lane < min(kLanes, in - i); ++lane)
              weight_gradient[(o * in + i + lane) * 9 + 3 * k + l] += taps[lane];
          });
  });
}

// Sums over tiles are taken a chunk at a time: all workers transform it, then each multiplies some of its matrices. So
// every sum has one owner and one order, whatever the number of threads.
constexpr int64_t kChunk = 192;  // tiles
constexpr int64_t kStep = 24;    // tiles a worker transforms at once
constexpr int64_t kDepth = 48;   // tiles in one matrix product: both its operands stay in L1

// The weight gradient in the transform domain. dW = Gᵀ [ Σ (A dy Aᵀ) ⊙ (Bᵀ x B) ] G is linear in the bracket, so the recursions that
// share a kernel share the sum, and G is applied once.
class WinogradWeightGradient {
  using Scheme = SameConv;

 public:
  WinogradWeightGradient(int64_t in, int64_t out) : in_(in), out_(out), sums_(kMatrices<Scheme> * out * padded(in)) {
    std::memset(sums_.data(), 0, sums_.size() * sizeof(float));
  }

  // Adds the gradient of one convolution, and Σ out_gradient to out_sum [out].
  void add(ThreadPool& pool, const float* in, Size in_size, const float* out_gradient, float* out_sum) {
    const TileGrid<Scheme> grid(in_size);
    const Size out_size = Scheme::output_size(in_size);
    const int64_t input_floats = TransformedTiles<>::floats(Scheme::kInput, kChunk, in_);
    const Buffer tiles(input_floats + TransformedTiles<>::floats(Scheme::kProduct, kChunk, out_));
    const TransformedTiles<> inputs(tiles.data(), kChunk, in_), gradients(tiles.data() + input_floats, kChunk, out_);
    const Buffer partial(ceil_div(kChunk, kStep) * padded(out_));  // out_sum of each step

    for (int64_t chunk = 0; chunk < grid.tiles(); chunk += kChunk) {
      const int64_t count = min(kChunk, grid.tiles() - chunk), steps = ceil_div(count, kStep);
      for_blocks(pool, steps, max(in_, out_), [&](int64_t step, float* zeros) {
        std::memset(zeros, 0, max(in_, out_) * sizeof(float));
        float* sum = partial.data() + step * padded(out_);
        std::memset(sum, 0, padded(out_) * sizeof(float));
        for (int64_t t = step * kStep; t < min((step + 1) * kStep, count); ++t) {
          transform_inputs<Scheme, float>({in, in_size, in_, Square::window(grid, chunk + t), zeros}, in_, inputs, t);
          const Pixels<Scheme::kOutputs> dy(out_gradient, out_size, out_, Square::outputs(grid, chunk + t), zeros);
          transform_gradient<Scheme>(dy, out_, gradients, t);
          add_pixels<Scheme::kOutputs>(dy, out_, sum);
        }
      });
      for_blocks(pool, kMatrices<Scheme>, 0, [&](int64_t m, float*) {
        for (int64_t t = 0; t < count; t += kDepth)
          gemm({gradients.at(m, t), 1, gradients.row_stride}, {inputs.at(m, t), inputs.row_stride, kPanel},
               {sums_.data() + m * out_ * padded(in_), padded(in_)}, out_, in_, min(kDepth, count - t), true);
      });
      for (int64_t step = 0; step < steps; ++step)
        for (int64_t o = 0; o < out_; ++o) out_sum[o] += partial.data()[step * padded(out_) + o];
    }
  }

  // Adds Gᵀ sum G to weight_gradient [out, in, 3, 3].
  void finish(ThreadPool& pool, float* weight_gradient) const {
    add_weight_gradient<Scheme>(pool, sums_.data(), 1, in_, out_, weight_gradient);
  }

 private:
  int64_t in_, out_;
  Buffer sums_;  // [kMatrices, out, in]
};

}  // namespace cmslap::cpu::CMSLAP_ISA
