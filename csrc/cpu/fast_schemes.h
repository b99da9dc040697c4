// The transforms of fast convolutions: how outputs of a tile come from inputs of a window with fewer multiplications.
//
//   Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A
//
// A scheme is one dimension of this: G takes a weight's three taps to the positions where it is multiplied, Bᵀ the
// inputs, and Aᵀ the products to the outputs. Two dimensions are columns first, then rows. The gradients are the
// transposes A and Gᵀ.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace cmslap::cpu::CMSLAP_ISA {

// Positions may share a transformed input or weight, or add to the same product: then there is one matrix for all of
// them. In one dimension position p uses number of[p] of `count`; in two dimensions this holds for columns and rows.
class Operand {
  static constexpr int kMost = 7;

 public:
  int count;

  constexpr Operand(int positions, int count, const int (&of)[kMost]) : count(count) {
    bool used[kMost * kMost] = {};
    for (int p = 0; p < positions * positions; ++p) {
      matrix_[p] = count * of[p / positions] + of[p % positions];
      first_[p] = !used[matrix_[p]];
      used[matrix_[p]] = true;
    }
  }
  constexpr int matrices() const { return count * count; }
  constexpr int matrix(int position) const { return matrix_[position]; }
  constexpr bool first(int position) const { return first_[position]; }  // to use its matrix

 private:
  int matrix_[kMost * kMost] = {};
  bool first_[kMost * kMost] = {};
};

// Stride 1, padding 1, by Winograd's F(4×4, 3×3): 36 multiplications a tile and pair of channels in place of 144.
//
// A convolution is a product of polynomials: evaluated at 0, ±a, ±b and ∞, multiplied there, and interpolated. The
// usual points (0, ±1, ±2) lose a digit; a = 5/8, b = 3/2 halve the error of float32 (7e-7 relative on 64 channels) and
// are still exact in binary. Points come in pairs, so that each pair shares its even and its odd part.
struct SameConv {
  static constexpr int kPositions = 6, kWindow = 6, kOffset = -1, kInputs = 4, kOutputs = 4;
  static constexpr Operand kInput{6, 6, {0, 1, 2, 3, 4, 5}}, kWeight = kInput, kProduct = kInput;
  static constexpr float a = 0.625f, b = 1.5f;
  static constexpr float a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b;
  static constexpr float at_0 = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)),
                         at_b = 1 / (2 * b2 * (b2 - a2));  // G's scales

  static Size output_size(Size in) { return in; }

  // Bᵀ: six inputs to the six points.
  CMSLAP_INLINE static void input(const Vec (&d)[6], Vec (&t)[6]) {
    const Vec even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const Vec even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    t[0] = d[4] - (a2 + b2) * d[2] + (a2 * b2) * d[0];
    t[1] = even_a + a * odd_a;
    t[2] = even_a - a * odd_a;
    t[3] = even_b + b * odd_b;
    t[4] = even_b - b * odd_b;
    t[5] = d[5] - (a2 + b2) * d[3] + (a2 * b2) * d[1];
  }

  // Aᵀ: six points to four outputs.
  CMSLAP_INLINE static void output(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = a3 * odd_a + b3 * odd_b + m[5];
  }

  // A: its transpose, four output gradients to six points.
  CMSLAP_INLINE static void output_gradient(const Vec (&y)[4], Vec (&m)[6]) {
    const Vec even_a = y[0] + a2 * y[2], odd_a = a * y[1] + a3 * y[3];
    const Vec even_b = y[0] + b2 * y[2], odd_b = b * y[1] + b3 * y[3];
    m[0] = y[0];
    m[1] = even_a + odd_a;
    m[2] = even_a - odd_a;
    m[3] = even_b + odd_b;
    m[4] = even_b - odd_b;
    m[5] = y[3];
  }

  // G: three taps to the six points.
  CMSLAP_INLINE static void weight(const Vec (&g)[3], Vec (&u)[6]) {
    const Vec even_a = g[0] + a2 * g[2], even_b = g[0] + b2 * g[2];
    u[0] = at_0 * g[0];
    u[1] = at_a * (even_a + a * g[1]);
    u[2] = at_a * (even_a - a * g[1]);
    u[3] = at_b * (even_b + b * g[1]);
    u[4] = at_b * (even_b - b * g[1]);
    u[5] = g[2];
  }

  // Gᵀ: its transpose, six points to the gradient of three taps.
  CMSLAP_INLINE static void weight_gradient(const Vec (&u)[6], Vec (&g)[3]) {
    const Vec even_a = at_a * (u[1] + u[2]), odd_a = at_a * (u[1] - u[2]);
    const Vec even_b = at_b * (u[3] + u[4]), odd_b = at_b * (u[3] - u[4]);
    g[0] = at_0 * u[0] + even_a + even_b;
    g[1] = a * odd_a + b * odd_b;
    g[2] = a2 * even_a + b2 * even_b + u[5];
  }
};

#ifdef CMSLAP_BFLOAT16
// The same tiles for bfloat16, by interpolation at 0, ±1, ±i and ∞. What is rounded to 8 bits before it is multiplied
// must not meet large coefficients after it: the real points above would make the relative error of a
// convolution 1.1e-2, where nine products a pixel make it 2.4e-3. On the unit circle it is 4.3e-3. A complex product is
// three real ones, so a tile takes 49 multiplications in place of 36, at twice the rate: 68 % of the time of float32's.
// (F(2×2, 3×3) takes 64 with an error of 4.0e-3; F(4, 3) in one dimension and F(2, 3) in the other 48 with 6.7e-3.)
// Features are stored in bfloat16, as their rounding adds little to that of the factors; transforms and sums are
// float32.
struct UnitCircleConv {
  static constexpr int kPositions = 7, kWindow = 6, kOffset = -1, kInputs = 4, kOutputs = 4;
  static constexpr Operand kInput{7, 7, {0, 1, 2, 3, 4, 5, 6}}, kWeight = kInput, kProduct = kInput;

  static Size output_size(Size in) { return in; }

  CMSLAP_INLINE static void input(const Vec (&d)[6], Vec (&t)[7]) {
    const Vec even = d[4] + d[2], odd = d[3] + d[1], real = d[4] - d[2], imaginary = d[1] - d[3];
    t[0] = d[0] - d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = real - imaginary;
    t[4] = real + imaginary;
    t[5] = imaginary;
    t[6] = d[5] - d[1];
  }
  CMSLAP_INLINE static void weight(const Vec (&g)[3], Vec (&u)[7]) {
    const Vec even = 0.25f * (g[0] + g[2]), odd = 0.25f * g[1], real = 0.5f * (g[0] - g[2]), imaginary = 0.5f * g[1];
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = real;
    u[4] = -imaginary;
    u[5] = real + imaginary;
    u[6] = g[2];
  }
  CMSLAP_INLINE static void output(const Vec (&m)[7], Vec (&y)[4]) {
    const Vec even = m[1] + m[2], odd = m[1] - m[2], real = m[3] + m[5], imaginary = m[4] + m[5];
    y[0] = m[0] + even + real;
    y[1] = odd + imaginary;
    y[2] = even - real;
    y[3] = odd - imaginary + m[6];
  }
};
#endif

// The scheme of stride-1 convolutions on images of Number.
template <class Number>
struct SameSchemeOf {
  using Type = SameConv;
};
#ifdef CMSLAP_BFLOAT16
template <>
struct SameSchemeOf<BFloat16> {
  using Type = UnitCircleConv;
};
#endif
template <class Number>
using SameScheme = typename SameSchemeOf<Number>::Type;

// One dimension of the upsampling U and of its transpose, tiles of four pixels of the smaller image. U's even outputs
// are k0 x[i] + k2 x[i-1], its odd ones k1 x[i]; the transpose sums k0 y[2i] + k2 y[2i+2] and k1 y[2i+1]. Both are
// correlations of a signal d, y[j] = g[0] d[j] + g[1] d[j+1], with two taps g, or the one tap k1. In two dimensions
// these make four phases.

// Two taps by Winograd's F(4, 2): five multiplications in place of eight, at the points 0, ±a, p and ∞. So a tile of
// 4×4 pixels costs (5 + 4)² multiplications in place of 144.
struct TwoTaps {
  static constexpr int kTaps = 2, kTap[kTaps] = {0, 2}, kWindow = 5, kPoints = 5, kWeights = 5, kOffset = 0;
  static constexpr float a = 0.75f, p = 2.0f, a2 = a * a, p2 = p * p;
  static constexpr float at_0 = 1 / (a2 * p), at_a = 1 / (2 * a2 * (a - p)), at_minus_a = -1 / (2 * a2 * (a + p)),
                         at_p = 1 / (p * (p2 - a2));  // G's scales

  CMSLAP_INLINE static void input(const Vec (&d)[5], Vec (&t)[5]) {
    const Vec e0 = d[1] - p * d[0], e1 = d[2] - p * d[1], e2 = d[3] - p * d[2], e3 = d[4] - p * d[3];
    t[0] = e2 - a2 * e0;
    t[1] = e2 + a * e1;
    t[2] = e2 - a * e1;
    t[3] = d[3] - a2 * d[1];
    t[4] = e3 - a2 * e1;
  }
  CMSLAP_INLINE static void output(const Vec (&m)[5], Vec (&y)[4]) {
    const Vec even = m[1] + m[2], odd = m[1] - m[2];
    y[0] = m[0] + even + m[3];
    y[1] = a * odd + p * m[3];
    y[2] = a2 * even + p2 * m[3];
    y[3] = a2 * a * odd + p2 * p * m[3] + m[4];
  }
  CMSLAP_INLINE static void output_gradient(const Vec (&y)[4], Vec (&m)[5]) {
    const Vec even = y[0] + a2 * y[2], odd = a * y[1] + a2 * a * y[3];
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = y[0] + p * y[1] + p2 * y[2] + p2 * p * y[3];
    m[4] = y[3];
  }
  CMSLAP_INLINE static void weight(const Vec (&g)[2], Vec (&u)[5]) {
    u[0] = at_0 * g[0];
    u[1] = at_a * (g[0] + a * g[1]);
    u[2] = at_minus_a * (g[0] - a * g[1]);
    u[3] = at_p * (g[0] + p * g[1]);
    u[4] = g[1];
  }
  CMSLAP_INLINE static void weight_gradient(const Vec (&u)[5], Vec (&g)[2]) {
    const Vec at_plus = at_a * u[1], at_minus = at_minus_a * u[2], at_two = at_p * u[3];
    g[0] = at_0 * u[0] + at_plus + at_minus + at_two;
    g[1] = a * (at_plus - at_minus) + p * at_two + u[4];
  }
};

// One tap: nothing to transform, and all pixels share its weight.
struct OneTap {
  static constexpr int kTaps = 1, kTap[kTaps] = {1}, kWindow = 4, kPoints = 4, kWeights = 1, kOffset = 1;

  CMSLAP_INLINE static void input(const Vec (&d)[4], Vec (&t)[4]) { copy(d, t); }
  CMSLAP_INLINE static void output(const Vec (&m)[4], Vec (&y)[4]) { copy(m, y); }
  CMSLAP_INLINE static void output_gradient(const Vec (&y)[4], Vec (&m)[4]) { copy(y, m); }
  CMSLAP_INLINE static void weight(const Vec (&g)[1], Vec (&u)[1]) { copy(g, u); }
  CMSLAP_INLINE static void weight_gradient(const Vec (&u)[1], Vec (&g)[1]) { copy(u, g); }

 private:
  template <int kCount>
  CMSLAP_INLINE static void copy(const Vec (&from)[kCount], Vec (&to)[kCount]) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
};

#ifdef CMSLAP_BFLOAT16
// U for bfloat16, whose rounding the points of TwoTaps would enlarge. Of two pixels, the even outputs share the product
// x0 (k0 + k2) and cost three multiplications, the odd ones two: 25 a tile of 2×2 pixels in place of 36.
struct Doubling {
  static constexpr int kPositions = 5, kWindow = 3, kOffset = -1, kInputs = 2, kOutputs = 4;
  static constexpr Operand kInput{5, 4, {0, 1, 2, 1, 3}}, kWeight{5, 4, {0, 1, 2, 3, 3}},
      kProduct{5, 5, {0, 1, 2, 3, 4}};

  static Size output_size(Size in) { return {in.batch, 2 * in.height, 2 * in.width}; }

  CMSLAP_INLINE static void input(const Vec (&x)[3], Vec (&t)[4]) {
    t[0] = x[0] - x[1];
    t[1] = x[1];
    t[2] = x[2] - x[1];
    t[3] = x[2];
  }
  CMSLAP_INLINE static void weight(const Vec (&g)[3], Vec (&u)[4]) {
    u[0] = g[2];
    u[1] = g[0] + g[2];
    u[2] = g[0];
    u[3] = g[1];
  }
  CMSLAP_INLINE static void output(const Vec (&m)[5], Vec (&y)[4]) {
    y[0] = m[0] + m[1];
    y[1] = m[3];
    y[2] = m[1] + m[2];
    y[3] = m[4];
  }
};
#endif

// Rows [first, first + kCount) of C x Rᵀ, given C for the columns and R for the rows: columns first. in(i, j) reads,
// out(i, j, value) takes.
template <int kCount, int kFromRows, int kToRows, void (*kColumn)(const Vec (&)[kFromRows], Vec (&)[kToRows]),
          int kFromColumns, int kToColumns, void (*kRow)(const Vec (&)[kFromColumns], Vec (&)[kToColumns]), class In,
          class Out>
CMSLAP_INLINE void transform_rows(int first, In&& in, Out&& out) {
  Vec rows[kCount][kFromColumns];
#pragma GCC unroll 8
  for (int j = 0; j < kFromColumns; ++j) {
    Vec from[kFromRows], to[kToRows];
#pragma GCC unroll 8
    for (int i = 0; i < kFromRows; ++i) from[i] = in(i, j);
    kColumn(from, to);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
      if (first + i < kToRows) rows[i][j] = to[first + i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    if (first + i == kToRows) break;
    Vec to[kToColumns];
    kRow(rows[i], to);
#pragma GCC unroll 8
    for (int j = 0; j < kToColumns; ++j) out(first + i, j, to[j]);
  }
}

// All rows. Six rows of six would not fit the registers between the two steps, and storing them costs more than reading
// the input twice: so a 6×6 or 7×7 result is made in two halves, and what a half does not use the compiler leaves out.
template <int kFromRows, int kToRows, void (*kColumn)(const Vec (&)[kFromRows], Vec (&)[kToRows]), int kFromColumns,
          int kToColumns, void (*kRow)(const Vec (&)[kFromColumns], Vec (&)[kToColumns]), class In, class Out>
CMSLAP_INLINE void transform_2d(In&& in, Out&& out) {
  constexpr int kCount = kFromColumns * kToRows > 30 ? (kToRows + 1) / 2 : kToRows;
#pragma GCC unroll 2
  for (int first = 0; first < kToRows; first += kCount)
    transform_rows<kCount, kFromRows, kToRows, kColumn, kFromColumns, kToColumns, kRow>(first, in, out);
}

// M x Mᵀ.
template <int kFrom, int kTo, void (*kTransform)(const Vec (&)[kFrom], Vec (&)[kTo]), class In, class Out>
CMSLAP_INLINE void transform_2d(In&& in, Out&& out) {
  transform_2d<kFrom, kTo, kTransform, kFrom, kTo, kTransform>(in, out);
}

}  // namespace cmslap::cpu::CMSLAP_ISA
