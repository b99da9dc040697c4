#include "level.h"

namespace cmslap::cuda {
namespace {

// Maps of one size, one after the other.
class Maps {
 public:
  Maps(const void* first, int64_t elements)
      : first_(static_cast<char*>(const_cast<void*>(first))), bytes_(2 * elements) {}
  void* operator[](int64_t i) const { return first_ + i * bytes_; }
  Maps from(int64_t i) const { return {(*this)[i], bytes_ / 2}; }

 private:
  char* first_;
  int64_t bytes_;
};

// Convolutions' kernels as the launches read them.
struct Packed {
  Packed(Type type, const void* weights, int count, int out, int in, Queue queue)
      : rows(queue.memory.maps(int64_t{count} * 9 * out * in), int64_t{9} * out * in),
        columns(queue.memory.maps(int64_t{count} * 9 * out * in), int64_t{9} * out * in) {
    pack_weights(type, weights, count, out, in, rows[0], columns[0], queue.stream);
  }
  Maps rows, columns;
};

void copy(Type type, const void* from, int64_t elements, void* to, Queue queue) {
  activate(type, from, elements, 1.0f, to, queue.stream);
}

// grad [channels] += Σ over the pixels of a map.
void add_pixels(Type type, const void* map, int64_t pixels, int channels, float* grad, Queue queue) {
  const int rows = pixel_sum_rows(pixels, channels);
  float* sums = queue.memory.floats(int64_t{rows} * channels);
  sum_pixels(type, map, pixels, channels, sums, queue.stream);
  reduce_rows(sums, rows, channels, grad, queue.stream);
}

// Over the calls on one set of maps' sizes: partial sums, and in the end their total.
class WeightSums {
 public:
  WeightSums(WeightGradient op, Queue queue) : op_(op), stream_(queue.stream) {
    op_.splits = weight_gradient_splits(op_);
    op_.partials = queue.memory.floats(int64_t{op_.splits} * op_.maps * 9 * op_.rows * op_.columns);
    op_.accumulate = false;
  }
  void add(const void* left, const void* right) {
    op_.left = left;
    op_.right = right;
    weight_gradient(op_, stream_);
    op_.accumulate = true;
  }
  void finish(float* grad) const {  // [maps, rows, columns, 3, 3]
    reduce_weight_gradient(op_.partials, op_.splits, op_.maps, op_.rows, op_.columns, grad, stream_);
  }

 private:
  WeightGradient op_;
  cudaStream_t stream_;
};

void add_weight_gradient(Type type, Size size, int rows, int columns, int stride, const void* left, const void* right,
                         float* grad, Queue queue) {
  WeightGradient op{};
  op.type = type, op.size = size, op.rows = rows, op.columns = columns, op.maps = 1, op.stride = stride;
  WeightSums sums(op, queue);
  sums.add(left, right);
  sums.finish(grad);
}

// What the data gradients of all recursions leave of the biases' gradients.
class BiasSums {
 public:
  BiasSums(const Embedding& op, int rows, Queue queue)
      : op_(op), rows_(rows), sums_(queue.memory.floats(int64_t{op.convolutions()} * rows * op.channels)) {}

  // Rows for convolution d's bias in recursion r.
  float* operator()(int d, int r) const { return sums_ + (int64_t{d} * op_.recursions + r) * rows_ * op_.channels; }

  void finish(float* grad, Queue queue) const {  // [depth, channels]
    for (int d = 0; d < op_.depth; ++d) {
      // The last convolution's of the last recursion is what backward started from: whoever made it has summed it.
      const int written = d == op_.depth - 1 ? op_.recursions - 1 : op_.recursions;
      if (written > 0) reduce_rows((*this)(d, 0), written * rows_, op_.channels, grad + d * op_.channels, queue.stream);
    }
  }

 private:
  const Embedding& op_;
  int rows_;
  float* sums_;
};

Conv conv_of(const Embedding& op) {
  Conv conv{};
  conv.type = op.type, conv.size = op.size, conv.in = conv.out = op.channels, conv.slope = op.slope;
  return conv;
}

// y = φ(W_d ⋆ x + b_d + skip).
void embedding_step(const Embedding& op, const Packed& kernels, int d, const void* x, const void* skip, void* y,
                    Queue queue) {
  Conv conv = conv_of(op);
  conv.x = x, conv.matrices = kernels.rows[d], conv.bias = op.biases + d * op.channels, conv.skip = skip, conv.y = y;
  cuda::conv(conv, queue.stream);
}

// Where each activation of a forward pass lives: the last one in `last`, those to keep in `saved`, and the others by
// turns in `last` and one buffer, so that inference holds u and two maps.
class Activations {
 public:
  Activations(const Embedding& op, void* saved, void* last, Queue queue)
      : count_(op.convolutions()), step_(op.step()), saves_(saved != nullptr), saved_(saved, op.elements()) {
    turns_[0] = last;
    turns_[1] = saves_ && step_ == 1 ? nullptr : queue.memory.maps(op.elements());
  }
  void* operator[](int i) const {
    return saves_ && i < count_ && i % step_ == 0 ? saved_[i / step_] : turns_[(count_ - i) % 2];
  }

 private:
  int count_, step_;
  bool saves_;
  Maps saved_;
  void* turns_[2];
};

void embedding_forward(const Embedding& op, const Packed& kernels, const void* u, void* saved, void* last,
                       Queue queue) {
  const Activations a(op, saved, last, queue);
  activate(op.type, u, op.elements(), op.slope, a[0], queue.stream);
  for (int i = 0; i < op.convolutions(); ++i) {
    const int d = i % op.depth;
    embedding_step(op, kernels, d, a[i], d == op.depth - 1 ? u : nullptr, a[i + 1], queue);
  }
}

// The backward pass of an embedding, from the gradient of h_R on.
class EmbeddingBackward {
 public:
  EmbeddingBackward(const Embedding& op, const Packed& kernels, Queue queue)
      : op_(op),
        kernels_(kernels),
        queue_(queue),
        grads_(allocate(op.depth == 1 ? 2 : op.depth)),
        spare_(allocate(1)) {}

  // Where the gradient of h_R, which φ made the last activation of, is to be written.
  void* start() const { return end(op_.recursions - 1); }

  // `gradients.biases` has the sum of what start() holds already.
  void run(const void* saved_maps, const EmbeddingGradients& gradients) {
    const Maps saved(saved_maps, op_.elements());
    const Maps inputs = allocate(op_.step() == 1 ? 0 : op_.depth);
    const BiasSums sums(op_, conv_sum_rows(conv_of(op_)), queue_);
    WeightSums weights(weight_gradient_of(), queue_);
    void* const totals[2] = {gradients.u, spare_[0]};  // of the gradients of h_r, r falling: the last one is u's
    copy(op_.type, start(), op_.elements(), totals[op_.recursions % 2], queue_);
    for (int r = op_.recursions - 1; r >= 0; --r) {
      if (op_.step() != 1) recompute(saved[r], inputs);
      const Maps x = op_.step() == 1 ? saved.from(int64_t{r} * op_.depth) : inputs;
      for (int d = op_.depth - 1; d > 0; --d) data_gradient(r, d, x[d], sums(d - 1, r));
      weights.add(maps_of(r)[0], x[0]);
      enter_recursion(r, x[0], totals[(r + 1) % 2], totals[r % 2], r > 0 ? sums(op_.depth - 1, r - 1) : nullptr);
    }
    weights.finish(gradients.weights);
    sums.finish(gradients.biases, queue_);
  }

 private:
  Maps allocate(int64_t maps) const {
    return {maps ? queue_.memory.maps(maps * op_.elements()) : nullptr, op_.elements()};
  }

  // Gradients of a recursion's values, those each convolution made. A single one must not overwrite the map it reads.
  Maps maps_of(int r) const { return grads_.from(op_.depth == 1 ? r % 2 : 0); }
  void* end(int r) const { return maps_of(r)[op_.depth - 1]; }

  WeightGradient weight_gradient_of() const {
    WeightGradient gradient{};
    gradient.type = op_.type, gradient.size = op_.size, gradient.maps = op_.depth, gradient.stride = 1;
    gradient.rows = gradient.columns = op_.channels;
    return gradient;
  }

  Conv backward_of(int r, int d, const void* input, float* sums) const {
    Conv conv = conv_of(op_);
    conv.x = maps_of(r)[d], conv.matrices = kernels_.columns[d], conv.flipped = true, conv.saved = input,
    conv.sums = sums;
    return conv;
  }

  // From the value that convolution d made to the one its input was made of.
  void data_gradient(int r, int d, const void* input, float* sums) const {
    Conv conv = backward_of(r, d, input, sums);
    conv.y = maps_of(r)[d - 1];
    cuda::conv(conv, queue_.stream);
  }

  // The same for a recursion's first convolution: its input is where the recursion before ended, or φ(u). u's skip
  // joins there.
  void enter_recursion(int r, const void* input, const void* skip, void* total, float* sums) const {
    Conv conv = backward_of(r, 0, input, sums);
    conv.y = r > 0 ? end(r - 1) : nullptr, conv.skip = skip, conv.total = total;
    cuda::conv(conv, queue_.stream);
  }

  // The inputs of a recursion's convolutions, from the first of them.
  void recompute(const void* first, const Maps& inputs) const {
    copy(op_.type, first, op_.elements(), inputs[0], queue_);
    for (int d = 1; d < op_.depth; ++d) embedding_step(op_, kernels_, d - 1, inputs[d - 1], nullptr, inputs[d], queue_);
  }

  const Embedding& op_;
  const Packed& kernels_;
  Queue queue_;
  Maps grads_, spare_;
};

Packed packed(const Embedding& op, Queue queue) {
  return {op.type, op.weights, op.depth, op.channels, op.channels, queue};
}
Packed packed(const Upsampling& op, Queue queue) { return {op.type, op.weight, 1, op.in, op.out, queue}; }

void upsampling_forward(const Upsampling& op, const void* matrices, const void* a, const float* bias, void* f,
                        Queue queue) {
  transposed_conv({op.type, op.size, op.in, op.out, a, matrices, bias, f}, queue.stream);
}

TransposedConvGradient data_gradient_of(const Upsampling& op, const void* matrices, const void* grad_f, void* grad_a) {
  TransposedConvGradient gradient{};
  gradient.type = op.type, gradient.size = op.size, gradient.in = op.in, gradient.out = op.out;
  gradient.grad = grad_f, gradient.matrices = matrices, gradient.slope = 1.0f, gradient.y = grad_a;
  return gradient;
}

// f's width and height are twice those of op.size.
void add_upsampling_parameters(const Upsampling& op, const void* a, const void* grad_f, float* grad_weight,
                               float* grad_bias, Queue queue) {
  if (grad_weight) add_weight_gradient(op.type, op.size, op.in, op.out, 2, a, grad_f, grad_weight, queue);
  if (grad_bias) add_pixels(op.type, grad_f, 4 * op.size.pixels(), op.out, grad_bias, queue);
}

}  // namespace

void convolution(const Convolution& op, const void* x, const float* bias, const void* skip, void* y, Queue queue) {
  const Packed kernel(op.type, op.weight, 1, op.out, op.in, queue);
  Conv conv{};
  conv.type = op.type, conv.size = op.size, conv.in = op.in, conv.out = op.out, conv.slope = op.slope;
  conv.x = x, conv.matrices = kernel.rows[0], conv.bias = bias, conv.skip = skip, conv.y = y;
  cuda::conv(conv, queue.stream);
}

void convolution_backward(const Convolution& op, const void* x, const void* y, const void* grad_y, void* grad_x,
                          float* grad_weight, float* grad_bias, void* grad_skip, Queue queue) {
  differentiate(op.type, grad_y, y, op.size.pixels() * op.out, op.slope, grad_skip, queue.stream);
  if (grad_x) {
    const Packed kernel(op.type, op.weight, 1, op.out, op.in, queue);
    Conv conv{};
    conv.type = op.type, conv.size = op.size, conv.in = op.out, conv.out = op.in, conv.slope = 1.0f;
    conv.x = grad_skip, conv.matrices = kernel.columns[0], conv.flipped = true, conv.y = grad_x;
    cuda::conv(conv, queue.stream);
  }
  if (grad_weight) add_weight_gradient(op.type, op.size, op.out, op.in, 1, grad_skip, x, grad_weight, queue);
  if (grad_bias) add_pixels(op.type, grad_skip, op.size.pixels(), op.out, grad_bias, queue);
}

void upsampling(const Upsampling& op, const void* a, const float* bias, void* f, Queue queue) {
  upsampling_forward(op, packed(op, queue).columns[0], a, bias, f, queue);
}

void upsampling_backward(const Upsampling& op, const void* a, const void* grad_f, void* grad_a, float* grad_weight,
                         float* grad_bias, Queue queue) {
  if (grad_a) transposed_conv_gradient(data_gradient_of(op, packed(op, queue).rows[0], grad_f, grad_a), queue.stream);
  add_upsampling_parameters(op, a, grad_f, grad_weight, grad_bias, queue);
}

void embedding(const Embedding& op, const void* u, void* saved, void* a, Queue queue) {
  embedding_forward(op, packed(op, queue), u, saved, a, queue);
}

void embedding_backward(const Embedding& op, const void* saved, const void* a, const void* grad_a,
                        const EmbeddingGradients& gradients, Queue queue) {
  const Packed kernels = packed(op, queue);
  EmbeddingBackward backward(op, kernels, queue);
  differentiate(op.type, grad_a, a, op.elements(), op.slope, backward.start(), queue.stream);
  add_pixels(op.type, backward.start(), op.size.pixels(), op.channels, gradients.biases + (op.depth - 1) * op.channels,
             queue);
  backward.run(saved, gradients);
}

void level(const Embedding& op, const Upsampling& up, const void* u, const float* upsample_bias, void* saved, void* f,
           Queue queue) {
  void* a = saved ? Maps(saved, op.elements())[op.convolutions() / op.step()] : queue.memory.maps(op.elements());
  embedding_forward(op, packed(op, queue), u, saved, a, queue);
  upsampling(up, a, upsample_bias, f, queue);
}

void level_backward(const Embedding& op, const Upsampling& up, const void* saved, const void* grad_f,
                    const EmbeddingGradients& gradients, float* grad_upsample_weight, float* grad_upsample_bias,
                    Queue queue) {
  const void* a = Maps(saved, op.elements())[op.convolutions() / op.step()];
  const Packed kernels = packed(op, queue);
  EmbeddingBackward backward(op, kernels, queue);
  TransposedConvGradient gradient = data_gradient_of(up, packed(up, queue).rows[0], grad_f, backward.start());
  const int rows = transposed_conv_gradient_sum_rows(gradient);
  gradient.saved = a, gradient.slope = op.slope, gradient.sums = queue.memory.floats(int64_t{rows} * up.in);
  transposed_conv_gradient(gradient, queue.stream);
  reduce_rows(gradient.sums, rows, up.in, gradients.biases + (op.depth - 1) * op.channels, queue.stream);
  backward.run(saved, gradients);
  add_upsampling_parameters(up, a, grad_f, grad_upsample_weight, grad_upsample_bias, queue);
}

void image_conv_backward(const ImageConv& op, const void* grad_y, float* grad_parameters, Queue queue) {
  const int rows = image_sum_rows(op.size);
  float* sums = queue.memory.floats(int64_t{rows} * op.out * 10);
  image_conv_weight_gradient(op.type, op.size, op.out, op.x, grad_y, op.y, op.slope, sums, queue.stream);
  reduce_rows(sums, rows, op.out * 10, grad_parameters, queue.stream);
}

void residual_head_backward(ResidualHeadGradient op, float* grad_parameters, Queue queue) {
  const int rows = image_sum_rows({op.size.batch, 2 * op.size.height, 2 * op.size.width}),
            columns = op.channels * 9 + 17;
  op.sums = queue.memory.floats(int64_t{rows} * columns);
  residual_head_gradient(op, queue.stream);
  reduce_rows(op.sums, rows, columns, grad_parameters, queue.stream);
}

}  // namespace cmslap::cuda
