// Head, recursion of light-weight residual dense blocks and tail at once, for inference: no feature map exists.
//
// The tail has few outputs, 4 at scale 2, so that a sum for each would leave most of a vector empty. A pixel is
// multiplied by all nine taps' weights at once instead (36 columns of a matrix), and an output adds up what its nine
// pixels' products hold for it.
#pragma once

#include "dense_recursion.h"

namespace cmslap::cpu::CMSLAP_ISA {

// 3×3, from one channel.
class DenseHead {
 public:
  DenseHead(const DenseNetwork& op, int64_t width) : width_(width), memory_(10 * width) {
    std::memset(memory_.data(), 0, memory_.size() * sizeof(float));
    for (int64_t c = 0; c < op.recursion.channels; ++c) {
      for (int64_t t = 0; t < 9; ++t) memory_.data()[t * width + c] = op.head_weight[c * 9 + t];
      memory_.data()[9 * width + c] = op.head_bias[c];
    }
  }

  static int64_t scratch_floats(int64_t columns) { return 3 * (columns + 2); }

  // Columns [begin, end) of row y, to records.
  void row(const float* images, Size size, int64_t image, int64_t y, int64_t begin, int64_t end, float* to,
           int64_t pitch, float* scratch) const {
    const int64_t columns = end - begin + 2;
    const float* rows[3];
    for (int64_t k = 0; k < 3; ++k) {
      float* row = scratch + k * columns;
      rows[k] = row;
      const int64_t from = y + k - 1;
      for (int64_t x = begin - 1; x <= end; ++x) {
        const bool inside = from >= 0 && from < size.height && x >= 0 && x < size.width;
        row[x - begin + 1] = inside ? images[(image * size.height + from) * size.width + x] : 0;
      }
    }
    for_strips(0, end - begin, [&](auto count, int64_t x) {
      const float* const in[3] = {rows[0] + x, rows[1] + x, rows[2] + x};
      strip<count.value>(in, to + x * pitch, pitch);
    });
  }

 private:
  template <int kCount>
  void strip(const float* const (&in)[3], float* to, int64_t pitch) const {
    for (int64_t c = 0; c < width_; c += kLanes) {
      Vec sums[kCount];
#pragma GCC unroll 8
      for (int p = 0; p < kCount; ++p) sums[p] = load(memory_.data() + 9 * width_ + c);
      for (int t = 0; t < 9; ++t) {
        const Vec tap = load(memory_.data() + t * width_ + c);
#pragma GCC unroll 8
        for (int p = 0; p < kCount; ++p) sums[p] = multiply_add(broadcast(in[t / 3][p + t % 3]), tap, sums[p]);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kCount; ++p) store(to + p * pitch + c, sums[p]);
    }
  }

  int64_t width_;
  Buffer memory_;  // [9 taps and the bias, padded channels]
};

// 3×3, to a few channels.
class DenseTail {
 public:
  DenseTail(const DenseNetwork& op, int64_t width)
      : width_(width),
        outputs_(op.outputs),
        part_(padded(3 * op.outputs)),
        bias_(op.tail_bias),
        memory_(width * 3 * part_) {
    std::memset(memory_.data(), 0, memory_.size() * sizeof(float));
    for (int64_t o = 0; o < outputs_; ++o)
      for (int64_t c = 0; c < op.recursion.channels; ++c)
        for (int64_t k = 0; k < 3; ++k)
          for (int64_t l = 0; l < 3; ++l)
            memory_.data()[(c * 3 + k) * part_ + l * outputs_ + o] =
                op.tail_weight[(o * op.recursion.channels + c) * 9 + 3 * k + l];
  }

  int64_t scratch_floats(int64_t columns) const { return (kRows * 3 + 1) * (columns + 2) * part_; }

  // Row y of x, columns [left - 1, right + 1), has come: its products, and output row y - 1 where it is wanted.
  void row(const Plane& plane, int64_t y, int64_t left, int64_t right, bool wanted, float* to, float* scratch) const {
    const int64_t columns = right - left + 2;
    const auto products = [&](int64_t row) { return scratch + (row & (kRows - 1)) * columns * 3 * part_; };
    gemm({plane.at(y, left - 1), plane.pitch, 1}, {memory_.data(), 3 * part_, kPanel}, {products(y), 3 * part_},
         columns, 3 * part_, width_, false);
    if (!wanted) return;
    float* sums = scratch + kRows * columns * 3 * part_;
    const float* const from[3] = {products(y - 2), products(y - 1) + part_, products(y) + 2 * part_};
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t i = 0; i < part_; i += kLanes) {
        const int64_t at = x * 3 * part_ + i;
        store(sums + x * part_ + i, load(from[0] + at) + load(from[1] + at) + load(from[2] + at));
      }
    for (int64_t x = 0; x < right - left; ++x, to += outputs_)
      for (int64_t o = 0; o < outputs_; ++o) {
        const float* sum = sums + x * part_ + o;
        to[o] = bias_[o] + sum[0] + sum[part_ + outputs_] + sum[2 * (part_ + outputs_)];
      }
  }

 private:
  static constexpr int64_t kRows = 4;  // of products in a ring; three are read

  int64_t width_, outputs_, part_;  // floats of the three taps of a row
  const float* bias_;
  Buffer memory_;  // [padded channels, 3, part]
};

inline void dense_network(const DenseNetwork& op, Size size, const float* images, float* out) {
  ThreadPool pool;
  const PackedDenseBlock block(op.recursion);
  const DenseHead head(op, block.x);
  const DenseTail tail(op, block.x);
  const int64_t recursions = op.recursion.recursions, columns = DenseStrip::kColumns;
  const int64_t strip_end = DenseStrip::floats(block, recursions, 1);
  const int64_t head_end = strip_end + DenseHead::scratch_floats(columns + 2 * DenseStrip::halo(recursions, 1));
  for_rectangles(pool, size, head_end + tail.scratch_floats(columns),
                 [&](int64_t image, int64_t top, int64_t bottom, int64_t left, int64_t right, float* scratch) {
                   DenseStrip strip(block, recursions, size, 1, scratch);
                   strip.run(
                       top, bottom, left, right,
                       [&](int64_t y, int64_t begin, int64_t end, const Plane& plane) {
                         head.row(images, size, image, y, begin, end, plane.at(y, begin), plane.pitch,
                                  scratch + strip_end);
                       },
                       [&](int64_t y, const Plane& plane) {
                         float* to = out + ((image * size.height + y - 1) * size.width + left) * op.outputs;
                         tail.row(plane, y, left, right, y > top, to, scratch + head_end);
                       });
                 });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
