#include "bindings.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <type_traits>

#include "kernels.h"
#include "thread_pool.h"

namespace cmslap::cpu {

int64_t thread_count() { return torch::stable::get_num_threads(); }

namespace {

using torch::headeronly::ScalarType;

template <class Number>
void check_type(const Tensor& tensor) {
  constexpr bool kFloat = std::is_same_v<Number, float>;
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == (kFloat ? ScalarType::Float : ScalarType::BFloat16), "a ",
                  kFloat ? "float32" : "bfloat16", " tensor on the CPU expected");
}

// The data of a [N, C, H, W] tensor whose channels lie together.
template <class Number = float>
Number* pixels(const Tensor& tensor) {
  check_type<Number>(tensor);
  STD_TORCH_CHECK(tensor.dim() == 4, "an image [N, C, H, W] expected");
  int64_t expected = 1;
  for (int64_t dimension : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(tensor.size(dimension) == 1 || tensor.stride(dimension) == expected, "channels_last memory expected");
    expected *= tensor.size(dimension);
  }
  return static_cast<Number*>(tensor.data_ptr());
}

float* array(const Tensor& tensor) {
  check_type<float>(tensor);
  STD_TORCH_CHECK(tensor.is_contiguous(), "a contiguous tensor expected");
  return static_cast<float*>(tensor.data_ptr());
}

template <class Number = float>
Number* pixels(const OptionalTensor& tensor) {
  return tensor ? pixels<Number>(*tensor) : nullptr;
}
float* array(const OptionalTensor& tensor) { return tensor ? array(*tensor) : nullptr; }

Size size_of(const Tensor& tensor) { return {tensor.size(0), tensor.size(2), tensor.size(3)}; }

Conv conv_of(const Tensor& weight, const OptionalTensor& bias, double negative_slope) {
  return {weight.size(1), weight.size(0), array(weight), array(bias), static_cast<float>(negative_slope)};
}

Embedding embedding_of(const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope, Save save) {
  return {weights.size(1), weights.size(0), recursions, array(weights), array(biases), static_cast<float>(negative_slope), save};
}

Save save_mode(const Tensor& saved, bool recompute) {
  return saved.numel() == 0 ? Save::kNothing : recompute ? Save::kRecursions : Save::kConvolutions;
}

Upsampling upsampling_of(const Tensor& weight, const OptionalTensor& bias) {
  return {weight.size(0), weight.size(1), array(weight), array(bias)};
}

ResidualHead head_of(const Tensor& weight, const OptionalTensor& bias, const Tensor& image_weight) {
  return {weight.size(1), array(weight), array(bias), array(image_weight)};
}

// The kernels for images of bfloat16, if these are such.
const BFloat16Kernels* bfloat16_kernels_for(const Tensor& images) {
  if (images.scalar_type() != ScalarType::BFloat16) return nullptr;
  STD_TORCH_CHECK(multiplies_bfloat16(), "this processor does not multiply bfloat16");
  return bfloat16_kernels();
}

}  // namespace

bool multiplies_bfloat16() { return bfloat16_kernels() != nullptr; }

void conv2d_lrelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
                  double negative_slope, Tensor out) {
  const Conv conv = conv_of(weight, bias, negative_slope);
  if (const auto* kernels = bfloat16_kernels_for(x))
    return kernels->conv(conv, size_of(x), pixels<BFloat16>(x), pixels<BFloat16>(skip), pixels<BFloat16>(out));
  kernels().conv(conv, size_of(x), pixels(x), pixels(skip), pixels(out));
}

void conv2d_lrelu_backward(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& grad, double negative_slope,
                           OptionalTensor grad_x, OptionalTensor grad_weight, OptionalTensor grad_bias, Tensor grad_skip) {
  kernels().conv_backward(conv_of(weight, std::nullopt, negative_slope), size_of(x), pixels(x), pixels(out), pixels(grad),
                          pixels(grad_x), array(grad_weight), array(grad_bias), pixels(grad_skip));
}

void recursive_embedding(const Tensor& u, const Tensor& weights, const Tensor& biases, int64_t recursions,
                         double negative_slope, bool recompute, Tensor saved, Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->embedding(embedding, size_of(u), pixels<BFloat16>(u), pixels<BFloat16>(out));
  kernels().embedding(embedding, size_of(u), pixels(u), array(saved), pixels(out));
}

void recursive_embedding_backward(const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope,
                                  bool recompute, const Tensor& saved, const Tensor& out, const Tensor& grad, Tensor grad_u,
                                  Tensor grad_weights, Tensor grad_biases) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  kernels().embedding_backward(embedding, size_of(grad), array(saved), pixels(out), pixels(grad), pixels(grad_u),
                               array(grad_weights), array(grad_biases));
}

void tied_conv_transpose2d(const Tensor& a, const Tensor& weight, const OptionalTensor& bias, Tensor out) {
  const Upsampling upsampling = upsampling_of(weight, bias);
  if (const auto* kernels = bfloat16_kernels_for(a))
    return kernels->upsampling(upsampling, size_of(a), pixels<BFloat16>(a), pixels<BFloat16>(out));
  kernels().upsampling(upsampling, size_of(a), pixels(a), pixels(out));
}

void tied_conv_transpose2d_backward(const Tensor& a, const Tensor& weight, const Tensor& grad, OptionalTensor grad_a,
                                    OptionalTensor grad_weight, OptionalTensor grad_bias) {
  kernels().upsampling_backward(upsampling_of(weight, std::nullopt), size_of(a), pixels(a), pixels(grad), pixels(grad_a),
                                array(grad_weight), array(grad_bias));
}

void lapsrn_level(const Tensor& u, const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight,
                  const Tensor& upsample_bias, int64_t recursions, double negative_slope, bool recompute, Tensor saved,
                  Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  const Upsampling upsampling = upsampling_of(upsample_weight, upsample_bias);
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->level(embedding, upsampling, size_of(u), pixels<BFloat16>(u), pixels<BFloat16>(out));
  const Buffer unsaved(embedding.save == Save::kNothing ? u.numel() : 0);
  float* a = unsaved.data() ? unsaved.data() : array(saved) + embedding.saved_images() * u.numel();
  kernels().level(embedding, upsampling, size_of(u), pixels(u), array(saved), a, pixels(out));
}

void lapsrn_level_backward(const Tensor& weights, const Tensor& biases, const Tensor& upsample_weight, int64_t recursions,
                           double negative_slope, bool recompute, const Tensor& saved, const Tensor& grad, Tensor grad_u,
                           Tensor grad_weights, Tensor grad_biases, Tensor grad_upsample_weight, Tensor grad_upsample_bias) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  const float* a = array(saved) + embedding.saved_images() * grad_u.numel();
  kernels().level_backward(embedding, upsampling_of(upsample_weight, std::nullopt), size_of(grad_u), array(saved), a, pixels(grad),
                           pixels(grad_u), array(grad_weights), array(grad_biases), array(grad_upsample_weight),
                           array(grad_upsample_bias));
}

void residual_head(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& residual_bias,
                   const Tensor& image_weight, Tensor out) {
  const ResidualHead head = head_of(residual_weight, residual_bias, image_weight);
  if (const auto* kernels = bfloat16_kernels_for(f))
    return kernels->residual_head(head, size_of(image), pixels<BFloat16>(f), pixels(image), pixels(out));
  kernels().residual_head(head, size_of(image), pixels(f), pixels(image), pixels(out));
}

void residual_head_backward(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& image_weight,
                            const Tensor& grad, Tensor grad_f, Tensor grad_image, Tensor grad_residual_weight,
                            Tensor grad_residual_bias, Tensor grad_image_weight) {
  kernels().residual_head_backward(head_of(residual_weight, std::nullopt, image_weight), size_of(image), pixels(f),
                                   pixels(image), pixels(grad), pixels(grad_f), pixels(grad_image), array(grad_residual_weight),
                                   array(grad_residual_bias), array(grad_image_weight));
}

void lapsrn_last_level(const Tensor& u, const Tensor& image, const Tensor& weights, const Tensor& biases,
                       const Tensor& upsample_weight, const Tensor& upsample_bias, int64_t recursions, double negative_slope,
                       const Tensor& residual_weight, const Tensor& residual_bias, const Tensor& image_weight, Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, Save::kNothing);
  const Upsampling upsampling = upsampling_of(upsample_weight, upsample_bias);
  const ResidualHead head = head_of(residual_weight, residual_bias, image_weight);
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->last_level(embedding, upsampling, head, size_of(u), pixels<BFloat16>(u), pixels(image), pixels(out));
  kernels().last_level(embedding, upsampling, head, size_of(u), pixels(u), pixels(image), pixels(out));
}

}  // namespace cmslap::cpu
