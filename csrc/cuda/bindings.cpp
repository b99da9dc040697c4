// The CUDA kernels as PyTorch operators, `cmslap_cuda::*`, each with its schema below it: cmslap/_CUDA.so, a library of
// its own, so that the CPU kernels are there whatever becomes of this one. Tensors of every device come here:
// cmslap/ops/cuda.py sees to it that they fit.
//
// Maps are bfloat16 or float16, [N, C, H, W] in channels_last memory, 16-byte aligned; weights are contiguous and of
// the same dtype, biases and the parameters of image_conv and residual_head contiguous float32. Results go to tensors
// the caller made; gradients of parameters are float32 and are added to what theirs hold. Work is queued on `stream`, a
// cudaStream_t of the current device, on which PyTorch's allocator gives out memory. A tensor said to be optional may
// be None.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "level.h"

namespace cmslap::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// From PyTorch's allocator. Given back when the call ends, while the kernels that use it may still wait: whoever gets
// it next on this stream queues behind them.
class AllocatorWorkspace final : public Workspace {
 public:
  explicit AllocatorWorkspace(const Tensor& like) : like_(like) {}
  void* bytes(int64_t count) override {
    held_.push_back(torch::stable::new_empty(like_, {count}, ScalarType::Byte));
    return held_.back().data_ptr();
  }

 private:
  Tensor like_;
  std::vector<Tensor> held_;
};

Queue queue_on(int64_t stream, AllocatorWorkspace& memory) { return {reinterpret_cast<cudaStream_t>(stream), memory}; }

constexpr bool kOrFloat = true;  // for the features that an image becomes

Type type_of(const Tensor& tensor, bool or_float = false) {
  const ScalarType type = tensor.scalar_type();
  if (or_float && type == ScalarType::Float) return Type::kFloat32;
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, "a bfloat16 or float16 tensor expected");
  return type == ScalarType::BFloat16 ? Type::kBFloat16 : Type::kFloat16;
}

void* aligned(const Tensor& tensor) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, "memory aligned to 16 bytes expected");
  return tensor.data_ptr();
}

// The data of a [N, C, H, W] tensor whose channels lie together.
void* pixels(const Tensor& tensor, bool or_float = false) {
  type_of(tensor, or_float);
  STD_TORCH_CHECK(tensor.dim() == 4, "an image [N, C, H, W] expected");
  int64_t expected = 1;
  for (int64_t dimension : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(tensor.size(dimension) == 1 || tensor.stride(dimension) == expected,
                    "channels_last memory expected");
    expected *= tensor.size(dimension);
  }
  return aligned(tensor);
}

// The data of a contiguous 16-bit tensor: weights, saved activations.
void* halves(const Tensor& tensor) {
  type_of(tensor);
  STD_TORCH_CHECK(tensor.is_contiguous(), "a contiguous tensor expected");
  return tensor.data_ptr();
}

float* floats(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous(),
                  "a contiguous float32 tensor expected");
  return static_cast<float*>(tensor.data_ptr());
}

void* pixels(const OptionalTensor& tensor) { return tensor ? pixels(*tensor) : nullptr; }
void* halves(const OptionalTensor& tensor) { return tensor ? halves(*tensor) : nullptr; }
float* floats(const OptionalTensor& tensor) { return tensor ? floats(*tensor) : nullptr; }

int integer(int64_t value) {
  STD_TORCH_CHECK(value == static_cast<int>(value), "a size of less than 2^31 expected");
  return static_cast<int>(value);
}

Size size_of(const Tensor& map) { return {integer(map.size(0)), integer(map.size(2)), integer(map.size(3))}; }

Convolution convolution_of(const Tensor& x, const Tensor& weight, double negative_slope) {
  const int in = integer(weight.size(1)), out = integer(weight.size(0));
  return {type_of(x), size_of(x), in, out, halves(weight), static_cast<float>(negative_slope)};
}

// like: a map of the embedding's size.
Embedding embedding_of(const Tensor& like, const Tensor& weights, const Tensor& biases, int64_t recursions,
                       double negative_slope, bool recompute) {
  const int channels = integer(weights.size(1)), depth = integer(weights.size(0));
  const float slope = static_cast<float>(negative_slope);
  return {type_of(like),   size_of(like),  channels, depth,    integer(recursions),
          halves(weights), floats(biases), slope,    recompute};
}

Upsampling upsampling_of(const Tensor& a, const Tensor& weight) {
  return {type_of(a), size_of(a), integer(weight.size(0)), integer(weight.size(1)), halves(weight)};
}

ImageConv image_conv_of(const Tensor& x, const float* weight, const float* bias, double negative_slope,
                        const Tensor& out) {
  const float slope = static_cast<float>(negative_slope);
  return {type_of(out, kOrFloat), size_of(x), integer(out.size(1)), floats(x), weight, bias, slope,
          pixels(out, kOrFloat)};
}

EmbeddingGradients gradients_of(const Tensor& u, const Tensor& weights, const Tensor& biases) {
  return {pixels(u), floats(weights), floats(biases)};
}

// Registers a function under its name.
#define OPERATOR(function, schema)                                           \
  STABLE_TORCH_LIBRARY_FRAGMENT(cmslap_cuda, m) { m.def(#function schema); } \
  STABLE_TORCH_LIBRARY_IMPL(cmslap_cuda, CompositeExplicitAutograd, m) { m.impl(#function, TORCH_BOX(&function)); }

namespace operators {  // some have the name of the function they call

void conv2d_lrelu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& skip,
                  double negative_slope, int64_t stream, Tensor out) {
  AllocatorWorkspace memory(x);
  convolution(convolution_of(x, weight, negative_slope), pixels(x), floats(bias), pixels(skip), pixels(out),
              queue_on(stream, memory));
}
OPERATOR(
    conv2d_lrelu,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? skip, float negative_slope, int stream, Tensor(a!) out) -> ()")

// Writes grad_skip, which is also the gradient before the activation. The other gradients are optional.
void conv2d_lrelu_backward(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& grad,
                           double negative_slope, int64_t stream, Tensor grad_skip, OptionalTensor grad_x,
                           OptionalTensor grad_weight, OptionalTensor grad_bias) {
  AllocatorWorkspace memory(x);
  convolution_backward(convolution_of(x, weight, negative_slope), pixels(x), pixels(out), pixels(grad), pixels(grad_x),
                       floats(grad_weight), floats(grad_bias), pixels(grad_skip), queue_on(stream, memory));
}
OPERATOR(conv2d_lrelu_backward,
         "(Tensor x, Tensor weight, Tensor out, Tensor grad, float negative_slope, int stream, Tensor(a!) grad_skip, "
         "Tensor(b!)? grad_x=None, Tensor(c!)? grad_weight=None, Tensor(d!)? grad_bias=None) -> ()")

// conv2d_lrelu of one input channel, without a skip. Its output, and with it the gradient, may also be float32.
void image_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double negative_slope,
                int64_t stream, Tensor out) {
  const ImageConv op = image_conv_of(x, floats(weight), floats(bias), negative_slope, out);
  cuda::image_conv(op, reinterpret_cast<cudaStream_t>(stream));
}
OPERATOR(image_conv, "(Tensor x, Tensor weight, Tensor? bias, float negative_slope, int stream, Tensor(a!) out) -> ()")

// grad_parameters [C, 10]: of each channel's 9 weights and its bias.
void image_conv_backward(const Tensor& x, const Tensor& out, const Tensor& grad, double negative_slope, int64_t stream,
                         Tensor grad_parameters) {
  AllocatorWorkspace memory(x);
  const ImageConv op = image_conv_of(x, nullptr, nullptr, negative_slope, out);
  cuda::image_conv_backward(op, pixels(grad, kOrFloat), floats(grad_parameters), queue_on(stream, memory));
}
OPERATOR(image_conv_backward,
         "(Tensor x, Tensor out, Tensor grad, float negative_slope, int stream, Tensor(a!) grad_parameters) -> ()")

// saved is [R·D, N, H, W, C], with recompute [R, N, H, W, C]; None when no gradient will be asked for.
void recursive_embedding(const Tensor& u, const Tensor& weights, const Tensor& biases, int64_t recursions,
                         double negative_slope, bool recompute, int64_t stream, OptionalTensor saved, Tensor out) {
  AllocatorWorkspace memory(u);
  embedding(embedding_of(u, weights, biases, recursions, negative_slope, recompute), pixels(u), halves(saved),
            pixels(out), queue_on(stream, memory));
}
OPERATOR(recursive_embedding,
         "(Tensor u, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, int stream, "
         "Tensor(a!)? saved, Tensor(b!) out) -> ()")

void recursive_embedding_backward(const Tensor& weights, const Tensor& biases, int64_t recursions,
                                  double negative_slope, bool recompute, const Tensor& saved, const Tensor& out,
                                  const Tensor& grad, int64_t stream, Tensor grad_u, Tensor grad_weights,
                                  Tensor grad_biases) {
  AllocatorWorkspace memory(grad);
  embedding_backward(embedding_of(grad, weights, biases, recursions, negative_slope, recompute), halves(saved),
                     pixels(out), pixels(grad), gradients_of(grad_u, grad_weights, grad_biases),
                     queue_on(stream, memory));
}
OPERATOR(
    recursive_embedding_backward,
    "(Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, Tensor saved, Tensor out, "
    "Tensor grad, int stream, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases) -> ()")

void tied_conv_transpose2d(const Tensor& a, const Tensor& weight, const OptionalTensor& bias, int64_t stream,
                           Tensor out) {
  AllocatorWorkspace memory(a);
  upsampling(upsampling_of(a, weight), pixels(a), floats(bias), pixels(out), queue_on(stream, memory));
}
OPERATOR(tied_conv_transpose2d, "(Tensor a, Tensor weight, Tensor? bias, int stream, Tensor(a!) out) -> ()")

void tied_conv_transpose2d_backward(const Tensor& a, const Tensor& weight, const Tensor& grad, int64_t stream,
                                    OptionalTensor grad_a, OptionalTensor grad_weight, OptionalTensor grad_bias) {
  AllocatorWorkspace memory(a);
  upsampling_backward(upsampling_of(a, weight), pixels(a), pixels(grad), pixels(grad_a), floats(grad_weight),
                      floats(grad_bias), queue_on(stream, memory));
}
OPERATOR(tied_conv_transpose2d_backward,
         "(Tensor a, Tensor weight, Tensor grad, int stream, Tensor(a!)? grad_a=None, Tensor(b!)? grad_weight=None, "
         "Tensor(c!)? grad_bias=None) -> ()")

// saved is one map longer than the recursive embedding's: the last one is the embedding's result.
void lapsrn_level(const Tensor& u, const Tensor& upsample_weight, const Tensor& upsample_bias, const Tensor& weights,
                  const Tensor& biases, int64_t recursions, double negative_slope, bool recompute, int64_t stream,
                  OptionalTensor saved, Tensor out) {
  AllocatorWorkspace memory(u);
  level(embedding_of(u, weights, biases, recursions, negative_slope, recompute), upsampling_of(u, upsample_weight),
        pixels(u), floats(upsample_bias), halves(saved), pixels(out), queue_on(stream, memory));
}
OPERATOR(lapsrn_level,
         "(Tensor u, Tensor upsample_weight, Tensor upsample_bias, Tensor weights, Tensor biases, int recursions, "
         "float negative_slope, bool recompute, int stream, Tensor(a!)? saved, Tensor(b!) out) -> ()")

// grad_upsample_weight may be a part of grad_weights.
void lapsrn_level_backward(const Tensor& upsample_weight, const Tensor& weights, const Tensor& biases,
                           int64_t recursions, double negative_slope, bool recompute, const Tensor& saved,
                           const Tensor& grad, int64_t stream, Tensor grad_u, Tensor grad_weights, Tensor grad_biases,
                           Tensor grad_upsample_weight, Tensor grad_upsample_bias) {
  AllocatorWorkspace memory(grad);
  level_backward(embedding_of(grad_u, weights, biases, recursions, negative_slope, recompute),
                 upsampling_of(grad_u, upsample_weight), halves(saved), pixels(grad),
                 gradients_of(grad_u, grad_weights, grad_biases), floats(grad_upsample_weight),
                 floats(grad_upsample_bias), queue_on(stream, memory));
}
OPERATOR(
    lapsrn_level_backward,
    "(Tensor upsample_weight, Tensor weights, Tensor biases, int recursions, float negative_slope, bool recompute, "
    "Tensor saved, Tensor grad, int stream, Tensor(a!) grad_u, Tensor(b!) grad_weights, Tensor(c!) grad_biases, "
    "Tensor(d!) grad_upsample_weight, Tensor(e!) grad_upsample_bias) -> ()")

void residual_head(const Tensor& f, const Tensor& image, const Tensor& residual_weight, const Tensor& residual_bias,
                   const Tensor& image_weight, int64_t stream, Tensor out) {
  const ResidualHead op{type_of(f),    size_of(image),          integer(f.size(1)),    pixels(f),
                        floats(image), floats(residual_weight), floats(residual_bias), floats(image_weight),
                        floats(out)};
  cuda::residual_head(op, reinterpret_cast<cudaStream_t>(stream));
}
OPERATOR(residual_head,
         "(Tensor f, Tensor image, Tensor residual_weight, Tensor residual_bias, Tensor image_weight, int stream, "
         "Tensor(a!) out) -> ()")

// grad_parameters [9·C + 17]: of residual_weight, residual_bias, image_weight.
void residual_head_backward(const Tensor& f, const Tensor& image, const Tensor& residual_weight,
                            const Tensor& image_weight, const Tensor& grad, int64_t stream, Tensor grad_parameters,
                            OptionalTensor grad_f, OptionalTensor grad_image) {
  AllocatorWorkspace memory(f);
  const ResidualHeadGradient op{
      type_of(f),   size_of(image),          integer(f.size(1)),   pixels(f),      floats(image),
      floats(grad), floats(residual_weight), floats(image_weight), pixels(grad_f), floats(grad_image),
      nullptr};
  residual_head_backward(op, floats(grad_parameters), queue_on(stream, memory));
}
OPERATOR(residual_head_backward,
         "(Tensor f, Tensor image, Tensor residual_weight, Tensor image_weight, Tensor grad, int stream, "
         "Tensor(a!) grad_parameters, Tensor(b!)? grad_f=None, Tensor(c!)? grad_image=None) -> ()")

}  // namespace operators
}  // namespace
}  // namespace cmslap::cuda
