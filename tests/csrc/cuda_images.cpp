// What surrounds the matrix kernels of csrc/cuda: packing, elementwise kernels, sums and the convolutions from and to
// images of one channel, on small random problems against their definitions in float64.
#include "cuda_problems.h"

namespace cmslap::cuda::testing {
namespace {

const std::vector<int> kChannels = {16, 48, 64, 80, 128, 256};

Problem problem() {
  Problem p = random_problem(kChannels);
  p.in = 1;
  return p;
}

// ---- Packing, elementwise, sums ----

TEST(packing) {
  const Problem p = random_problem(kChannels);
  const int count = between(1, 3);
  const bool with_rows = coin(), with_columns = !with_rows || coin();
  describe("packing", p, std::to_string(count) + " kernels");
  const int64_t elements = int64_t{count} * p.out * p.in * 9;
  Inputs inputs(p.type);
  const auto weights = inputs.words(elements);
  std::vector<uint16_t> want_rows(elements), want_columns(elements);
  for (int64_t i = 0; i < elements; ++i) {
    const int64_t tap = i % 9, in = i / 9 % p.in, out = i / 9 / p.in % p.out, kernel = i / 9 / p.in / p.out;
    const int64_t matrix = (kernel * 9 + tap) * p.out * p.in;
    want_rows[matrix + out * p.in + in] = weights[i];
    want_columns[matrix + in * p.out + out] = weights[i];
  }
  uint16_t *rows, *columns;
  run_and_check(
      [&](Outputs& outputs) {
        rows = outputs.words(elements, with_rows);
        columns = outputs.words(elements, with_columns);
        pack_weights(p.type, weights, count, p.out, p.in, rows, columns, nullptr);
      },
      [&] {
        if (with_rows && !std::equal(want_rows.begin(), want_rows.end(), host(rows))) throw std::runtime_error("rows");
        if (with_columns && !std::equal(want_columns.begin(), want_columns.end(), host(columns)))
          throw std::runtime_error("columns");
      });
}

TEST(activation_and_its_derivative) {
  const Problem p = problem();
  describe("activation", p);
  const int64_t elements = p.size.pixels() * p.out;
  const float slope = static_cast<float>(p.slope);
  Inputs inputs(p.type);
  const auto x = inputs.words(elements);
  const auto saved = inputs.words(elements);
  Values activated = values(p.type, x, elements), differentiated = activated;
  for (int64_t i = 0; i < elements; ++i) {
    activated[i] = leaky_relu(activated[i], slope);
    if (!(decode(p.type, saved[i]) > 0)) differentiated[i] *= slope;
  }
  uint16_t *y, *gradient;
  run_and_check(
      [&](Outputs& outputs) {
        y = outputs.words(elements);
        gradient = outputs.words(elements);
        activate(p.type, x, elements, slope, y, nullptr);
        differentiate(p.type, x, saved, elements, slope, gradient, nullptr);
      },
      [&] {
        check_close("activate", values(p.type, y, elements), activated, unit(p.type));
        check_close("differentiate", values(p.type, gradient, elements), differentiated, unit(p.type));
      });
}

TEST(sums_of_pixels) {
  const Problem p = problem();
  describe("sums of pixels", p);
  const int64_t pixels = p.size.pixels();
  Inputs inputs(p.type);
  const auto map = inputs.words(pixels * p.out);
  const int rows = pixel_sum_rows(pixels, p.out);
  const auto before = inputs.floats(p.out);
  const Values exact = values(p.type, map, pixels * p.out), slack = column_sums(absolute(exact), p.out);
  Values want = column_sums(exact, p.out);
  for (int c = 0; c < p.out; ++c) want[c] += before[c];
  float* total;
  run_and_check(
      [&](Outputs& outputs) {
        float* const sums = outputs.floats(int64_t{rows} * p.out);
        total = outputs.floats_from(values(before, p.out));
        sum_pixels(p.type, map, pixels, p.out, sums, nullptr);
        reduce_rows(sums, rows, p.out, total, nullptr);
      },
      [&] { check_close("sums", values(total, p.out), want, 1e-5, slack); });
}

TEST(rows_reduced) {
  const int rows = between(1, 300), columns = between(1, 200);
  describe(format("reduce_rows of [%d, %d]", rows, columns));
  Inputs inputs(Type::kFloat16);
  const auto sums = inputs.floats(int64_t{rows} * columns);
  const auto before = inputs.floats(columns);
  Values want = column_sums(values(sums, int64_t{rows} * columns), columns);
  for (int i = 0; i < columns; ++i) want[i] += before[i];
  float* out;
  run_and_check(
      [&](Outputs& outputs) {
        out = outputs.floats_from(values(before, columns));
        reduce_rows(sums, rows, columns, out, nullptr);
      },
      [&] { check_close("sums", values(out, columns), want, 1e-5); });
}

TEST(weight_gradient_reduced) {
  const int splits = between(1, 9), maps = between(1, 3), rows = 16 * between(1, 5), columns = 16 * between(1, 5);
  describe(format("reduce_weight_gradient of %d splits, %d maps, [%d, %d]", splits, maps, rows, columns));
  const int64_t matrix = int64_t{rows} * columns, weights = 9 * matrix * maps;
  Inputs inputs(Type::kFloat16);
  const auto partials = inputs.floats(splits * weights);
  const auto before = inputs.floats(weights);
  const Values sums = column_sums(values(partials, splits * weights), weights);
  Values want = values(before, weights);
  for (int64_t i = 0; i < weights; ++i) {
    const int64_t map = i / matrix / 9, tap = i / matrix % 9;
    want[(map * matrix + i % matrix) * 9 + tap] += sums[i];
  }
  float* gradient;
  run_and_check(
      [&](Outputs& outputs) {
        gradient = outputs.floats_from(values(before, weights));
        reduce_weight_gradient(partials, splits, maps, rows, columns, gradient, nullptr);
      },
      [&] { check_close("gradient", values(gradient, weights), want, 1e-5); });
}

// ---- From an image ----

TEST(image_convolution) {
  const Problem p = problem();
  const bool with_bias = coin();
  describe("image_conv", p, with_bias ? "bias" : "");
  const int64_t pixels = p.size.pixels(), ys = pixels * p.out;
  Inputs inputs(p.type);
  const auto x = inputs.floats(pixels);
  const auto weight = inputs.floats(9 * p.out);
  const auto bias = with_bias ? inputs.floats(p.out) : nullptr;
  const Values biases = values(bias, p.out);
  Values want(ys);
  for_pixels(p.size, [&](int n, int i, int j) {
    for (int o = 0; o < p.out; ++o) {
      double sum = biases[o];
      for_taps(p.size, i, j, 1, 1, [&](int tap, int row, int column) {
        sum += double{weight[9 * o + tap]} * x[pixel(p.size, n, row, column)];
      });
      want[pixel(p.size, n, i, j) * p.out + o] = leaky_relu(sum, static_cast<float>(p.slope));
    }
  });
  uint16_t* y;
  run_and_check(
      [&](Outputs& outputs) {
        y = outputs.words(ys);
        image_conv({p.type, p.size, p.out, x, weight, bias, static_cast<float>(p.slope), y}, nullptr);
      },
      [&] { check_close("y", values(p.type, y, ys), want, unit(p.type)); });
}

TEST(image_convolution_weight_gradient) {
  const Problem p = problem();
  describe("image_conv_weight_gradient", p);
  const int64_t pixels = p.size.pixels();
  Inputs inputs(p.type);
  const auto x = inputs.floats(pixels);
  const auto grad = inputs.words(pixels * p.out);
  const auto y = coin() ? inputs.words(pixels * p.out) : nullptr;
  const float slope = static_cast<float>(p.slope);
  Values want(10 * p.out, 0.0), slack(10 * p.out, 0.0);
  for_pixels(p.size, [&](int n, int i, int j) {
    for (int o = 0; o < p.out; ++o) {
      const int64_t place = pixel(p.size, n, i, j) * p.out + o;
      const bool sloped = y != nullptr && !(decode(p.type, y[place]) > 0);
      const double g = decode(p.type, grad[place]) * (sloped ? slope : 1.0f);
      const auto add = [&](int place, double value) {
        want[10 * o + place] += value;
        slack[10 * o + place] += std::fabs(value);
      };
      add(9, g);
      for_taps(p.size, i, j, 1, 1,
               [&](int tap, int row, int column) { add(tap, g * x[pixel(p.size, n, row, column)]); });
    }
  });
  const int64_t count = int64_t{image_sum_rows(p.size)} * 10 * p.out;
  float* sums;
  run_and_check(
      [&](Outputs& outputs) {
        sums = outputs.floats(count);
        image_conv_weight_gradient(p.type, p.size, p.out, x, grad, y, slope, sums, nullptr);
      },
      [&] { check_close("sums", column_sums(values(sums, count), 10 * p.out), want, 1e-5, slack); });
}

// ---- To an image: I' = K ⋆ᵀ I + (W ⋆ f + b) ----

// body(k, row, column) for the pixels of the large image that pixel (i, j) of the image reaches through K[k / 4][k % 4]
template <class Body>
void for_upsampled(Size large, int i, int j, Body body) {
  for (int k = 0; k < 16; ++k) {
    const int row = 2 * i - 1 + k / 4, column = 2 * j - 1 + k % 4;
    if (inside(large, row, column)) body(k, row, column);
  }
}

TEST(residual_head_of_a_level) {
  const Problem p = problem();
  describe("residual_head", p);
  const Size large = scaled(p.size, 2);
  Inputs inputs(p.type);
  const auto f = inputs.words(large.pixels() * p.out);
  const auto image = inputs.floats(p.size.pixels());
  const auto weight = inputs.floats(9 * p.out, 0.1);
  const auto bias = inputs.floats(1);
  const auto image_weight = inputs.floats(16);

  Values want(large.pixels(), bias[0]), slack(large.pixels(), 0.0);
  for_pixels(large, [&](int n, int i, int j) {
    const int64_t at = pixel(large, n, i, j);
    for_taps(large, i, j, 1, 1, [&](int tap, int row, int column) {
      for (int c = 0; c < p.out; ++c) {
        const double product =
            double{weight[9 * c + tap]} * decode(p.type, f[pixel(large, n, row, column) * p.out + c]);
        want[at] += product;
        slack[at] += product * product;
      }
    });
    slack[at] = 2 * std::sqrt(slack[at]);  // weights may be rounded to the type
  });
  for_pixels(p.size, [&](int n, int i, int j) {
    for_upsampled(large, i, j, [&](int k, int row, int column) {
      want[pixel(large, n, row, column)] += double{image_weight[k]} * image[pixel(p.size, n, i, j)];
    });
  });
  float* y;
  run_and_check(
      [&](Outputs& outputs) {
        y = outputs.floats(large.pixels());
        residual_head({p.type, p.size, p.out, f, image, weight, bias, image_weight, y}, nullptr);
      },
      [&] { check_close("y", values(y, large.pixels()), want, unit(p.type), slack); });
}

TEST(residual_head_gradients) {
  const Problem p = problem();
  const bool with_f = coin(), with_image = coin(), with_sums = coin() || (!with_f && !with_image);
  describe("residual_head_gradient", p,
           std::string(with_f ? "of f " : "") + (with_image ? "of the image " : "") + (with_sums ? "sums" : ""));
  const Size large = scaled(p.size, 2);
  const int64_t features = large.pixels() * p.out, columns = 9 * p.out + 1 + 16;
  Inputs inputs(p.type);
  const auto f = inputs.words(features);
  const auto image = inputs.floats(p.size.pixels());
  const auto grad = inputs.floats(large.pixels());
  const auto weight = inputs.floats(9 * p.out, 0.1);
  const auto image_weight = inputs.floats(16);

  const Values grads = values(grad, large.pixels());
  Values want_f(features, 0.0), want_image(p.size.pixels(), 0.0), want(columns, 0.0), slack(columns, 0.0);
  const auto add = [&](int64_t place, double value) {
    want[place] += value;
    slack[place] += std::fabs(value);
  };
  for_pixels(large, [&](int n, int i, int j) {
    const double g = grads[pixel(large, n, i, j)];
    add(9 * p.out, g);
    for_taps(large, i, j, 1, 1, [&](int tap, int row, int column) {
      const int64_t at = pixel(large, n, row, column) * p.out;
      for (int c = 0; c < p.out; ++c) {
        want_f[at + c] += weight[9 * c + tap] * g;
        add(9 * c + tap, g * decode(p.type, f[at + c]));
      }
    });
  });
  for_pixels(p.size, [&](int n, int i, int j) {
    const int64_t at = pixel(p.size, n, i, j);
    for_upsampled(large, i, j, [&](int k, int row, int column) {
      const double g = grads[pixel(large, n, row, column)];
      want_image[at] += image_weight[k] * g;
      add(9 * p.out + 1 + k, image[at] * g);
    });
  });

  const int64_t count = image_sum_rows(large) * columns;
  uint16_t* grad_f;
  float *grad_image, *sums;
  run_and_check(
      [&](Outputs& outputs) {
        grad_f = outputs.words(features, with_f);
        grad_image = outputs.floats(p.size.pixels(), with_image);
        sums = outputs.floats(count, with_sums);
        residual_head_gradient({p.type, p.size, p.out, f, image, grad, weight, image_weight, grad_f, grad_image, sums},
                               nullptr);
      },
      [&] {
        if (with_f) check_close("grad_f", values(p.type, grad_f, features), want_f, unit(p.type));
        if (with_image) check_close("grad_image", values(grad_image, p.size.pixels()), want_image, 1e-5);
        if (with_sums) check_close("sums", column_sums(values(sums, count), columns), want, 1e-5, slack);
      });
}

}  // namespace
}  // namespace cmslap::cuda::testing
