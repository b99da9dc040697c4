// Runs every CPU kernel under a sanitizer (make sanitize), without PyTorch: random shapes, each tensor in memory of
// exactly its size, results compared with plain loops in double. Exits 1 at the first difference; the sanitizers end it
// at theirs.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace cmslap::cpu {

int64_t thread_count() { return 3; }

void on_threads(int64_t workers, void (*body)(const void* context, int64_t worker), const void* context) {
  std::vector<std::thread> threads;
  for (int64_t worker = 0; worker < workers; ++worker) threads.emplace_back(body, context, worker);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace cmslap::cpu

namespace {

using namespace cmslap::cpu;
using Floats = std::vector<float>;

thread_local std::mt19937 engine{std::random_device{}()};

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine); }

Floats random_floats(int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Floats values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

Floats poison(int64_t count) { return Floats(count, NAN); }

void compare(const char* what, const Floats& result, const std::vector<double>& expected, double tolerance = 1e-5) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (result[i] - expected[i]) * (result[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  if (!(std::sqrt(error) <= tolerance * std::sqrt(norm))) {
    std::printf("%s: relative error %g\n", what, std::sqrt(error / norm));
    std::exit(1);
  }
}

// out[coarse, out] of in[fine, in], stride 1 with padding 1 or stride 2 without: body(fine, coarse, tap) for every pair
// that meets.
template <class Body>
void for_taps(Size coarse, int64_t stride, Body&& body) {
  const int64_t height = coarse.height * stride, width = coarse.width * stride, pad = stride == 1;
  for (int64_t n = 0; n < coarse.batch; ++n)
    for (int64_t i = 0; i < coarse.height; ++i)
      for (int64_t j = 0; j < coarse.width; ++j)
        for (int64_t k = 0; k < 3; ++k)
          for (int64_t l = 0; l < 3; ++l) {
            const int64_t y = stride * i + k - pad, x = stride * j + l - pad;
            if (y >= 0 && y < height && x >= 0 && x < width)
              body((n * height + y) * width + x, (n * coarse.height + i) * coarse.width + j, 3 * k + l);
          }
}

void test_conv(Size size, int64_t in, int64_t out) {
  const Floats weight = random_floats(out * in * 9, 0.3f), bias = random_floats(out),
               x = random_floats(size.pixels() * in);
  const Floats skip = random_floats(size.pixels() * out), grad = random_floats(size.pixels() * out);
  const Conv conv{in, out, weight.data(), bias.data(), 0.2f};

  Floats y = poison(size.pixels() * out), grad_x = poison(size.pixels() * in), grad_skip = poison(size.pixels() * out);
  Floats grad_weight = poison(weight.size()), grad_bias = poison(out);
  kernels().conv(conv, size, x.data(), skip.data(), y.data());
  kernels().conv_backward(conv, size, x.data(), y.data(), grad.data(), grad_x.data(), grad_weight.data(),
                          grad_bias.data(), grad_skip.data());
  Floats alone = poison(grad_x.size());  // nobody wants the skip's gradient, nor the parameters'
  kernels().conv_backward(conv, size, x.data(), y.data(), grad.data(), alone.data(), nullptr, nullptr, nullptr);

  std::vector<double> y_(y.size()), grad_x_(grad_x.size()), grad_weight_(weight.size()), grad_bias_(out);
  std::vector<double> before(y.size());  // the activation
  for (size_t i = 0; i < y.size(); ++i) {
    y_[i] = bias[i % out] + skip[i];
    before[i] = grad[i] * (y[i] > 0 ? 1 : conv.slope);
    grad_bias_[i % out] += before[i];
  }
  for_taps(size, 1, [&](int64_t fine, int64_t coarse, int64_t tap) {
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) {
        const int64_t w = (o * in + i) * 9 + tap;
        y_[coarse * out + o] += double(weight[w]) * x[fine * in + i];
        grad_x_[fine * in + i] += weight[w] * before[coarse * out + o];
        grad_weight_[w] += before[coarse * out + o] * x[fine * in + i];
      }
  });
  for (double& value : y_) value = value > 0 ? value : conv.slope * value;
  compare("conv", y, y_);
  compare("conv, gradient of the skip", grad_skip, before);
  compare("conv, gradient of x", grad_x, grad_x_);
  compare("conv, gradient of x alone", alone, grad_x_);
  compare("conv, gradient of the weight", grad_weight, grad_weight_);
  compare("conv, gradient of the bias", grad_bias, grad_bias_);
}

void test_upsampling(Size size, int64_t in, int64_t out) {
  const Floats weight = random_floats(in * out * 9, 0.3f), bias = random_floats(out),
               a = random_floats(size.pixels() * in);
  const Floats grad = random_floats(4 * size.pixels() * out);
  const Upsampling up{in, out, weight.data(), bias.data()};

  Floats f = poison(grad.size()), grad_a = poison(a.size()), grad_weight = poison(weight.size()),
         grad_bias = poison(out);
  kernels().upsampling(up, size, a.data(), f.data());
  kernels().upsampling_backward(up, size, a.data(), grad.data(), grad_a.data(), grad_weight.data(), grad_bias.data());

  std::vector<double> f_(f.size()), grad_a_(a.size()), grad_weight_(weight.size());
  for (size_t i = 0; i < f.size(); ++i) f_[i] = bias[i % out];
  for_taps(size, 2, [&](int64_t fine, int64_t coarse, int64_t tap) {
    for (int64_t i = 0; i < in; ++i)
      for (int64_t o = 0; o < out; ++o) {
        const int64_t w = (i * out + o) * 9 + tap;
        f_[fine * out + o] += double(weight[w]) * a[coarse * in + i];
        grad_a_[coarse * in + i] += double(weight[w]) * grad[fine * out + o];
        grad_weight_[w] += double(a[coarse * in + i]) * grad[fine * out + o];
      }
  });
  compare("upsampling", f, f_);
  compare("upsampling, gradient of a", grad_a, grad_a_);
  compare("upsampling, gradient of the weight", grad_weight, grad_weight_);
}

// The composed operations, against the parts they are made of (which the tests above compare with plain loops).
void test_level(Size size, int64_t channels, int64_t depth, int64_t recursions) {
  const int64_t floats = size.pixels() * channels;
  const Floats weights = random_floats(depth * channels * channels * 9, 0.1f), biases = random_floats(depth * channels);
  const Floats bias = random_floats(channels), u = random_floats(floats), grad = random_floats(4 * floats);
  const Floats head_weight = random_floats(channels * 9), image_weight = random_floats(16),
               image = random_floats(size.pixels());
  const float head_bias = 0.5f;
  const Upsampling up{channels, channels, weights.data(), bias.data()};
  const ResidualHead head{channels, head_weight.data(), &head_bias, image_weight.data()};

  std::vector<double> f_, grad_weights_;
  for (Save save : {Save::kNothing, Save::kRecursions, Save::kConvolutions}) {
    const Embedding op{channels, depth, recursions, weights.data(), biases.data(), 1.0f, save};
    Floats saved = poison(op.saved_images() * floats), a = poison(floats), f = poison(4 * floats);
    kernels().level(op, up, size, u.data(), saved.data(), a.data(), f.data());
    if (f_.empty()) f_.assign(f.begin(), f.end());
    compare("level", f, f_);
    if (save == Save::kNothing) continue;
    Floats grad_u = poison(floats), grad_weights(weights.size()), grad_biases(biases.size()), grad_bias(channels);
    kernels().level_backward(op, up, size, saved.data(), a.data(), grad.data(), grad_u.data(), grad_weights.data(),
                             grad_biases.data(), grad_weights.data(), grad_bias.data());
    if (grad_weights_.empty()) grad_weights_.assign(grad_weights.begin(), grad_weights.end());
    compare("level, gradient of the weights", grad_weights, grad_weights_);
  }

  const Floats f(f_.begin(), f_.end());
  Floats out = poison(4 * size.pixels()), folded = poison(4 * size.pixels());
  kernels().residual_head(head, size, f.data(), image.data(), out.data());
  const Embedding op{channels, depth, recursions, weights.data(), biases.data(), 1.0f, Save::kNothing};
  kernels().last_level(op, up, head, size, u.data(), image.data(), folded.data());
  compare("last level", folded, {out.begin(), out.end()});

  const Floats grad_out = random_floats(out.size());
  Floats grad_f = poison(f.size()), grad_image = poison(image.size()), grad_head(head_weight.size()), grad_bias(1),
         grad_k(16);
  kernels().residual_head_backward(head, size, f.data(), image.data(), grad_out.data(), grad_f.data(),
                                   grad_image.data(), grad_head.data(), grad_bias.data(), grad_k.data());
}

std::vector<double> exactly(const Floats& values) { return {values.begin(), values.end()}; }

// A dense block's parameters one behind the other, and where each begins.
struct DenseProblem {
  int64_t channels, growth;
  std::vector<int64_t> counts{9 * channels,
                              growth * channels,
                              growth,
                              9 * (channels + growth),
                              growth * (channels + growth),
                              growth,
                              channels * (channels + 2 * growth),
                              channels};
  int64_t total() const { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }
  template <class Number>
  DenseParameters<Number> parameters(Number* all) const {
    Number* part[8];
    for (int i = 0; i < 8; ++i) part[i] = i ? part[i - 1] + counts[i - 1] : all;
    return {part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7]};
  }
};

using Doubles = std::vector<double>;

// φ(P D in + bias), or P in + bias where there is no D.
Doubles separable(Size size, const Doubles& in, int64_t channels, const float* depthwise, const float* pointwise,
                  const float* bias, int64_t out, float slope) {
  Doubles middle = in, y(size.pixels() * out);
  if (depthwise) {
    std::fill(middle.begin(), middle.end(), 0);
    for_taps(size, 1, [&](int64_t fine, int64_t coarse, int64_t tap) {
      for (int64_t c = 0; c < channels; ++c)
        middle[coarse * channels + c] += depthwise[c * 9 + tap] * in[fine * channels + c];
    });
  }
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = bias[i % out];
    for (int64_t c = 0; c < channels; ++c) y[i] += pointwise[i % out * channels + c] * middle[i / out * channels + c];
    if (y[i] < 0) y[i] *= slope;
  }
  return y;
}

Doubles joined(const Doubles& a, int64_t channels, const Doubles& b, int64_t more) {
  Doubles both;
  for (size_t p = 0; p * channels < a.size(); ++p) {
    both.insert(both.end(), a.begin() + p * channels, a.begin() + (p + 1) * channels);
    both.insert(both.end(), b.begin() + p * more, b.begin() + (p + 1) * more);
  }
  return both;
}

Doubles dense_recursion_(const DenseRecursion& op, Size size, Doubles x) {
  const DenseParameters<const float>& p = op.parameters;
  const int64_t c = op.channels, g = op.growth;
  for (int64_t r = 0; r < op.recursions; ++r) {
    const Doubles a = separable(size, x, c, p.depthwise1, p.pointwise1, p.bias1, g, op.slope), xa = joined(x, c, a, g);
    const Doubles b = separable(size, xa, c + g, p.depthwise2, p.pointwise2, p.bias2, g, op.slope);
    const Doubles more = separable(size, joined(xa, c + g, b, g), c + 2 * g, nullptr, p.pointwise3, p.bias3, c, 1.0f);
    for (size_t i = 0; i < x.size(); ++i) x[i] += more[i];
  }
  return x;
}

void test_dense(Size size, int64_t channels, int64_t growth, int64_t recursions) {
  const DenseProblem problem{channels, growth};
  const Floats weights = random_floats(problem.total(), 0.3f), u = random_floats(size.pixels() * channels),
               grad = random_floats(u.size());
  const DenseRecursion op{channels, growth, recursions, problem.parameters(weights.data()), 0.2f};
  Floats y = poison(u.size()), kept = poison(u.size());
  Floats saved = poison(recursions * size.batch * (size.height + 2) * (size.width + 2) * op.record());
  kernels().dense_recursion(op, size, u.data(), nullptr, y.data());
  kernels().dense_recursion(op, size, u.data(), saved.data(), kept.data());
  compare("dense recursion", y, dense_recursion_(op, size, exactly(u)));
  compare("dense recursion, saving", kept, exactly(y), 0);
  Floats grad_u = poison(u.size()), grad_weights(weights.size());
  kernels().dense_recursion_backward(op, size, saved.data(), grad.data(), grad_u.data(),
                                     problem.parameters(grad_weights.data()));

  // Without activation one block is affine in u, and in each parameter: a difference is the gradient's product.
  const DenseRecursion affine{channels, growth, 1, op.parameters, 1.0f};
  grad_weights.assign(weights.size(), 0);
  kernels().dense_recursion(affine, size, u.data(), saved.data(), y.data());
  kernels().dense_recursion_backward(affine, size, saved.data(), grad.data(), grad_u.data(),
                                     problem.parameters(grad_weights.data()));
  const Doubles before = dense_recursion_(affine, size, exactly(u));
  const auto check = [&](const char* what, const Floats& gradient, const Floats& step, const Doubles& after) {
    double change = 0, product = 0, scale = 0;
    for (size_t i = 0; i < before.size(); ++i) change += grad[i] * (after[i] - before[i]);
    for (size_t i = 0; i < step.size(); ++i) product += double(gradient[i]) * step[i];
    for (size_t i = 0; i < before.size(); ++i) scale += std::pow(grad[i] * (after[i] - before[i]), 2);
    if (!(std::abs(change - product) <= 1e-4 * std::sqrt(scale))) {
      std::printf("%s: %g instead of %g\n", what, product, change);
      std::exit(1);
    }
  };
  const Floats step = random_floats(u.size());
  Doubles moved = exactly(u);
  for (size_t i = 0; i < moved.size(); ++i) moved[i] += step[i];
  check("dense recursion, gradient of u", grad_u, step, dense_recursion_(affine, size, moved));
  for (int64_t part = 0, first = 0; part < 8; first += problem.counts[part++]) {
    Floats steps(weights.size()), others = weights;
    for (int64_t i = first; i < first + problem.counts[part]; ++i) {
      others[i] += steps[i] = between(-4, 4);
      steps[i] = others[i] - weights[i];
    }
    const DenseRecursion other{channels, growth, 1, problem.parameters<const float>(others.data()), 1.0f};
    check("dense recursion, gradient of a parameter", grad_weights, steps, dense_recursion_(other, size, exactly(u)));
  }
}

void test_dense_network(Size size, int64_t channels, int64_t growth, int64_t recursions, int64_t outputs) {
  const DenseProblem problem{channels, growth};
  const Floats weights = random_floats(problem.total(), 0.3f), image = random_floats(size.pixels()),
               head = random_floats(9 * channels), head_bias = random_floats(channels),
               tail = random_floats(9 * channels * outputs), tail_bias = random_floats(outputs);
  const DenseRecursion op{channels, growth, recursions, problem.parameters(weights.data()), 0.0f};
  const DenseNetwork network{op, outputs, head.data(), head_bias.data(), tail.data(), tail_bias.data()};
  Floats out = poison(size.pixels() * outputs);
  kernels().dense_network(network, size, image.data(), out.data());
  Doubles u(size.pixels() * channels), expected(out.size());
  for (size_t i = 0; i < u.size(); ++i) u[i] = head_bias[i % channels];
  for_taps(size, 1, [&](int64_t fine, int64_t coarse, int64_t tap) {
    for (int64_t c = 0; c < channels; ++c) u[coarse * channels + c] += double(head[c * 9 + tap]) * image[fine];
  });
  const Doubles x = dense_recursion_(op, size, u);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = tail_bias[i % outputs];
  for_taps(size, 1, [&](int64_t fine, int64_t coarse, int64_t tap) {
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t c = 0; c < channels; ++c)
        expected[coarse * outputs + o] += tail[(o * channels + c) * 9 + tap] * x[fine * channels + c];
  });
  compare("dense network", out, expected);
  if (!bfloat16_kernels()) return;
  out = poison(out.size());
  bfloat16_kernels()->dense_network(network, size, image.data(), out.data());
  compare("dense network in bfloat16", out, expected, 2e-2);
}

using BFloat16s = std::vector<BFloat16>;

// Cuts values to the upper half of their bits, as bfloat16 has them: in place, and as such.
BFloat16s cut(Floats& values) {
  BFloat16s result(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    result[i].bits = bits >> 16;
    bits &= 0xffff0000;
    std::memcpy(&values[i], &bits, sizeof bits);
  }
  return result;
}

Floats widened(const BFloat16s& values) {
  Floats result(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = uint32_t(values[i].bits) << 16;
    std::memcpy(&result[i], &bits, sizeof bits);
  }
  return result;
}

// The kernels for bfloat16 against those for float32, which the tests above compare with plain loops.
void test_bfloat16(const BFloat16Kernels& short_kernels, Size size, int64_t in, int64_t out) {
  constexpr double kTolerance = 1e-2;
  const BFloat16 nan{0x7fc0};
  Floats x = random_floats(size.pixels() * in), skip = random_floats(size.pixels() * out), y = poison(skip.size());
  const Floats weight = random_floats(out * in * 9, 0.3f), bias = random_floats(out);
  const BFloat16s short_x = cut(x), short_skip = cut(skip);
  BFloat16s short_y(y.size(), nan);
  const Conv conv{in, out, weight.data(), bias.data(), 0.2f};
  kernels().conv(conv, size, x.data(), skip.data(), y.data());
  short_kernels.conv(conv, size, short_x.data(), short_skip.data(), short_y.data());
  compare("conv in bfloat16", widened(short_y), exactly(y), kTolerance);

  const Floats weights = random_floats(2 * in * in * 9, 0.3f / std::sqrt(float(in))), biases = random_floats(2 * in);
  const Floats head_weight = random_floats(in * 9), image_weight = random_floats(16),
               image = random_floats(size.pixels());
  const float head_bias = 0.5f;
  const Embedding op{in, 2, 2, weights.data(), biases.data(), 0.2f, Save::kNothing};
  const Upsampling up{in, in, weights.data(), biases.data()};
  const ResidualHead head{in, head_weight.data(), &head_bias, image_weight.data()};
  Floats a = poison(x.size()), f = poison(4 * x.size()), enlarged = poison(4 * size.pixels());
  BFloat16s short_a(a.size(), nan), short_f(f.size(), nan);
  kernels().embedding(op, size, x.data(), nullptr, a.data());
  short_kernels.embedding(op, size, short_x.data(), short_a.data());
  compare("embedding in bfloat16", widened(short_a), exactly(a), kTolerance);
  kernels().upsampling(up, size, x.data(), f.data());
  short_kernels.upsampling(up, size, short_x.data(), short_f.data());
  compare("upsampling in bfloat16", widened(short_f), exactly(f), kTolerance);
  kernels().level(op, up, size, x.data(), nullptr, a.data(), f.data());
  short_kernels.level(op, up, size, short_x.data(), short_f.data());
  compare("level in bfloat16", widened(short_f), exactly(f), kTolerance);
  Floats short_enlarged = poison(enlarged.size());
  kernels().residual_head(head, size, widened(short_f).data(), image.data(), enlarged.data());
  short_kernels.residual_head(head, size, short_f.data(), image.data(), short_enlarged.data());
  compare("residual head in bfloat16", short_enlarged, exactly(enlarged));
  kernels().last_level(op, up, head, size, x.data(), image.data(), enlarged.data());
  short_kernels.last_level(op, up, head, size, short_x.data(), image.data(), short_enlarged.data());
  compare("last level in bfloat16", short_enlarged, exactly(enlarged), kTolerance);
}

}  // namespace

int main() try {
  for (int round = 0; round < 6; ++round) {
    const Size size{between(1, 2), between(1, 21), between(1, 30)};
    test_conv(size, between(1, 40), between(1, 40));
    test_upsampling(size, between(1, 20), between(1, 20));
    test_level(size, between(1, 24), between(1, 3), between(1, 2));
    test_dense(size, between(1, 36), between(1, 20), between(1, 3));
    test_dense_network(size, between(1, 36), between(1, 20), between(1, 3), between(1, 9));
    if (bfloat16_kernels()) test_bfloat16(*bfloat16_kernels(), size, between(1, 40), between(1, 40));
  }
  test_conv({1, 9, 110}, 64, 64);
  test_upsampling({1, 2, 110}, 64, 64);
  test_dense_network({2, 3, 230}, 4, 3, 2, 4);
  std::thread other([] { test_conv({1, 45, 48}, 17, 65); });  // calls at the same time share the threads
  test_conv({1, 48, 45}, 65, 17);
  other.join();
  std::printf("%s kernels%s: no difference\n", kernels().name, bfloat16_kernels() ? " and those for bfloat16" : "");
} catch (const std::invalid_argument& error) {  // an instruction set this processor has not
  std::printf("skipped: %s\n", error.what());
}
