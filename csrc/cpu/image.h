// What the convolutions share: images, packed weights, and what happens to an output before it is stored.
//
// Images are NHWC: a pixel's channels lie together, so that vectors run over channels and no transform shuffles lanes.
#pragma once

#include "gemm.h"
#include "kernels.h"
#include "simd.h"
#include "thread_pool.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Whether a vector of an image fills a cache line: half lines are not worth streaming.
template <class Number>
constexpr bool kStreams = kLanes * sizeof(Number) == kCacheLineBytes;

// Whether an image is streamed: the next operation finds too little of a large one in a cache to make up for reading it
// in before it is written. (A chain of convolutions loses 4 % by it at 4 MiB, and gains 4 % and more from 9 MiB on.)
template <class Number>
bool is_streamed(const Number* image, Size size, int64_t channels) {
  constexpr int64_t kBytes = 8 << 20;
  return kStreams<Number> && size.pixels() * channels * static_cast<int64_t>(sizeof(Number)) >= kBytes &&
         channels % kLanes == 0 && reinterpret_cast<uintptr_t>(image) % kCacheLineBytes == 0;
}

inline Size doubled(Size size) { return {size.batch, 2 * size.height, 2 * size.width}; }

// One operation's share of a parallel region: body(block, scratch) for each of its blocks.
template <class Body>
struct Blocks {
  int64_t count, scratch_floats;
  Body body;
};
template <class Body>
Blocks(int64_t, int64_t, Body) -> Blocks<Body>;

// Two operations at once, so that nobody waits for the end of the first.
template <class First, class Second>
void run_blocks(ThreadPool& pool, const Blocks<First>& first, const Blocks<Second>& second) {
  const auto body = [&](int64_t block, float* scratch) {
    if (block < first.count) return first.body(block, scratch);
    second.body(block - first.count, scratch);
  };
  pool.run(
      first.count, second.count, max(first.scratch_floats, second.scratch_floats),
      [](const void* context, int64_t block, float* scratch) {
        (*static_cast<const decltype(body)*>(context))(block, scratch);
      },
      &body);
}
template <class Body>
void run_blocks(ThreadPool& pool, const Blocks<Body>& blocks) {
  run_blocks(pool, blocks, Blocks{0, 0, [](int64_t, float*) {}});
}
template <class Body>
void for_blocks(ThreadPool& pool, int64_t blocks, int64_t scratch_floats, const Body& body) {
  run_blocks(pool, Blocks{blocks, scratch_floats, [&](int64_t block, float* scratch) { body(block, scratch); }});
}

// Memory for `count` numbers. A type of this instruction set's own, so that no std::vector of it is shared with code
// for other processors.
template <class Number>
class Array {
 public:
  explicit Array(int64_t count) : memory_(floats(count)) {}
  static int64_t floats(int64_t count) { return ceil_div(count * sizeof(Number), sizeof(float)); }
  Number* data() const { return reinterpret_cast<Number*>(memory_.data()); }

 private:
  Buffer memory_;
};

// How a weight [out, in, 3, 3] is read. A convolution's data gradient is the convolution with its weight transposed and
// flipped; a transposed convolution has `in` and `out` exchanged.
struct WeightView {
  const float* data;
  int64_t in, out;
  int64_t in_stride, out_stride, tap_stride;

  static WeightView plain(const float* weight, int64_t in, int64_t out, WeightLayout layout = {}) {
    return {weight, in, out, layout.in_stride, in * 9, layout.tap_stride};
  }
  static WeightView of(const Conv& op) { return plain(op.weight, op.in, op.out, op.layout); }
  WeightView transposed() const { return {data, out, in, out_stride, in_stride, tap_stride}; }
  WeightView flipped() const { return {data + 8 * tap_stride, in, out, in_stride, out_stride, -tap_stride}; }
  // Tap t of the weights from input channel i to output channels o, o + 1, ...
  CMSLAP_INLINE Vec tap(int64_t t, int64_t i, int64_t o) const {
    const float* from = data + o * out_stride + i * in_stride + t * tap_stride;
    Vec taps{};
    if (out - o >= kLanes) {  // a loop the compiler unrolls: twice as fast
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) taps[lane] = from[lane * out_stride];
    } else {
      for (int64_t lane = 0; lane < out - o; ++lane) taps[lane] = from[lane * out_stride];
    }
    return taps;
  }
};

// What gemm multiplies images of Number by, and with.
template <class Number>
struct FactorOf {
  using Type = float;
  static constexpr int64_t kDepth = 1;
};
#ifdef CMSLAP_BFLOAT16
template <>
struct FactorOf<BFloat16> {
  using Type = Pair;
  static constexpr int64_t kDepth = 2;
};
#endif
template <class Number>
using Factor = typename FactorOf<Number>::Type;

// One matrix [in, out] for each tap (or each point of the Winograd transform), columns in panels as gemm wants them.
template <class Number>
struct PackedWeight {
  int64_t in, out, depth, matrices;
  Array<Factor<Number>> data;

  PackedWeight(int64_t matrices, int64_t in, int64_t out)
      : in(in),
        out(out),
        depth(ceil_div(in, FactorOf<Number>::kDepth)),
        matrices(matrices),
        data(matrices * matrix_size()) {}
  // One vector more than needed, or stores to the same place in all matrices would fall into the same few sets of L1.
  int64_t matrix_size() const { return ceil_div(out, kPanel) * depth * kPanel + kLanes; }
  Factor<Number>* at(int64_t matrix, int64_t d, int64_t o) const {
    return data.data() + matrix * matrix_size() + o / kPanel * depth * kPanel + d * kPanel + o % kPanel;
  }
  MatrixB<Factor<Number>> matrix(int64_t m, int64_t from = 0) const { return {at(m, from, 0), kPanel, depth * kPanel}; }
};

// Input channel i of output channels o, o + 1, ...
inline void pack(const PackedWeight<float>& weight, int64_t matrix, int64_t i, int64_t o, Vec values) {
  store(weight.at(matrix, i, o), values);
}
#ifdef CMSLAP_BFLOAT16
inline void pack(const PackedWeight<BFloat16>& weight, int64_t matrix, int64_t i, int64_t o, Vec values) {
  BFloat16 rounded[kLanes];
  store(rounded, values);
  Pair* pairs = weight.at(matrix, i / 2, o);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (i % 2 == 0) pairs[lane] = {rounded[lane], {0}};  // the last channel may have no neighbour
    if (i % 2 == 1) pairs[lane].odd = rounded[lane];
  }
}
#endif

// body(i) for every input channel, on several workers; those that share a factor on one.
template <class Number, class Body>
void for_inputs(ThreadPool& pool, const PackedWeight<Number>& weight, const Body& body) {
  for_blocks(pool, weight.depth, 0, [&](int64_t d, float*) {
    constexpr int64_t kDepth = FactorOf<Number>::kDepth;
    for (int64_t i = d * kDepth; i < min((d + 1) * kDepth, weight.in); ++i) body(i);
  });
}

// Epilogues get vectors of results with the place of their first number in the output, and its channel.
//
// Forward: φ(y + bias + skip).
template <class Number>
struct Activate {
  const float* bias;   // [C] or null
  const Number* skip;  // like the output, or null
  float slope;

  template <class Part>
  CMSLAP_INLINE Vec operator()(Vec y, int64_t number, int64_t channel, Part part) const {
    if (bias) y += load(bias + channel, part);
    if (skip) y += load(skip + number, part);
    return leaky_relu(y, slope);
  }
};

// Backward: y φ'(saved activated tensor), added to the source skip's gradient where a recursion ends.
struct Differentiate {
  const float* activated;  // like the output, or null
  float* skip_gradient;    // like the output, or null
  float slope;

  template <class Part>
  CMSLAP_INLINE Vec operator()(Vec y, int64_t number, int64_t, Part part) const {
    if (activated) y = leaky_relu_gradient(y, load(activated + number, part), slope);
    if (skip_gradient) {
      float* gradient = skip_gradient + number;
      store(gradient, load(gradient, part) + y, part);
    }
    return y;
  }
};

}  // namespace cmslap::cpu::CMSLAP_ISA
