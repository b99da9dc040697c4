// The CPU kernels as PyTorch operators, `cmslap_cpu::*`, each with its schema below it: cmslap/_C.so.
//
// Only the LibTorch stable ABI is used (torch/csrc/stable, torch/headeronly) and nothing of CPython's, so one binary
// serves every later version of both. Callers outside cmslap.ops use the operators of the `cmslap` namespace.
//
// Everything is float32, but where multiplies_bfloat16() and nothing is saved, the features of a forward operation may
// be bfloat16. Images are [N, C, H, W] in channels_last memory; weights, biases and `saved` are contiguous, but the
// weight of conv2d_lrelu may be channels_last. Results go to tensors the caller made; gradients of parameters are added
// to what theirs hold.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "thread_pool.h"

// Of PyTorch 2.11 and later, so that it may be missing.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dimensions, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* metadata,
    int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace cmslap::cpu {

int64_t thread_count() { return torch::stable::get_num_threads(); }

void on_threads(int64_t workers, void (*body)(const void* context, int64_t worker), const void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
  });
}

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

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
    STD_TORCH_CHECK(tensor.size(dimension) == 1 || tensor.stride(dimension) == expected,
                    "channels_last memory expected");
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

// A convolution's weight, which may be channels_last too: so it is in a network of that memory format.
float* conv_weight(const Tensor& weight) { return weight.is_contiguous() ? array(weight) : pixels(weight); }

Conv conv_of(const Tensor& weight, const OptionalTensor& bias, double negative_slope) {
  const WeightLayout layout = weight.is_contiguous() ? WeightLayout{} : WeightLayout{1, weight.size(1)};
  return {weight.size(1), weight.size(0), conv_weight(weight), array(bias), static_cast<float>(negative_slope), layout};
}

Embedding embedding_of(const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope,
                       Save save) {
  return {weights.size(1),
          weights.size(0),
          recursions,
          array(weights),
          array(biases),
          static_cast<float>(negative_slope),
          save};
}

Save save_mode(const OptionalTensor& saved, bool recompute) {
  return !saved ? Save::kNothing : recompute ? Save::kRecursions : Save::kConvolutions;
}

Upsampling upsampling_of(const Tensor& weight, const OptionalTensor& bias) {
  return {weight.size(0), weight.size(1), array(weight), array(bias)};
}

ResidualHead head_of(const Tensor& weight, const OptionalTensor& bias, const Tensor& image_weight) {
  return {weight.size(1), array(weight), array(bias), array(image_weight)};
}

bool multiplies_bfloat16() { return bfloat16_kernels() != nullptr; }

// The kernels for images of bfloat16, if these are such.
const BFloat16Kernels* bfloat16_kernels_for(const Tensor& images) {
  if (images.scalar_type() != ScalarType::BFloat16) return nullptr;
  STD_TORCH_CHECK(multiplies_bfloat16(), "this processor does not multiply bfloat16");
  return bfloat16_kernels();
}

// Registers a function under its name.
#define OPERATOR(function, schema)                                          \
  STABLE_TORCH_LIBRARY_FRAGMENT(cmslap_cpu, m) { m.def(#function schema); } \
  STABLE_TORCH_LIBRARY_IMPL(cmslap_cpu, CPU, m) { m.impl(#function, TORCH_BOX(&function)); }

bool reuses_memory() { return torch_from_blob != nullptr; }

// A float32 or bfloat16 tensor in memory that others left, not initialised; of four dimensions, or contiguous.
Tensor empty(std::vector<int64_t> sizes, bool channels_last, bool bfloat16) {
  STD_TORCH_CHECK(reuses_memory() && (!channels_last || sizes.size() == 4), "PyTorch 2.11 and an image expected");
  std::vector<int64_t> strides(sizes.size());
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    const size_t dimension = channels_last ? std::array<size_t, 4>{0, 2, 3, 1}[i] : i;
    strides[dimension] = count;
    count *= sizes[dimension];
  }
  int64_t bytes = count * (bfloat16 ? sizeof(BFloat16) : sizeof(float));
  void* data = allocate(bytes);
  const auto deleter = [](void* memory, void* size) { release(memory, reinterpret_cast<int64_t>(size)); };
  AtenTensorHandle handle;
  if (torch_from_blob(data, sizes.size(), sizes.data(), strides.data(), 0,
                      bfloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(),
                      -1, &handle, aoti_torch_layout_strided(), nullptr, 0, deleter,
                      reinterpret_cast<void*>(bytes)) != AOTI_TORCH_SUCCESS) {
    release(data, bytes);
    STD_TORCH_CHECK(false, "no tensor of ", bytes, " bytes");
  }
  return Tensor(handle);
}

// These have no tensor to say that they are the CPU's.
STABLE_TORCH_LIBRARY(cmslap_cpu, m) {
  m.def("multiplies_bfloat16() -> bool");
  m.def("reuses_memory() -> bool");
  m.def("empty(int[] sizes, bool channels_last, bool bfloat16) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(cmslap_cpu, CompositeExplicitAutograd, m) {
  m.impl("multiplies_bfloat16", TORCH_BOX(&multiplies_bfloat16));
  m.impl("reuses_memory", TORCH_BOX(&reuses_memory));
  m.impl("empty", TORCH_BOX(&empty));
}

void conv2d_lrelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
                  double negative_slope, Tensor out) {
  const Conv conv = conv_of(weight, bias, negative_slope);
  if (const auto* kernels = bfloat16_kernels_for(x))
    return kernels->conv(conv, size_of(x), pixels<BFloat16>(x), pixels<BFloat16>(skip), pixels<BFloat16>(out));
  kernels().conv(conv, size_of(x), pixels(x), pixels(skip), pixels(out));
}
OPERATOR(conv2d_lrelu,
         "(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, float negative_slope, Tensor(a!) out) -> ()")

// Gradients are optional, those of weight and bias together; a weight's lies as the weight.
void conv2d_lrelu_backward(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& grad,
                           double negative_slope, OptionalTensor grad_skip, OptionalTensor grad_x,
                           OptionalTensor grad_weight, OptionalTensor grad_bias) {
  STD_TORCH_CHECK(!grad_weight || grad_weight->is_contiguous() == weight.is_contiguous(),
                  "a gradient in its weight's memory format expected");
  kernels().conv_backward(conv_of(weight, std::nullopt, negative_slope), size_of(x), pixels(x), pixels(out),
                          pixels(grad), pixels(grad_x), grad_weight ? conv_weight(*grad_weight) : nullptr,
                          array(grad_bias), pixels(grad_skip));
}
OPERATOR(conv2d_lrelu_backward,
         "(Tensor x, Tensor weight, Tensor out, Tensor grad, float negative_slope, Tensor(a!)? grad_skip=None, "
         "Tensor(b!)? grad_x=None, Tensor(c!)? grad_weight=None, Tensor(d!)? grad_bias=None) -> ()")

// saved is [R·D, N, H, W, C], with recompute [R, N, H, W, C]; None when no gradient will be asked for.
void recursive_embedding(const Tensor& u, const Tensor& weights, const Tensor& biases, int64_t recursions,
                         double negative_slope, bool recompute, OptionalTensor saved, Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->embedding(embedding, size_of(u), pixels<BFloat16>(u), pixels<BFloat16>(out));
  kernels().embedding(embedding, size_of(u), pixels(u), array(saved), pixels(out));
}
OPERATOR(recursive_embedding,
         "(Tensor u, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, Tensor(a!)? "
         "saved, "
         "Tensor(b!) out) -> ()")

void recursive_embedding_backward(const Tensor& weights, const Tensor& biases, int64_t recursions,
                                  double negative_slope, bool recompute, const Tensor& saved, const Tensor& out,
                                  const Tensor& grad, Tensor grad_u, Tensor grad_weights, Tensor grad_biases) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  kernels().embedding_backward(embedding, size_of(grad), array(saved), pixels(out), pixels(grad), pixels(grad_u),
                               array(grad_weights), array(grad_biases));
}
OPERATOR(
    recursive_embedding_backward,
    "(Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, Tensor saved, Tensor out, "
    "Tensor grad, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases) -> ()")

void tied_conv_transpose2d(const Tensor& a, const Tensor& weight, const OptionalTensor& bias, Tensor out) {
  const Upsampling upsampling = upsampling_of(weight, bias);
  if (const auto* kernels = bfloat16_kernels_for(a))
    return kernels->upsampling(upsampling, size_of(a), pixels<BFloat16>(a), pixels<BFloat16>(out));
  kernels().upsampling(upsampling, size_of(a), pixels(a), pixels(out));
}
OPERATOR(tied_conv_transpose2d, "(Tensor a, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()")

// Gradients are optional, those of weight and bias together.
void tied_conv_transpose2d_backward(const Tensor& a, const Tensor& weight, const Tensor& grad, OptionalTensor grad_a,
                                    OptionalTensor grad_weight, OptionalTensor grad_bias) {
  kernels().upsampling_backward(upsampling_of(weight, std::nullopt), size_of(a), pixels(a), pixels(grad),
                                pixels(grad_a), array(grad_weight), array(grad_bias));
}
OPERATOR(tied_conv_transpose2d_backward,
         "(Tensor a, Tensor weight, Tensor grad, Tensor(a!)? grad_a=None, Tensor(b!)? grad_weight=None, "
         "Tensor(c!)? grad_bias=None) -> ()")

// saved is one image longer than the recursive embedding's: the last one is the embedding's result.
void lapsrn_level(const Tensor& u, const Tensor& upsample_weight, const Tensor& upsample_bias, const Tensor& weights,
                  const Tensor& biases, int64_t recursions, double negative_slope, bool recompute, OptionalTensor saved,
                  Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  const Upsampling upsampling = upsampling_of(upsample_weight, upsample_bias);
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->level(embedding, upsampling, size_of(u), pixels<BFloat16>(u), pixels<BFloat16>(out));
  const Buffer unsaved(embedding.save == Save::kNothing ? u.numel() : 0);
  float* activations = array(saved);
  float* a = unsaved.data() ? unsaved.data() : activations + embedding.saved_images() * u.numel();
  kernels().level(embedding, upsampling, size_of(u), pixels(u), activations, a, pixels(out));
}
OPERATOR(lapsrn_level,
         "(Tensor u, Tensor upsample_weight, Tensor upsample_bias, Tensor weights, Tensor biases, int recursions, "
         "float negative_slope, bool recompute, Tensor(a!)? saved, Tensor(b!) out) -> ()")

// grad_upsample_weight may be a part of grad_weights.
void lapsrn_level_backward(const Tensor& upsample_weight, const Tensor& weights, const Tensor& biases,
                           int64_t recursions, double negative_slope, bool recompute, const Tensor& saved,
                           const Tensor& grad, Tensor grad_u, Tensor grad_weights, Tensor grad_biases,
                           Tensor grad_upsample_weight, Tensor grad_upsample_bias) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, save_mode(saved, recompute));
  const float* a = array(saved) + embedding.saved_images() * grad_u.numel();
  kernels().level_backward(embedding, upsampling_of(upsample_weight, std::nullopt), size_of(grad_u), array(saved), a,
                           pixels(grad), pixels(grad_u), array(grad_weights), array(grad_biases),
                           array(grad_upsample_weight), array(grad_upsample_bias));
}
OPERATOR(
    lapsrn_level_backward,
    "(Tensor upsample_weight, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
    "Tensor saved, Tensor grad, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases, "
    "Tensor(d!) grad_upsample_weight, Tensor(e!) grad_upsample_bias) -> ()")

void residual_head(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& residual_bias,
                   const Tensor& image_weight, Tensor out) {
  const ResidualHead head = head_of(residual_weight, residual_bias, image_weight);
  if (const auto* kernels = bfloat16_kernels_for(f))
    return kernels->residual_head(head, size_of(image), pixels<BFloat16>(f), pixels(image), pixels(out));
  kernels().residual_head(head, size_of(image), pixels(f), pixels(image), pixels(out));
}
OPERATOR(
    residual_head,
    "(Tensor f, Tensor image, Tensor residual_weight, Tensor residual_bias, Tensor image_weight, Tensor(a!) out) -> ()")

void residual_head_backward(const Tensor& f, const Tensor& image, const Tensor& residual_weight,
                            const Tensor& image_weight, const Tensor& grad, Tensor grad_f, Tensor grad_image,
                            Tensor grad_residual_weight, Tensor grad_residual_bias, Tensor grad_image_weight) {
  kernels().residual_head_backward(head_of(residual_weight, std::nullopt, image_weight), size_of(image), pixels(f),
                                   pixels(image), pixels(grad), pixels(grad_f), pixels(grad_image),
                                   array(grad_residual_weight), array(grad_residual_bias), array(grad_image_weight));
}
OPERATOR(residual_head_backward,
         "(Tensor f, Tensor image, Tensor residual_weight, Tensor image_weight, Tensor grad, Tensor(a!) grad_f, "
         "Tensor(b!) grad_image, Tensor(c!) grad_residual_weight, Tensor(d!) grad_residual_bias, "
         "Tensor(e!) grad_image_weight) -> ()")

DenseRecursion dense_recursion_of(int64_t recursions, double negative_slope, const Tensor& depthwise1,
                                  const Tensor& pointwise1, const Tensor& bias1, const Tensor& depthwise2,
                                  const Tensor& pointwise2, const Tensor& bias2, const Tensor& pointwise3,
                                  const Tensor& bias3) {
  return {bias3.size(0),
          bias1.size(0),
          recursions,
          {array(depthwise1), array(pointwise1), array(bias1), array(depthwise2), array(pointwise2), array(bias2),
           array(pointwise3), array(bias3)},
          static_cast<float>(negative_slope)};
}

// saved is [recursions, N, H + 2, W + 2, record], or None when no gradient will be asked for.
void dense_recursion(const Tensor& u, const Tensor& depthwise1, const Tensor& pointwise1, const Tensor& bias1,
                     const Tensor& depthwise2, const Tensor& pointwise2, const Tensor& bias2, const Tensor& pointwise3,
                     const Tensor& bias3, int64_t recursions, double negative_slope, OptionalTensor saved, Tensor out) {
  const DenseRecursion op = dense_recursion_of(recursions, negative_slope, depthwise1, pointwise1, bias1, depthwise2,
                                               pointwise2, bias2, pointwise3, bias3);
  kernels().dense_recursion(op, size_of(u), pixels(u), array(saved), pixels(out));
}
OPERATOR(dense_recursion,
         "(Tensor u, Tensor depthwise1, Tensor pointwise1, Tensor bias1, Tensor depthwise2, Tensor pointwise2, "
         "Tensor bias2, Tensor pointwise3, Tensor bias3, int recursions, float negative_slope, Tensor(a!)? saved, "
         "Tensor(b!) out) -> ()")

void dense_recursion_backward(const Tensor& depthwise1, const Tensor& pointwise1, const Tensor& bias1,
                              const Tensor& depthwise2, const Tensor& pointwise2, const Tensor& bias2,
                              const Tensor& pointwise3, const Tensor& bias3, int64_t recursions, double negative_slope,
                              const Tensor& saved, const Tensor& grad, Tensor grad_u, Tensor grad_depthwise1,
                              Tensor grad_pointwise1, Tensor grad_bias1, Tensor grad_depthwise2, Tensor grad_pointwise2,
                              Tensor grad_bias2, Tensor grad_pointwise3, Tensor grad_bias3) {
  const DenseParameters<float> gradients{array(grad_depthwise1), array(grad_pointwise1), array(grad_bias1),
                                         array(grad_depthwise2), array(grad_pointwise2), array(grad_bias2),
                                         array(grad_pointwise3), array(grad_bias3)};
  const DenseRecursion op = dense_recursion_of(recursions, negative_slope, depthwise1, pointwise1, bias1, depthwise2,
                                               pointwise2, bias2, pointwise3, bias3);
  kernels().dense_recursion_backward(op, size_of(grad), array(saved), pixels(grad), pixels(grad_u), gradients);
}
OPERATOR(dense_recursion_backward,
         "(Tensor depthwise1, Tensor pointwise1, Tensor bias1, Tensor depthwise2, Tensor pointwise2, Tensor bias2, "
         "Tensor pointwise3, Tensor bias3, int recursions, float negative_slope, Tensor saved, Tensor grad, "
         "Tensor(a!) grad_u, Tensor(b!) grad_depthwise1, Tensor(c!) grad_pointwise1, Tensor(d!) grad_bias1, "
         "Tensor(e!) grad_depthwise2, Tensor(f!) grad_pointwise2, Tensor(g!) grad_bias2, Tensor(h!) grad_pointwise3, "
         "Tensor(i!) grad_bias3) -> ()")

// Head, recursion and tail in one, without gradients.
void dense_network(const Tensor& image, const Tensor& head_weight, const Tensor& head_bias, const Tensor& depthwise1,
                   const Tensor& pointwise1, const Tensor& bias1, const Tensor& depthwise2, const Tensor& pointwise2,
                   const Tensor& bias2, const Tensor& pointwise3, const Tensor& bias3, const Tensor& tail_weight,
                   const Tensor& tail_bias, int64_t recursions, double negative_slope, bool bfloat16, Tensor out) {
  const DenseNetwork op{dense_recursion_of(recursions, negative_slope, depthwise1, pointwise1, bias1, depthwise2,
                                           pointwise2, bias2, pointwise3, bias3),
                        tail_bias.size(0),
                        array(head_weight),
                        array(head_bias),
                        array(tail_weight),
                        array(tail_bias)};
  const auto run = bfloat16 ? bfloat16_kernels()->dense_network : kernels().dense_network;
  run(op, size_of(image), pixels(image), pixels(out));
}
OPERATOR(dense_network,
         "(Tensor image, Tensor head_weight, Tensor head_bias, Tensor depthwise1, Tensor pointwise1, Tensor bias1, "
         "Tensor depthwise2, Tensor pointwise2, Tensor bias2, Tensor pointwise3, Tensor bias3, Tensor tail_weight, "
         "Tensor tail_bias, int recursions, float negative_slope, bool bfloat16, Tensor(a!) out) -> ()")

// Level and residual head in one, without the features between them and without gradients.
void lapsrn_last_level(const Tensor& u, const Tensor& image, const Tensor& upsample_weight, const Tensor& upsample_bias,
                       const Tensor& weights, const Tensor& biases, int64_t recursions, double negative_slope,
                       const Tensor& residual_weight, const Tensor& residual_bias, const Tensor& image_weight,
                       Tensor out) {
  const Embedding embedding = embedding_of(weights, biases, recursions, negative_slope, Save::kNothing);
  const Upsampling upsampling = upsampling_of(upsample_weight, upsample_bias);
  const ResidualHead head = head_of(residual_weight, residual_bias, image_weight);
  if (const auto* kernels = bfloat16_kernels_for(u))
    return kernels->last_level(embedding, upsampling, head, size_of(u), pixels<BFloat16>(u), pixels(image),
                               pixels(out));
  kernels().last_level(embedding, upsampling, head, size_of(u), pixels(u), pixels(image), pixels(out));
}
OPERATOR(lapsrn_last_level,
         "(Tensor u, Tensor image, Tensor upsample_weight, Tensor upsample_bias, Tensor weights, Tensor biases, "
         "int recursions, float negative_slope, Tensor residual_weight, Tensor residual_bias, Tensor image_weight, "
         "Tensor(a!) out) -> ()")

}  // namespace
}  // namespace cmslap::cpu
