// The matrix kernels of csrc/cuda, both implementations, on small random problems against their definitions in float64.
// What they promise about order is tested with it: every run must give the same bits.
#include "cuda/implementations.h"
#include "cuda_problems.h"

namespace cmslap::cuda::testing {
namespace {

const std::vector<int> kAnyChannels = {16, 48, 64, 80, 128};
const std::vector<int> k64 = {64};  // all that the kernels for compute capability 9.0 take

double sign_factor(double saved, double slope) { return saved > 0 ? 1 : slope; }

// to[o] += Σ_c matrix[o, c] · from[c]
void add_product(const double* matrix, const double* from, int in, int out, double* to) {
  for (int o = 0; o < out; ++o) {
    double sum = 0;
    for (int c = 0; c < in; ++c) sum += matrix[int64_t{o} * in + c] * from[c];
    to[o] += sum;
  }
}

// ---- 3×3 convolutions ----

// y[n, i, j] = Σ matrices[tap] · x[n, stride·i + k - pad, stride·j + l - pad]; matrices [9, out, in]
Values correlate(const Values& x, Size x_size, const Values& matrices, Size y_size, int in, int out, int stride,
                 int pad, bool flipped) {
  Values y(y_size.pixels() * out, 0.0);
  for_pixels(y_size, [&](int n, int i, int j) {
    for_taps(x_size, i, j, stride, pad, [&](int tap, int row, int column) {
      add_product(&matrices[int64_t{flipped ? 8 - tap : tap} * out * in], &x[pixel(x_size, n, row, column) * in], in,
                  out, &y[pixel(y_size, n, i, j) * out]);
    });
  });
  return y;
}

template <class Run, class Rows>
void test_conv(const char* name, const Problem& p, Run run, Rows sum_rows) {
  const bool gradient = coin(), with_bias = !gradient && coin(), with_skip = coin(), with_sums = coin(),
             flipped = coin();
  const bool with_total = gradient && with_skip, with_y = !with_total || coin();
  describe(name, p,
           std::string(gradient ? "gradient" : "forward") + (with_bias ? ", bias" : "") + (with_skip ? ", skip" : "") +
               (with_sums ? ", sums" : "") + (flipped ? ", flipped" : "") + (with_y ? "" : ", no y"));
  Inputs inputs(p.type);
  const int64_t xs = p.size.pixels() * p.in, ys = p.size.pixels() * p.out, weights = int64_t{9} * p.out * p.in;
  const auto x = inputs.words(xs);
  const auto matrices = inputs.words(weights, 0.1);
  const auto bias = with_bias ? inputs.floats(p.out) : nullptr;
  const auto skip = with_skip ? inputs.words(ys) : nullptr;
  const auto saved = gradient ? inputs.words(ys) : nullptr;
  const float slope = static_cast<float>(p.slope);
  Conv c{p.type, p.size, p.in, p.out, x, matrices, flipped, slope, bias, skip, saved, nullptr, nullptr, nullptr};

  Values want =
      correlate(values(p.type, x, xs), p.size, values(p.type, matrices, weights), p.size, p.in, p.out, 1, 1, flipped);
  const Values skipped = values(p.type, skip, ys), signs = values(p.type, saved, ys), biases = values(bias, p.out);
  Values want_total(ys), slack(ys);
  for (int64_t i = 0; i < ys; ++i) {
    if (gradient) {
      want[i] *= sign_factor(signs[i], slope);
    } else {
      want[i] = leaky_relu(want[i] + biases[i % p.out] + skipped[i], slope);
    }
    want_total[i] = want[i] + skipped[i];
    slack[i] = std::fabs(want[i]);  // may be rounded before it is added
  }

  uint16_t *y, *total;
  float* sums;
  const int64_t sum_count = int64_t{sum_rows(c)} * p.out;
  run_and_check(
      [&](Outputs& outputs) {
        c.y = y = outputs.words(ys, with_y);
        c.total = total = outputs.words(ys, with_total);
        c.sums = sums = outputs.floats(sum_count, with_sums);
        run(c, nullptr);
      },
      [&] {
        if (with_y) check_close("y", values(p.type, y, ys), want, unit(p.type));
        if (with_total) check_close("total", values(p.type, total, ys), want_total, unit(p.type), slack);
        if (with_sums) check_sums("sums", p.type, values(sums, sum_count), p.out, want);
      });
}

// ---- Transposed convolution ----

// y[n, 2i + k, 2j + l] += matrices[tap] · a[n, i, j], cropped; matrices [9, out, in]
Values transposed(const Values& a, Size size, const Values& matrices, int in, int out) {
  const Size large = scaled(size, 2);
  Values y(large.pixels() * out, 0.0);
  for_pixels(size, [&](int n, int i, int j) {
    for_taps(large, i, j, 2, 0, [&](int tap, int row, int column) {
      add_product(&matrices[int64_t{tap} * out * in], &a[pixel(size, n, i, j) * in], in, out,
                  &y[pixel(large, n, row, column) * out]);
    });
  });
  return y;
}

template <class Run>
void test_transposed_conv(const char* name, const Problem& p, Run run) {
  const bool with_bias = coin();
  describe(name, p, with_bias ? "bias" : "");
  Inputs inputs(p.type);
  const int64_t as = p.size.pixels() * p.in, ys = p.size.pixels() * 4 * p.out, weights = int64_t{9} * p.out * p.in;
  const auto a = inputs.words(as);
  const auto matrices = inputs.words(weights, 0.1);
  const auto bias = with_bias ? inputs.floats(p.out) : nullptr;

  Values want = transposed(values(p.type, a, as), p.size, values(p.type, matrices, weights), p.in, p.out);
  const Values biases = values(bias, p.out);
  for (int64_t i = 0; i < ys; ++i) want[i] += biases[i % p.out];

  uint16_t* y;
  run_and_check(
      [&](Outputs& outputs) {
        y = outputs.words(ys);
        run({p.type, p.size, p.in, p.out, a, matrices, bias, y}, nullptr);
      },
      [&] { check_close("y", values(p.type, y, ys), want, unit(p.type)); });
}

template <class Run, class Rows>
void test_transposed_conv_gradient(const char* name, const Problem& p, Run run, Rows sum_rows) {
  const bool with_saved = coin(), with_sums = coin();
  describe(name, p, std::string(with_saved ? "saved" : "plain") + (with_sums ? ", sums" : ""));
  Inputs inputs(p.type);
  const int64_t grads = p.size.pixels() * 4 * p.out, ys = p.size.pixels() * p.in, weights = int64_t{9} * p.out * p.in;
  const auto grad = inputs.words(grads);
  const auto matrices = inputs.words(weights, 0.1);
  const auto saved = with_saved ? inputs.words(ys) : nullptr;
  const float slope = static_cast<float>(p.slope);
  TransposedConvGradient g{p.type, p.size, p.in, p.out, grad, matrices, saved, slope, nullptr, nullptr};

  Values want = correlate(values(p.type, grad, grads), scaled(p.size, 2), values(p.type, matrices, weights), p.size,
                          p.out, p.in, 2, 0, false);
  for (int64_t i = 0; with_saved && i < ys; ++i) want[i] *= sign_factor(decode(p.type, saved[i]), slope);

  uint16_t* y;
  float* sums;
  const int64_t sum_count = int64_t{sum_rows(g)} * p.in;
  run_and_check(
      [&](Outputs& outputs) {
        g.y = y = outputs.words(ys);
        g.sums = sums = outputs.floats(sum_count, with_sums);
        run(g, nullptr);
      },
      [&] {
        check_close("y", values(p.type, y, ys), want, unit(p.type));
        if (with_sums) check_sums("sums", p.type, values(sums, sum_count), p.in, want);
      });
}

// ---- Weight gradients ----

// [maps, 9, rows, columns]
Values gradient_of_weights(const WeightGradient& g, const Values& left, const Values& right) {
  const Size large = scaled(g.size, g.stride);
  Values sums(int64_t{g.maps} * 9 * g.rows * g.columns, 0.0);
  for (int map = 0; map < g.maps; ++map)
    for_pixels(g.size, [&](int n, int i, int j) {
      const double* const l = &left[(map * g.size.pixels() + pixel(g.size, n, i, j)) * g.rows];
      for_taps(large, i, j, g.stride, g.stride == 1 ? 1 : 0, [&](int tap, int row, int column) {
        const double* const r = &right[(map * large.pixels() + pixel(large, n, row, column)) * g.columns];
        double* const to = &sums[(int64_t{map} * 9 + tap) * g.rows * g.columns];
        for (int a = 0; a < g.rows; ++a)
          for (int b = 0; b < g.columns; ++b) to[int64_t{a} * g.columns + b] += l[a] * r[b];
      });
    });
  return sums;
}

template <class Run, class Splits>
void test_weight_gradient(const char* name, const Problem& p, Run run, Splits splits) {
  WeightGradient g{p.type, p.size, p.out, p.in, between(1, 3), between(1, 2), nullptr, nullptr, coin(), 0, nullptr};
  g.splits = splits(g);
  describe(name, p,
           std::to_string(g.maps) + " maps, stride " + std::to_string(g.stride) + ", " + std::to_string(g.splits) +
               " splits" + (g.accumulate ? ", accumulate" : ""));
  Inputs inputs(p.type);
  const int64_t lefts = g.maps * g.size.pixels() * g.rows,
                rights = g.maps * scaled(g.size, g.stride).pixels() * g.columns;
  const int64_t weights = int64_t{g.maps} * 9 * g.rows * g.columns, count = weights * g.splits;
  const auto left = inputs.words(lefts);
  const auto right = inputs.words(rights);
  const auto before = inputs.floats(count);
  g.left = left;
  g.right = right;

  Values want = gradient_of_weights(g, values(p.type, left, lefts), values(p.type, right, rights));
  for (int64_t i = 0; g.accumulate && i < count; ++i) want[i % weights] += before[i];
  const Values slack(weights, std::sqrt(static_cast<double>(p.size.pixels())));

  run_and_check(
      [&](Outputs& outputs) {
        g.partials = g.accumulate ? outputs.floats_from(values(before, count)) : outputs.floats(count);
        run(g, nullptr);
      },
      [&] { check_close("partials", column_sums(values(g.partials, count), weights), want, 1e-5, slack); });
}

// ---- The tests ----

void test_sm80_conv(const Problem& p) { test_conv("sm80 conv", p, sm80::conv, sm80::conv_sum_rows); }
void test_sm80_transposed_conv(const Problem& p) {
  test_transposed_conv("sm80 transposed conv", p, sm80::transposed_conv);
}
void test_sm80_transposed_conv_gradient(const Problem& p) {
  test_transposed_conv_gradient("sm80 gradient of transposed conv", p, sm80::transposed_conv_gradient,
                                sm80::transposed_conv_gradient_sum_rows);
}
void test_sm80_weight_gradient(const Problem& p) {
  test_weight_gradient("sm80 weight gradient", p, sm80::weight_gradient, sm80::weight_gradient_splits);
}

TEST(sm80_conv) { test_sm80_conv(random_problem(kAnyChannels)); }
TEST(sm80_conv_64) { test_sm80_conv(random_problem(k64)); }
TEST(sm80_conv_many_tiles) { test_sm80_conv(problem_of_many_tiles(k64)); }
TEST(sm80_transposed_conv) { test_sm80_transposed_conv(random_problem(kAnyChannels)); }
TEST(sm80_transposed_conv_many_tiles) { test_sm80_transposed_conv(problem_of_many_tiles(k64)); }
TEST(sm80_transposed_conv_gradient) { test_sm80_transposed_conv_gradient(random_problem(kAnyChannels)); }
TEST(sm80_transposed_conv_gradient_many_tiles) { test_sm80_transposed_conv_gradient(problem_of_many_tiles(k64)); }
TEST(sm80_weight_gradient) { test_sm80_weight_gradient(random_problem(kAnyChannels)); }
TEST(sm80_weight_gradient_64) { test_sm80_weight_gradient(random_problem(k64)); }
TEST(sm80_weight_gradient_many_tiles) { test_sm80_weight_gradient(problem_of_many_tiles(k64)); }

void test_sm90_conv(const Problem& p) {
  needs_sm90();
  test_conv("sm90 conv", p, sm90::conv, sm90::conv_sum_rows);
}
void test_sm90_transposed_conv(const Problem& p) {
  needs_sm90();
  test_transposed_conv("sm90 transposed conv", p, sm90::transposed_conv);
}
void test_sm90_transposed_conv_gradient(const Problem& p) {
  needs_sm90();
  test_transposed_conv_gradient("sm90 gradient of transposed conv", p, sm90::transposed_conv_gradient,
                                sm90::transposed_conv_gradient_sum_rows);
}
void test_sm90_weight_gradient(const Problem& p) {
  needs_sm90();
  test_weight_gradient("sm90 weight gradient", p, sm90::weight_gradient, sm90::weight_gradient_splits);
}

TEST(sm90_conv) { test_sm90_conv(random_problem(k64)); }
TEST(sm90_conv_many_tiles) { test_sm90_conv(problem_of_many_tiles(k64)); }
TEST(sm90_transposed_conv) { test_sm90_transposed_conv(random_problem(k64)); }
TEST(sm90_transposed_conv_many_tiles) { test_sm90_transposed_conv(problem_of_many_tiles(k64)); }
TEST(sm90_transposed_conv_gradient) { test_sm90_transposed_conv_gradient(random_problem(k64)); }
TEST(sm90_transposed_conv_gradient_many_tiles) { test_sm90_transposed_conv_gradient(problem_of_many_tiles(k64)); }
TEST(sm90_weight_gradient) { test_sm90_weight_gradient(random_problem(k64)); }
TEST(sm90_weight_gradient_many_tiles) { test_sm90_weight_gradient(problem_of_many_tiles(k64)); }

}  // namespace
}  // namespace cmslap::cuda::testing
