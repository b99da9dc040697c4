// The CUDA kernels, for whoever calls them: plain pointers in, plain pointers out, work queued on a stream.
//
// Maps are dense [N, H, W, C] of one 16-bit Type on the device, 16-byte aligned; sums are float32. Nothing here
// allocates, synchronises or reads the device: the caller brings all memory, so that a CUDA graph can capture any call.
// Channels are multiples of 16 up to 256 unless it says otherwise; pointers marked optional may be null.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace cmslap::cuda {

enum class Type { kBFloat16, kFloat16, kFloat32 };  // kFloat32: only of the features that an image becomes

struct Size {  // of a batch of maps
  int batch, height, width;
  int64_t pixels() const { return int64_t{batch} * height * width; }
};

// ---- Weights of convolutions, packed once a call for all recursions ----
//
// A convolution's weights [out, in, 3, 3] become a matrix a tap, 3·k + l for W[..., k, l]:
// `rows` is [9, out, in]  (forward; data gradient of the transposed convolution),
// `columns` is [9, in, out]  (data gradient, which counts its taps backwards; transposed convolution).
// `count` kernels one after the other, weights and matrices of one type. `rows` and `columns` are optional.
void pack_weights(Type type, const void* weights, int count, int out, int in, void* rows, void* columns,
                  cudaStream_t stream);

// ---- 3×3 convolution, stride 1, padding 1, with everything that follows it ----
struct Conv {
  Type type;
  Size size;
  int in, out;
  const void* x;         // [N, H, W, in]
  const void* matrices;  // [9, out, in]
  bool flipped;          // matrices[8 - tap] instead of matrices[tap]: a data gradient with `columns`
  float slope;           // of φ
  const float* bias;     // [out], optional
  const void* skip;      // [N, H, W, out], optional; see below
  const void* saved;     // [N, H, W, out], optional: an activation whose signs say φ'
  void* y;               // [N, H, W, out], optional where total is given
  void* total;           // [N, H, W, out], optional
  float* sums;           // [conv_sum_rows(), out], optional
};
// Forward (saved is null): y = φ(W ⋆ x + bias + skip).
// Data gradient (saved given): y = φ'(saved) · (W ⋆ x); total = y + skip, the gradient that passes by the recursion;
// the rows of sums, each written by exactly one thread block, add up to Σ y over all pixels, the bias gradient.
void conv(const Conv&, cudaStream_t);
int conv_sum_rows(const Conv&);  // reads type, size, in and out alone

// ---- Transposed convolution: stride 2, cropped at the end to [N, 2H, 2W] ----
struct TransposedConv {
  Type type;
  Size size;             // of the small map
  int in, out;           // channels of the small and of the large map
  const void* a;         // [N, H, W, in]
  const void* matrices;  // [9, out, in]: the `columns` of the tied convolution's kernel
  const float* bias;     // [out], optional
  void* y;               // [N, 2H, 2W, out]
};
void transposed_conv(const TransposedConv&, cudaStream_t);

// Its data gradient: a convolution of stride 2 and no padding.
struct TransposedConvGradient {
  Type type;
  Size size;             // of the small map
  int in, out;           // channels of the small and of the large map
  const void* grad;      // [N, 2H, 2W, out]
  const void* matrices;  // [9, in, out]: the `rows` of the tied convolution's kernel
  const void* saved;     // [N, H, W, in], optional: φ' as in Conv
  float slope;
  void* y;      // [N, H, W, in]
  float* sums;  // [transposed_conv_gradient_sum_rows(), in], optional: of y, as in Conv
};
void transposed_conv_gradient(const TransposedConvGradient&, cudaStream_t);
int transposed_conv_gradient_sum_rows(const TransposedConvGradient&);  // likewise

// ---- Weight gradient, of the convolutions of a recursion all at once or of a transposed convolution ----
//
// partials[split][map][tap][row][column] (+)= Σ left[map][n, i, j, row] · right[map][n, s·i + k - p, s·j + l - p,
// column] over the pixels of the split; s = 1, p = 1 for a convolution (left: gradient of its output, right: its
// input), s = 2, p = 0 for a transposed one (left: its input, right: the gradient of its output, twice as large,
// cropped).
struct WeightGradient {
  Type type;
  Size size;  // of left
  int rows, columns, maps;
  int stride;
  const void* left;   // [maps, N, H, W, rows]
  const void* right;  // [maps, N, s·H, s·W, columns]
  bool accumulate;    // add to what partials holds, as from the second recursion on
  int splits;       // how many shares the pixels are cut into: weight_gradient_splits(), the same for all calls on one
                    // buffer
  float* partials;  // [splits, maps, 9, rows, columns]
};
void weight_gradient(const WeightGradient&, cudaStream_t);
int weight_gradient_splits(const WeightGradient&);  // reads neither pointers nor `splits`

// grad[map][row][column][3][3] += Σ over splits, in order: always the same bits.
void reduce_weight_gradient(const float* partials, int splits, int maps, int rows, int columns, float* grad,
                            cudaStream_t);

// ---- Elementwise and sums; elements are a multiple of 8 ----
void activate(Type type, const void* x, int64_t elements, float slope, void* y, cudaStream_t);  // φ
// y = φ'(saved) · grad.
void differentiate(Type type, const void* grad, const void* saved, int64_t elements, float slope, void* y,
                   cudaStream_t);
// sums [pixel_sum_rows(), channels]: rows that add up to Σ over pixels of a map.
void sum_pixels(Type type, const void* map, int64_t pixels, int channels, float* sums, cudaStream_t);
int pixel_sum_rows(int64_t pixels, int channels);
// out[i] += Σ over rows of sums[row][i], in order.
void reduce_rows(const float* sums, int rows, int columns, float* out, cudaStream_t);

// ---- From and to images: one channel on one side, which is float32 (16 bits would round what a pixel has) ----
struct ImageConv {  // φ(W ⋆ x + b), 1 → out
  Type type;
  Size size;
  int out;
  const float* x;       // [N, H, W]
  const float* weight;  // [out, 9]
  const float* bias;    // [out], optional
  float slope;
  void* y;  // [N, H, W, out]
};
void image_conv(const ImageConv&, cudaStream_t);
// grad, y: of the output, y optional: its signs say φ'. sums [image_sum_rows(), out · 10]: for each channel 9 taps and
// the bias; rows add up.
void image_conv_weight_gradient(Type, Size, int out, const float* x, const void* grad, const void* y, float slope,
                                float* sums, cudaStream_t);
int image_sum_rows(Size);

struct ResidualHead {  // I' = K ⋆ᵀ I + (W_res ⋆ f + b_res)
  Type type;
  Size size;  // of the image
  int channels;
  const void* f;              // [N, 2H, 2W, channels]
  const float* image;         // [N, H, W]
  const float* weight;        // [channels, 9]
  const float* bias;          // [1]
  const float* image_weight;  // [4, 4]
  float* y;                   // [N, 2H, 2W]
};
void residual_head(const ResidualHead&, cudaStream_t);

struct ResidualHeadGradient {
  Type type;
  Size size;  // of the image
  int channels;
  const void* f;
  const float* image;
  const float* grad;  // [N, 2H, 2W]
  const float* weight;
  const float* image_weight;
  void* grad_f;       // [N, 2H, 2W, channels], optional
  float* grad_image;  // [N, H, W], optional
  float* sums;        // [image_sum_rows(2× size), channels · 9 + 1 + 16], optional: W_res, b_res, K; rows add up
};
void residual_head_gradient(const ResidualHeadGradient&, cudaStream_t);

}  // namespace cmslap::cuda
