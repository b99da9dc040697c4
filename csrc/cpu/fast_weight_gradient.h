// The weight gradient of a convolution in Winograd's domain: dW = Gᵀ [ Σ over tiles (A dy Aᵀ) ⊙ (Bᵀ x B) ] G.
//
// A tile of 4×4 pixels with 64 channels on both sides takes 36 · 64 · 64 = 147,456 multiplications, 4,608 cycles of a
// core that starts two AVX-512 multiply-adds a cycle; the direct way takes four times as many. Through L2 go 18 KiB of
// transformed tile, written and read, and a group's share of the sums, 22 KiB read and written: 80 KiB, some 1,300
// cycles that partly hide behind the products. The transforms take 1,200 cycles. So the multiply-add units are the
// limit, as they are of the forward pass (transforms of 36 + 16 numbers a tile and channel there, too), if sums and
// tiles stay in L2: that is why half of the 36 points are summed at a time, 288 KiB of sums beside 234 KiB of tiles.
// Halves cost nothing, as a transform is made in two anyway. Two workers take one each, and all tiles in the same
// order: what one has read the other finds in L3, and the sums leave L2 but once.
//
// The data gradient can't share A dy Aᵀ: its tiles of dy overlap. Turned round (B [(G g Gᵀ) ⊙ (A dy Aᵀ)] Bᵀ) it could,
// but its outputs would overlap in place of its inputs and have to be summed before the epilogue: as many instructions,
// and more memory.
#pragma once

#include "fast_conv.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Part of a number of channels.
struct Channels {
  int64_t first, count;
};

// Channels in even parts of whole vectors, at most so many each.
struct ChannelParts {
  static constexpr int64_t kMost = 64;
  int64_t channels, width;

  explicit ChannelParts(int64_t channels, int64_t most = kMost)
      : channels(channels), width(padded(ceil_div(channels, ceil_div(channels, most)))) {}
  int64_t count() const { return ceil_div(channels, width); }
  Channels operator[](int64_t part) const { return {part * width, min(width, channels - part * width)}; }
};

// dW is linear in the bracket, so the recursions that share a weight share the sum, and G is applied once. Of many
// tiles every slice has a sum of its own, whatever the number of threads: few, as each is read and written for every
// convolution. More threads get narrower parts of the channels: each transforms its inputs anew, but no bit of a sum
// depends on what lies beside it.
class WinogradWeightGradient {
  using Scheme = SameConv;
  static constexpr int kPoints = Scheme::kPositions, kRows = kPoints / 2, kHalfMatrices = kRows * kPoints;
  static constexpr int64_t kSliceTiles = 1024, kMaxSlices = 4;
  static constexpr int64_t kGroupFloats = 26 * kHalfMatrices * (64 + 64);

 public:
  WinogradWeightGradient(Size size, int64_t in, int64_t out)
      : size_(size),
        in_(in),
        out_(out),
        slices_(min(kMaxSlices, ceil_div(TileGrid<Scheme>(size).tiles(), kSliceTiles))),
        sums_(slices_ * slice_floats()),
        bias_sums_(slices_ * padded(out)) {}

  // Adds what one convolution contributes, in a block a worker if there are channels enough.
  auto add(const float* in, const float* out_gradient, int64_t workers) {
    ChannelParts ins(in_), outs(out_);
    const int64_t group = max(1, kGroupFloats / (kHalfMatrices * (ins.width + outs.width)));  // whatever the threads
    while (2 * slices_ * ins.count() * outs.count() < workers && max(ins.width, outs.width) > kLanes) {
      ChannelParts& wider = ins.width > outs.width ? ins : outs;
      wider = ChannelParts(wider.channels, wider.width / 2);
    }
    const int64_t in_floats = TransformedTiles<>::floats(kHalfMatrices, group, ins.width);
    const int64_t out_floats = TransformedTiles<>::floats(kHalfMatrices, group, outs.width);
    const bool accumulate = added_;
    added_ = true;
    const int64_t parts = ins.count() * outs.count(), half = slices_ * parts;  // the blocks of half of the points
    return Blocks{2 * half, in_floats + out_floats + ChannelParts::kMost, [=](int64_t block, float* scratch) {
                    float* zeros = scratch + in_floats + out_floats;
                    std::memset(zeros, 0, ChannelParts::kMost * sizeof(float));
                    const Operands operands{
                        in,    out_gradient, {scratch, group, ins.width}, {scratch + in_floats, group, outs.width},
                        zeros, group};
                    const int64_t part = block % parts;
                    const Slice slice{block % half / parts, ins[part % ins.count()], outs[part / ins.count()]};
                    if (block < half)
                      add_slice<0>(slice, operands, accumulate);
                    else
                      add_slice<kRows>(slice, operands, accumulate);
                  }};
  }

  // Gᵀ sum G to weight_gradient [out, in, 3, 3], and the sum of the gradients to bias_gradient [out]: added to what
  // they hold, or written.
  void finish(ThreadPool& pool, WeightLayout layout, float* weight_gradient, float* bias_gradient, bool add) const {
    for_blocks(pool, out_, 0, [&](int64_t o, float*) {
      for (int64_t i = 0; i < in_; i += kLanes) {
        float taps[9][kLanes];
        const float* first = sums_.data() + o * padded(in_) + i;
        transform_2d<kPoints, 3, Scheme::weight_gradient>(
            [&](int p, int q) CMSLAP_ALWAYS_INLINE {
              const float* summand = first + (kPoints * p + q) * matrix_floats();
              Vec total = load(summand);
              for (int64_t slice = 1; slice < slices_; ++slice) total += load(summand + slice * slice_floats());
              return total;
            },
            [&](int k, int l, Vec tap) CMSLAP_ALWAYS_INLINE { store(taps[3 * k + l], tap); });
        float* gradient = weight_gradient + o * in_ * 9 + i * layout.in_stride;
        for (int64_t lane = 0; lane < min(kLanes, in_ - i); ++lane, gradient += layout.in_stride)
          for (int t = 0; t < 9; ++t)
            gradient[t * layout.tap_stride] = taps[t][lane] + (add ? gradient[t * layout.tap_stride] : 0.0f);
      }
    });
    if (!add) std::memset(bias_gradient, 0, out_ * sizeof(float));
    for (int64_t slice = 0; slice < slices_; ++slice)
      for (int64_t o = 0; o < out_; ++o) bias_gradient[o] += bias_sums_.data()[slice * padded(out_) + o];
  }

 private:
  struct Slice {
    int64_t number;
    Channels in, out;
  };
  struct Operands {
    const float *in, *out_gradient;
    TransformedTiles<> inputs, gradients;
    const float* zeros;
    int64_t group;  // most tiles at once
  };

  int64_t matrix_floats() const { return out_ * padded(in_) + kLanes; }  // as in TransformedTiles
  int64_t slice_floats() const { return kMatrices<Scheme> * matrix_floats(); }

  template <int kFirstRow>
  void add_slice(const Slice& slice, const Operands& operands, bool accumulate) const {
    const TileGrid<Scheme> grid(size_);
    const int64_t begin = slice.number * grid.tiles() / slices_, end = (slice.number + 1) * grid.tiles() / slices_;
    const auto& [in, out_gradient, inputs, gradients, zeros, most] = operands;
    float* sums = sums_.data() + slice.number * slice_floats() + kFirstRow * kPoints * matrix_floats() +
                  slice.out.first * padded(in_) + slice.in.first;
    float* bias_sum = bias_sums_.data() + slice.number * padded(out_) + slice.out.first;
    const bool bias = kFirstRow == 0 && slice.in.first == 0;
    if (bias && !accumulate) std::memset(bias_sum, 0, padded(slice.out.count) * sizeof(float));

    const int64_t groups = ceil_div(end - begin, most);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = begin + g * (end - begin) / groups;
      const int64_t count = begin + (g + 1) * (end - begin) / groups - first;
      for (int64_t t = 0; t < count; ++t) {
        transform_half<kFirstRow, Scheme::kWindow, Scheme::input>(
            {in + slice.in.first, size_, in_, Square::window(grid, first + t), zeros}, slice.in.count, inputs.at(0, t),
            inputs.matrix_stride);
        const Pixels<Scheme::kOutputs> dy(out_gradient + slice.out.first, size_, out_, Square::outputs(grid, first + t),
                                          zeros);
        transform_half<kFirstRow, Scheme::kOutputs, Scheme::output_gradient>(dy, slice.out.count, gradients.at(0, t),
                                                                             gradients.matrix_stride);
        if (bias) add_pixels<Scheme::kOutputs>(dy, slice.out.count, bias_sum);
      }
      const int64_t next_end = begin + min(g + 2, groups) * (end - begin) / groups;
      Prefetch next_inputs(in, size_, in_, Scheme::kInputs, first + count, next_end,
                           [&](int64_t tile) { return Square::new_inputs(grid, tile); });
      Prefetch next_gradients(out_gradient, size_, out_, Scheme::kOutputs, first + count, next_end,
                              [&](int64_t tile) { return Square::outputs(grid, tile); });
      const auto prefetch = [&]() CMSLAP_ALWAYS_INLINE {
        next_inputs();
        next_gradients();
      };
      for (int64_t m = 0; m < kHalfMatrices; ++m)
        gemm({gradients.at(m, 0), 1, gradients.row_stride}, {inputs.at(m, 0), inputs.row_stride, kPanel},
             {sums + m * matrix_floats(), padded(in_)}, slice.out.count, slice.in.count, count, accumulate || g > 0,
             prefetch);
    }
  }

  // Half the rows of the transform of one tile.
  template <int kFirstRow, int kSide, void (*kTransform)(const Vec (&)[kSide], Vec (&)[kPoints])>
  CMSLAP_TRANSFORM static void transform_half(const Pixels<kSide>& pixels, int64_t channels, float* to,
                                              int64_t matrix_stride) {
    for_channels(channels, [&](int64_t c, auto part) CMSLAP_ALWAYS_INLINE {
      float* first = to + c;
      transform_rows<kRows, kSide, kPoints, kTransform, kSide, kPoints, kTransform>(
          kFirstRow, [&](int i, int j) CMSLAP_ALWAYS_INLINE { return load(pixels.at[i][j] + c, part); },
          [&](int p, int q, Vec value)
              CMSLAP_ALWAYS_INLINE { store(first + ((p - kFirstRow) * kPoints + q) * matrix_stride, value); });
    });
  }

  Size size_;
  int64_t in_, out_, slices_;
  Buffer sums_;  // [slices, kMatrices, out, in]
  Buffer bias_sums_;
  bool added_ = false;
};

}  // namespace cmslap::cpu::CMSLAP_ISA
