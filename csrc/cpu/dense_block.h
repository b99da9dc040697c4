// Rows of the light-weight residual dense block  a = φ(P₁ D₁ x), b = φ(P₂ D₂ [x, a]), y = x + P₃ [x, a, b]:  D
// depthwise 3×3, P pointwise.
//
// A pixel costs 9C + 9(C + G) + CG + (C + G)G + (C + 2G)C multiplications: with C = G = 32 they are 864 depthwise and
// 6,144 pointwise ones, 438 multiply-adds of AVX-512, which two units do in 219 cycles. Done one after the other these
// steps read and write 8C + 7G numbers, 1,920 bytes, and the depthwise ones multiply each but nine times. So a strip of
// a few pixels goes through all of a step's work in registers and L1: depthwise sums are what the pointwise product
// reads next, and they are never stored elsewhere.
//
// Kernels for bfloat16 round what pointwise products multiply, two neighbours in depth an instruction; x, all sums and
// the depthwise products stay float32.
//
// Pixels are records [x, a] or [x, a, b] of floats; each part is padded to 16 channels with zeros, for every
// instruction set, so that all loops are over whole vectors. Whatever lies outside the image is zero.
#pragma once

#include "image.h"

namespace cmslap::cpu::CMSLAP_ISA {

constexpr int kPixels = CMSLAP_VECTOR_REGISTERS >= 32 ? 8 : 4;  // a strip: its sums stay in registers
constexpr int kSums = 2;                                        // vectors of a pixel's sums in registers
static_assert(DenseRecursion::kPart % kLanes == 0);

#ifdef CMSLAP_BFLOAT16
using DenseNumber = BFloat16;
inline BFloat16 rounded(float value) {
  BFloat16 lanes[kLanes];
  store(lanes, broadcast(value));
  return lanes[0];
}
#else
using DenseNumber = float;
inline float rounded(float value) { return value; }
#endif
using DenseFactor = Factor<DenseNumber>;
constexpr int64_t kDenseDepth = FactorOf<DenseNumber>::kDepth;

// Where channel i of [x, a, b] lies in a record.
inline int64_t place(const DenseRecursion& op, int64_t i) {
  if (i < op.channels) return i;
  i -= op.channels;
  return i < op.growth ? op.padded_channels() + i : op.dense() + i - op.growth;
}

// A 3×3 depthwise kernel [9, channels]; its flipped copy is the data gradient's.
struct DepthwiseWeight {
  const float* middle;
  int64_t stride;  // from tap to tap
  const float* tap(int64_t t) const { return middle + (t - 4) * stride; }
  DepthwiseWeight flipped() const { return {middle, -stride}; }
};

// P as the rows read it: [in / kDenseDepth, out] forward, [out, in] backward.
struct PointwiseWeight {
  int64_t in, out;
  const DenseFactor* forward;
  const float* backward;
};

// A block's parameters, padded.
class PackedDenseBlock {
 public:
  explicit PackedDenseBlock(const DenseRecursion& op)
      : x(op.padded_channels()),
        a(op.padded_growth()),
        slope(op.slope),
        memory_(9 * (x + dense()) + record() + 2 * (x * a + dense() * a + record() * x)),
        next_(memory_.data()) {
    std::memset(memory_.data(), 0, memory_.size() * sizeof(float));
    const DenseParameters<const float>& from = op.parameters;
    const int64_t channels = op.channels, growth = op.growth;
    depthwise1 = depthwise(op, channels, x, from.depthwise1);
    depthwise2 = depthwise(op, channels + growth, dense(), from.depthwise2);
    pointwise1 = pointwise(op, from.pointwise1, channels, growth, x, a);
    pointwise2 = pointwise(op, from.pointwise2, channels + growth, growth, dense(), a);
    pointwise3 = pointwise(op, from.pointwise3, channels + 2 * growth, channels, record(), x);
    bias1 = bias(growth, a, from.bias1);
    bias2 = bias(growth, a, from.bias2);
    bias3 = bias(channels, x, from.bias3);
  }
  PackedDenseBlock(const PackedDenseBlock&) = delete;

  int64_t dense() const { return x + a; }
  int64_t record() const { return x + 2 * a; }

  int64_t x, a;  // padded channels of x, and of a and b each
  float slope;
  DepthwiseWeight depthwise1, depthwise2;
  PointwiseWeight pointwise1, pointwise2, pointwise3;
  const float *bias1, *bias2, *bias3;

 private:
  float* take(int64_t floats) { return (next_ += floats) - floats; }
  DepthwiseWeight depthwise(const DenseRecursion& op, int64_t channels, int64_t width, const float* weight) {
    float* to = take(9 * width);
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t c = 0; c < channels; ++c) to[t * width + place(op, c)] = weight[c * 9 + t];
    return {to + 4 * width, width};
  }
  PointwiseWeight pointwise(const DenseRecursion& op, const float* weight, int64_t inputs, int64_t outputs, int64_t in,
                            int64_t out) {
    auto* forward = reinterpret_cast<DenseNumber*>(take(in * out));
    float* backward = take(in * out);
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t p = place(op, i);
        backward[o * in + p] = weight[o * inputs + i];
        forward[(p / kDenseDepth * out + o) * kDenseDepth + p % kDenseDepth] = rounded(weight[o * inputs + i]);
      }
    return {in, out, reinterpret_cast<const DenseFactor*>(forward), backward};
  }
  const float* bias(int64_t channels, int64_t width, const float* values) {
    float* to = take(width);
    std::memcpy(to, values, channels * sizeof(float));
    return to;
  }

  Buffer memory_;
  float* next_;
};

// Rows of records, all of an image's or the last four: what a ring of them forgets is not needed again.
struct Plane {
  float* data;
  int64_t pitch, row_floats;  // floats of a record, and from row to row
  int64_t first_column;
  bool ring;

  static constexpr int64_t kRingRows = 4;
  static Plane whole(float* data, Size size, int64_t pitch) {  // with a margin of one pixel
    return {data, pitch, (size.width + 2) * pitch, -1, false};
  }
  static int64_t floats(Size size, int64_t pitch) { return (size.height + 2) * (size.width + 2) * pitch; }
  float* row(int64_t y) const { return data + (ring ? y & (kRingRows - 1) : y + 1) * row_floats; }
  float* at(int64_t y, int64_t x) const { return row(y) + (x - first_column) * pitch; }
};

// Σ over taps of D · in for kCount pixels of a row, added to `start` where there is one.
template <int kCount, class Number>
CMSLAP_INLINE void depthwise_strip(const float* const in[3], int64_t pitch, DepthwiseWeight weight, int64_t channels,
                                   const float* start, int64_t start_pitch, Number* out, int64_t out_pitch) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vec sums[kCount];
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) sums[p] = start ? load(start + p * start_pitch + c) : Vec{};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      Vec row[kCount + 2];
#pragma GCC unroll 10
      for (int p = 0; p < kCount + 2; ++p) row[p] = load(in[k] + (p - 1) * pitch + c);
#pragma GCC unroll 3
      for (int l = 0; l < 3; ++l) {
        const Vec tap = load(weight.tap(3 * k + l) + c);
#pragma GCC unroll 8
        for (int p = 0; p < kCount; ++p) sums[p] = multiply_add(row[p + l], tap, sums[p]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) store(out + p * out_pitch + c, sums[p]);
  }
}

// Neighbouring pixels' channels, to be multiplied.
struct Factors {
  const DenseNumber* data;
  int64_t pitch, channels;

  DenseFactor at(int64_t pixel, int64_t depth) const {
    return reinterpret_cast<const DenseFactor*>(data + pixel * pitch)[depth];
  }
};

// bias + P · [factors] for kCount pixels; store(pixel, channel, sum) takes the sums.
template <int kCount, int kVecs, int kFactors, class Store>
CMSLAP_INLINE void pointwise_columns(const Factors (&factors)[kFactors], const PointwiseWeight& weight,
                                     const float* bias, int64_t o, const Store& store) {
  Vec sums[kCount][kVecs];
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sums[p][v] = load(bias + o + v * kLanes);
  const DenseFactor* row = weight.forward + o;
  for (const Factors& part : factors)
    for (int64_t i = 0; i < part.channels / kDenseDepth; ++i, row += weight.out) {
      decltype(load(row)) columns[kVecs];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) columns[v] = load(row + v * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < kCount; ++p) {
        const auto factor = broadcast(part.at(p, i));
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) sums[p][v] = multiply_add(factor, columns[v], sums[p][v]);
      }
    }
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) store(p, o + v * kLanes, sums[p][v]);
}

template <int kCount, int kFactors, class Store>
CMSLAP_INLINE void pointwise_strip(const Factors (&factors)[kFactors], const PointwiseWeight& weight, const float* bias,
                                   const Store& store) {
  int64_t o = 0;
  for (; o + kSums * kLanes <= weight.out; o += kSums * kLanes)
    pointwise_columns<kCount, kSums>(factors, weight, bias, o, store);
  if (o < weight.out) pointwise_columns<kCount, 1>(factors, weight, bias, o, store);
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// body(Count, first pixel) over a row, in whole strips where it is long enough; pixels of the
// last two strips may be the same ones.
template <class Body>
CMSLAP_INLINE void for_strips(int64_t begin, int64_t end, const Body& body) {
  if (end - begin < kPixels) {
    for (int64_t x = begin; x < end; ++x) body(Count<1>{}, x);
    return;
  }
  for (int64_t x = begin; x < end; x += kPixels) body(Count<kPixels>{}, min(x, end - kPixels));
}

// [x, a] of kCount records as pointwise products read it: where it lies, or rounded and in `room`.
template <int kCount>
CMSLAP_INLINE Factors dense_factors(const float* records, int64_t pitch, int64_t channels,
                                    [[maybe_unused]] DenseNumber* room) {
#ifdef CMSLAP_BFLOAT16
  for (int64_t c = 0; c < channels; c += kLanes)
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) store(room + p * channels + c, load(records + p * pitch + c));
  return {room, channels, channels};
#else
  return {records, pitch, channels};
#endif
}

// Scratch floats of the two functions below.
inline int64_t strip_floats(const PackedDenseBlock& block) { return kPixels * block.record(); }

// a of row y, columns [begin, end), from x around it.
inline void first_growth_row(const PackedDenseBlock& block, const Plane& plane, int64_t y, int64_t begin, int64_t end,
                             float* scratch) {
  auto* sums = reinterpret_cast<DenseNumber*>(scratch);
  for_strips(begin, end, [&](auto count, int64_t x) {
    const float* in[3] = {plane.at(y - 1, x), plane.at(y, x), plane.at(y + 1, x)};
    depthwise_strip<count.value>(in, plane.pitch, block.depthwise1, block.x, nullptr, 0, sums, block.x);
    float* a = plane.at(y, x) + block.x;
    pointwise_strip<count.value>(
        {{sums, block.x, block.x}}, block.pointwise1, block.bias1,
        [&](int p, int64_t c, Vec sum) { store(a + p * plane.pitch + c, leaky_relu(sum, block.slope)); });
  });
}

// y of row y, columns [begin, end), from x and a around it, to out(x): a pixel of pitch out_pitch. In float32 b goes to
// the records where they have room for it.
template <class Out>
void second_growth_row(const PackedDenseBlock& block, const Plane& plane, int64_t y, int64_t begin, int64_t end,
                       const Out& out, int64_t out_pitch, float* scratch) {
  auto* sums = reinterpret_cast<DenseNumber*>(scratch);
  DenseNumber *room = sums + kPixels * block.dense(), *b = room;
  int64_t b_pitch = block.a;
#ifdef CMSLAP_BFLOAT16
  b += kPixels * block.dense();
#endif
  for_strips(begin, end, [&](auto count, int64_t x) {
    const float* in[3] = {plane.at(y - 1, x), plane.at(y, x), plane.at(y + 1, x)};
    depthwise_strip<count.value>(in, plane.pitch, block.depthwise2, block.dense(), nullptr, 0, sums, block.dense());
    float* record = plane.at(y, x);
#ifndef CMSLAP_BFLOAT16
    if (plane.pitch == block.record()) {
      b = record + block.dense();
      b_pitch = plane.pitch;
    }
#endif
    pointwise_strip<count.value>(
        {{sums, block.dense(), block.dense()}}, block.pointwise2, block.bias2,
        [&](int p, int64_t c, Vec sum) { store(b + p * b_pitch + c, leaky_relu(sum, block.slope)); });
    float* to = out(x);
    pointwise_strip<count.value>(
        {dense_factors<count.value>(record, plane.pitch, block.dense(), room), {b, b_pitch, block.a}}, block.pointwise3,
        block.bias3,
        [&](int p, int64_t c, Vec sum) { store(to + p * out_pitch + c, sum + load(record + p * plane.pitch + c)); });
  });
}

}  // namespace cmslap::cpu::CMSLAP_ISA
