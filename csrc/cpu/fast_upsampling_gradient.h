// The gradients of the upsampling U, phase by phase. They share one pass over the image four times the size of the
// other, as those of a and of the weight both need its transformed tiles.
#pragma once

#include "fast_upsampling.h"

namespace cmslap::cpu::CMSLAP_ISA {

// A tile of 4×4 pixels of `a` with 64 channels has 81 points, each in a product for a and one for the weight: 663,552
// multiplications, 20,736 cycles of a core that starts two AVX-512 multiply-adds a cycle. The transforms of 64 + 16
// pixels and the way back take a fifth of that, so the multiply-add units are the limit.
//
// A slice of the tiles has its own sums and is what a worker takes: so workers meet once, and thread counts do not
// matter. It goes through one phase after the other, so that a phase's weights and sums stay in L2; meanwhile grad_a
// holds the sum over the phases.
template <class Epilogue>
class UpsamplingGradient {
  static constexpr int64_t kMaxSlices = 8, kSliceTiles = 64;

 public:
  // grad_a is optional; with_weight: whether finish() will be called.
  UpsamplingGradient(ThreadPool& pool, const Upsampling& op, Size size, const float* a, const float* grad_f,
                     const Epilogue& epilogue, float* grad_a, bool with_weight)
      : op_(op),
        size_(size),
        grid_(size),
        a_(a),
        grad_f_(grad_f),
        epilogue_(epilogue),
        grad_a_(grad_a),
        with_weight_(with_weight),
        weight_(pack_phases(pool, upsampling_weight(op))),
        slices_(slices(grid_.tiles())),
        group_(phase_group(EvenEven::kPoints * (padded(op.out) + padded(op.in)))),
        sums_(with_weight ? slices_ * slice_floats() : 0),
        bias_sums_(with_weight ? slices_ * padded(op.out) : 0) {
    const int64_t tile_floats = phase_floats(group_, op_.out) + phase_floats(group_, op_.in);
    for_blocks(pool, slices_, tile_floats + op_.in + op_.out, [&](int64_t slice, float* scratch) {
      std::memset(scratch + tile_floats, 0, (op_.in + op_.out) * sizeof(float));
      if (with_weight_) std::memset(bias_sum(slice), 0, padded(op_.out) * sizeof(float));
      for_phases([&](auto phase) { add_phase<decltype(phase)>(slice, scratch, scratch + tile_floats); });
    });
  }

  // Adds to the gradients of weight and bias.
  void finish(ThreadPool& pool, float* grad_weight, float* grad_bias) const {
    for_blocks(pool, op_.in, 0, [&](int64_t i, float*) {
      for (int64_t o = 0; o < op_.out; o += kLanes)
        for_phases([&](auto phase) { add_taps<decltype(phase)>(i, o, grad_weight); });
    });
    for (int64_t slice = 0; slice < slices_; ++slice)
      for (int64_t o = 0; o < op_.out; ++o) grad_bias[o] += bias_sum(slice)[o];
  }

 private:
  struct Group {  // of consecutive tiles
    int64_t first, count;
  };

  // Few, as each has sums of its own; but two even of a small image, for two workers.
  static int64_t slices(int64_t tiles) {
    return tiles < kSliceTiles / 4 ? 1 : max(2, min(kMaxSlices, ceil_div(tiles, kSliceTiles)));
  }
  int64_t matrix_floats() const { return op_.in * padded(op_.out) + kLanes; }  // as in TransformedTiles
  int64_t slice_floats() const { return kPhaseMatrices * matrix_floats(); }
  float* sum(int64_t slice, int64_t matrix) const {
    return sums_.data() + slice * slice_floats() + matrix * matrix_floats();
  }
  float* bias_sum(int64_t slice) const { return bias_sums_.data() + slice * padded(op_.out); }

  template <class P>
  PhaseWindow<P> window(int64_t tile, const float* zeros) const {
    Square square = grid_.fine(tile);
    square.y += P::Rows::kOffset;
    square.x += P::Columns::kOffset;
    return PhaseWindow<P>(grad_f_, doubled(size_), op_.out, square, zeros, 2);
  }

  template <class P>
  void add_phase(int64_t slice, float* scratch, const float* zeros) const {
    const int64_t begin = slice * grid_.tiles() / slices_, tiles = (slice + 1) * grid_.tiles() / slices_ - begin;
    const int64_t groups = ceil_div(tiles, group_);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = begin + g * tiles / groups;
      const Group group{first, begin + (g + 1) * tiles / groups - first};
      const auto gradients = phase_tiles<P>(scratch, group.count, op_.out);
      const auto coarse = phase_tiles<P>(scratch + phase_floats(group_, op_.out), group.count, op_.in);
      transform<P>(group, slice, gradients, coarse, zeros);
      if (with_weight_) add_products<P>(group, slice, gradients, coarse, g > 0);
      if (grad_a_) store_grad_a<P>(group, gradients, coarse);
    }
  }

  template <class P>
  void transform(const Group& group, int64_t slice, const TransformedTiles<>& gradients,
                 const TransformedTiles<>& coarse, const float* zeros) const {
    for (int64_t t = 0; t < group.count; ++t) {
      const PhaseWindow<P> pixels = window<P>(group.first + t, zeros);
      transform_phase<P>(pixels, op_.out, gradients, t);
      if (!with_weight_) continue;
      add_pixels<kPhaseSide>(pixels, op_.out, bias_sum(slice));
      transform_phase_gradient<P>({a_, size_, op_.in, grid_.coarse(group.first + t), zeros}, op_.in, coarse, t);
    }
  }

  // Sums of a's transformed tiles times those of the gradient.
  template <class P>
  void add_products(const Group& group, int64_t slice, const TransformedTiles<>& gradients,
                    const TransformedTiles<>& coarse, bool accumulate) const {
    for (int64_t m = 0; m < P::kMatrices; ++m)
      gemm({coarse.at(m, 0), 1, coarse.row_stride}, {gradients.at(m, 0), gradients.row_stride, kPanel},
           {sum(slice, P::kFirstMatrix + m), padded(op_.out)}, op_.in, op_.out, group.count * P::kCopies, accumulate);
  }

  // The gradient's transformed tiles times the weight, which replace a's tiles.
  template <class P>
  void store_grad_a(const Group& group, const TransformedTiles<>& gradients, const TransformedTiles<>& products) const {
    for (int64_t m = 0; m < P::kMatrices; ++m)
      gemm({gradients.at(m, 0), gradients.row_stride, 1}, weight_.matrix(P::kFirstMatrix + m),
           {products.at(m, 0), products.row_stride}, group.count * P::kCopies, op_.in, op_.out, false);
    for (int64_t t = 0; t < group.count; ++t) {
      const Square tile = grid_.coarse(group.first + t);
      const int64_t height = min(kPhaseSide, size_.height - tile.y), width = min(kPhaseSide, size_.width - tile.x);
      const int64_t corner = ((tile.image * size_.height + tile.y) * size_.width + tile.x) * op_.in;
      const int64_t channels = op_.in, pitch = size_.width * channels;
      const auto store_pixel = [=, grad_a = grad_a_, epilogue = epilogue_](int i, int j, Vec value, int64_t c,
                                                                           auto part) CMSLAP_ALWAYS_INLINE {
        if (i >= height || j >= width) return;
        const int64_t number = corner + c + i * pitch + j * channels;
        if (P::kFirstMatrix > 0) value += load(grad_a + number, part);
        store(grad_a + number, P::kLast ? epilogue(value, number, c, part) : value, part);
      };
      store_phase<P>(products, t, channels, store_pixel);
    }
  }

  // Taps of input channel i and output channels o, o + 1, ...
  template <class P>
  void add_taps(int64_t i, int64_t o, float* grad_weight) const {
    using R = typename P::Rows;
    using C = typename P::Columns;
    transform_2d<R::kWeights, R::kTaps, R::weight_gradient, C::kWeights, C::kTaps, C::weight_gradient>(
        [&](int p, int q) {
          Vec total{};
          for (int64_t slice = 0; slice < slices_; ++slice)
            total += load(sum(slice, P::kFirstMatrix + P::matrix(p, q)) + i * padded(op_.out) + o);
          return total;
        },
        [&](int k, int l, Vec taps) {
          float* gradient = grad_weight + (i * op_.out + o) * 9 + 3 * R::kTap[k] + C::kTap[l];
          for (int64_t lane = 0; lane < min(kLanes, op_.out - o); ++lane) gradient[9 * lane] += taps[lane];
        });
  }

  const Upsampling op_;
  const Size size_;
  const PhaseGrid grid_;
  const float *a_, *grad_f_;
  const Epilogue epilogue_;
  float* grad_a_;
  const bool with_weight_;
  const PackedWeight<float> weight_;
  const int64_t slices_, group_;
  const Buffer sums_, bias_sums_;
};

template <class Epilogue>
void upsampling_gradients(ThreadPool& pool, const Upsampling& op, Size size, const float* a, const float* grad_f,
                          const Epilogue& epilogue, float* grad_a, float* grad_weight, float* grad_bias) {
  const UpsamplingGradient<Epilogue> gradient(pool, op, size, a, grad_f, epilogue, grad_a, grad_weight != nullptr);
  if (grad_weight) gradient.finish(pool, grad_weight, grad_bias);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
