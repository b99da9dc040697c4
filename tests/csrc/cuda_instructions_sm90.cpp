// What ptx.h's helpers for compute capability 9.0 do, against plain definitions: in the model this tests the model,
// compiled by nvcc it tests what the model assumes about the machine.
//
// Layouts of shared memory are written here as the PTX ISA draws them: lines of 16-byte pieces, where piece c of a line
// stands at c xor (a number that the line's place in the repeating pattern gives).
#include <algorithm>

#include "cuda/ptx.h"
#include "cuda/tensor_map.h"
#include "cuda_problems.h"

namespace cmslap::cuda::testing {
namespace {

void expect_equal(const std::string& what, const Values& got, const Values& want) {
  if (got != want) {
    const auto at = std::mismatch(got.begin(), got.end(), want.begin());
    throw std::runtime_error(
        format("%s[%td] is %g, not %g", what.c_str(), at.first - got.begin(), *at.first, *at.second));
  }
}

int span(Swizzle swizzle) { return 16 << static_cast<int>(swizzle); }  // bytes of a line

// Where byte `byte` of line `line` lies, from the start of a pattern.
int in_pattern(Swizzle swizzle, int line, int byte) {
  const int pieces = span(swizzle) / 16;
  const int lines_with_the_same_order = 128 / span(swizzle);
  return line * span(swizzle) + ((byte / 16) ^ (line / lines_with_the_same_order % pieces)) * 16 + byte % 16;
}

// ---- Warps ----

__global__ void elect_kernel(float* out) { out[threadIdx.x] = elect_one(); }

TEST(sm90_instructions_elect_one) {
  needs_sm90();
  Buffer<float> out(96);
  launch(elect_kernel, dim3(1), dim3(96), 0, nullptr, out.data());
  finish_run();
  for (int warp = 0; warp < 3; ++warp)
    if (std::count(&out[32 * warp], &out[32 * warp] + 32, 1.0f) != 1) throw std::runtime_error("not one lane elected");
}

// Registers of 32 lanes to matrices [2, 4, 8, 8], as they are and transposed.
__global__ void stmatrix_kernel(const uint32_t* registers, uint16_t* matrices) {
  SHARED_MEMORY(shared);
  const int lane = threadIdx.x;
  uint32_t s[4];
  for (int i = 0; i < 4; ++i) s[i] = registers[i * 32 + lane];
  stmatrix_x4(shared_address(shared + lane * 16), s);
  stmatrix_x4_trans(shared_address(shared + 512 + lane * 16), s);
  __syncwarp();
  for (int i = lane; i < 512; i += 32) matrices[i] = reinterpret_cast<const uint16_t*>(shared)[i];
}

TEST(sm90_instructions_stmatrix) {
  needs_sm90();
  Inputs inputs(Type::kFloat16);
  const uint16_t* const words = inputs.words(256);
  Values want(512);
  for (int i = 0; i < 256; ++i) {
    const int matrix = i / 64, lane = i / 2 % 32, row = lane / 4, column = lane % 4 * 2 + i % 2;
    want[matrix * 64 + row * 8 + column] = words[i];
    want[256 + matrix * 64 + column * 8 + row] = words[i];
  }
  Buffer<uint16_t> matrices(512);
  launch(stmatrix_kernel, dim3(1), dim3(32), 1024, nullptr, reinterpret_cast<const uint32_t*>(words), matrices.data());
  finish_run();
  expect_equal("matrices", Values(matrices.data(), matrices.data() + 512), want);
}

// ---- mbarriers ----

// Warp 0 hands `count` numbers to three warps through two stages.
__global__ void ring_kernel(float* out, int count) {
  SHARED_MEMORY(shared);
  float* const stages = reinterpret_cast<float*>(shared + 64);
  const uint32_t full = shared_address(shared), empty = full + 16;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) mbarrier_init(full + 8 * stage, 32), mbarrier_init(empty + 8 * stage, 3);
    fence_barrier_init();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < count; ++i) {
    const int stage = i % 2, phase = i / 2 % 2;
    if (warp == 0) {
      mbarrier_wait(empty + 8 * stage, phase ^ 1);
      stages[stage * 32 + lane] = 100 * i + lane;
      mbarrier_arrive(full + 8 * stage);
    } else {
      mbarrier_wait(full + 8 * stage, phase);
      out[(i * 3 + warp - 1) * 32 + lane] = stages[stage * 32 + 31 - lane];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + 8 * stage);
    }
  }
}

TEST(sm90_instructions_mbarrier) {
  needs_sm90();
  constexpr int kCount = 9;
  Values want(kCount * 96);
  for (int i = 0; i < kCount * 96; ++i) want[i] = 100 * (i / 96) + 31 - i % 32;
  float* out;
  run_and_check(
      [&](Outputs& outputs) {
        out = outputs.floats(kCount * 96);
        launch(ring_kernel, dim3(2), dim3(128), 512, nullptr, out, kCount);
      },
      [&] { expect_equal("out", values(out, kCount * 96), want); });
}

// ---- Copy engine ----

struct Transfer {
  TensorMap map;
  int rank, corner[5];
  int bytes, offset;  // of the box in shared memory
  uint16_t* contents;
};

__global__ void load_kernel(const __grid_constant__ Transfer t) {
  SHARED_MEMORY(shared);
  const uint32_t barrier = shared_address(shared), box = barrier + t.offset;
  const int* const c = t.corner;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_barrier_init();
    mbarrier_arrive_expect_tx(barrier, t.bytes);
    if (t.rank == 3) tma_load_3d(box, t.map, barrier, c[0], c[1], c[2]);
    if (t.rank == 4) tma_load_4d(box, t.map, barrier, c[0], c[1], c[2], c[3]);
    if (t.rank == 5) tma_load_5d(box, t.map, barrier, c[0], c[1], c[2], c[3], c[4]);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < t.bytes / 2; i += blockDim.x)
    t.contents[i] = *reinterpret_cast<const uint16_t*>(shared + t.offset + 2 * i);
}

__global__ void store_kernel(const __grid_constant__ Transfer t) {
  SHARED_MEMORY(shared);
  for (int i = threadIdx.x; i < t.bytes / 2; i += blockDim.x)
    *reinterpret_cast<uint16_t*>(shared + t.offset + 2 * i) = t.contents[i];
  fence_proxy_async();
  __syncthreads();
  const int* const c = t.corner;
  const uint32_t box = shared_address(shared) + t.offset;
  if (threadIdx.x == 0) {
    if (t.rank == 4) tma_store_4d(t.map, box, c[0], c[1], c[2], c[3]);
    if (t.rank == 5) tma_store_5d(t.map, box, c[0], c[1], c[2], c[3], c[4]);
    tma_store_commit();
    tma_store_wait_read<0>();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < t.bytes / 2; i += blockDim.x)
    *reinterpret_cast<uint16_t*>(shared + t.offset + 2 * i) = 0;
  if (threadIdx.x == 0) tma_store_wait<0>();
}

// A random tensor of up to five dimensions, a box on it that may lie partly outside, and where each of the box's
// elements is in the tensor (-1: outside) and, in words, in shared memory.
template <size_t kRank>
struct Placement {
  std::array<uint64_t, kRank> extents, strides{};  // elements
  std::array<uint32_t, kRank> box, steps;
  std::array<int, kRank> corner;
  Swizzle swizzle;
  int64_t elements = 1;   // of the tensor
  int count = 1, offset;  // of the box; bytes from a multiple of 1024
  std::vector<int64_t> in_tensor;
  std::vector<int> in_shared;

  explicit Placement(bool with_steps) {
    swizzle = one_of<Swizzle>({Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128});
    offset = 1024 + 128 * between(0, 9);
    for (size_t i = 0; i < kRank; ++i) {
      steps[i] = i > 0 && with_steps ? between(1, 2) : 1;
      box[i] = i > 0 ? between(1, 5) : swizzle == Swizzle::kNone ? 8 * between(1, 5) : span(swizzle) / 2;
      extents[i] = i > 0 ? between(1, 6) : 8 * between(1, 9);
      corner[i] = between(-3, static_cast<int>(extents[i]) - 1);
      strides[i] = elements;
      elements *= extents[i];
      count *= (box[i] + steps[i] - 1) / steps[i];
    }
    const int line = box[0];
    for (int i = 0; i < count; ++i) {
      int64_t place = 0;
      int rest = i;
      for (size_t d = 0; d < kRank; ++d) {
        const int size = (box[d] + steps[d] - 1) / steps[d];
        const int64_t x = corner[d] + rest % size * static_cast<int>(steps[d]);
        rest /= size;
        const bool exists = x >= 0 && x < static_cast<int64_t>(extents[d]);
        place = exists && place >= 0 ? place + x * static_cast<int64_t>(strides[d]) : -1;
      }
      in_tensor.push_back(place);
      // The pattern begins at a multiple of 1024.
      const int first = (offset - 1024) / span(swizzle);
      in_shared.push_back(swizzle == Swizzle::kNone
                              ? i
                              : (in_pattern(swizzle, first + i / line, i % line * 2) - first * span(swizzle)) / 2);
    }
  }
  Transfer transfer(const uint16_t* tensor, uint16_t* contents) const {
    Tensor<kRank> description{tensor, extents, {}, box, steps, swizzle};
    for (size_t i = 1; i < kRank; ++i) description.strides[i - 1] = 2 * strides[i];
    Transfer t{make_tensor_map(description), kRank, {}, 2 * count, offset, contents};
    std::copy(corner.begin(), corner.end(), t.corner);
    return t;
  }
  size_t shared_bytes() const { return offset + 2 * count + 1024; }
};

template <size_t kRank>
void test_load() {
  const Placement<kRank> p(true);
  describe(format("load of rank %zu, swizzle %d, offset %d", kRank, span(p.swizzle), p.offset));
  Inputs inputs(Type::kFloat16);
  const uint16_t* const tensor = inputs.words(p.elements);
  Values want(p.count);
  for (int i = 0; i < p.count; ++i) want[p.in_shared[i]] = p.in_tensor[i] < 0 ? 0 : tensor[p.in_tensor[i]];
  uint16_t* contents;
  run_and_check(
      [&](Outputs& outputs) {
        contents = outputs.words(p.count);
        launch(load_kernel, dim3(1), dim3(64), p.shared_bytes(), nullptr, p.transfer(tensor, contents));
      },
      [&] { expect_equal("box", Values(contents, contents + p.count), want); });
}

template <size_t kRank>
void test_store() {
  const Placement<kRank> p(false);
  describe(format("store of rank %zu, swizzle %d, offset %d", kRank, span(p.swizzle), p.offset));
  Inputs inputs(Type::kFloat16);
  const uint16_t* const box = inputs.words(p.count);
  Values want(p.elements, 0xffff);
  for (int i = 0; i < p.count; ++i)
    if (p.in_tensor[i] >= 0) want[p.in_tensor[i]] = box[p.in_shared[i]];
  uint16_t* tensor;
  run_and_check(
      [&](Outputs& outputs) {
        tensor = outputs.words(p.elements);
        launch(store_kernel, dim3(1), dim3(64), p.shared_bytes(), nullptr,
               p.transfer(tensor, const_cast<uint16_t*>(box)));
      },
      [&] { expect_equal("tensor", Values(tensor, tensor + p.elements), want); });
}

TEST(sm90_instructions_tma_load) {
  needs_sm90();
  for (int i = 0; i < 5; ++i) test_load<3>(), test_load<4>(), test_load<5>();
}
TEST(sm90_instructions_tma_store) {
  needs_sm90();
  for (int i = 0; i < 5; ++i) test_store<4>(), test_store<5>();
}

// ---- wgmma ----

// An operand in shared memory: where element (row, k) is, from a multiple of 1024, and the descriptor's fields.
struct Layout {
  Swizzle swizzle;
  bool transposed;
  int start, leading, stride, base_offset;  // bytes, bytes, bytes, lines
  int step;                                 // bytes from 16 of k to the next 16
  std::function<int(int row, int k)> place;

  uint64_t fields() const {
    constexpr uint64_t kModes[] = {0, 3, 2, 1};
    return uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(base_offset) << 49 |
           kModes[static_cast<int>(swizzle)] << 62;
  }
};

// Lines of consecutive k, a line a row: row r is line first + r; groups of eight rows may have other lines between
// them. A pattern that does not begin at a multiple of 1024 begins with line `pattern` of those that do.
Layout lines_of_k(Swizzle swizzle, int first, int lines_a_group, int pattern) {
  const int bytes = span(swizzle);
  return {swizzle, false, (pattern * 128 + first * bytes), 16, lines_a_group * bytes, pattern, 32, [=](int row, int k) {
            return pattern * 128 + in_pattern(swizzle, first + row / 8 * lines_a_group + row % 8, 2 * k);
          }};
}
// Lines of consecutive rows, a line a k, in columns of as many rows as a line holds.
Layout lines_of_rows(Swizzle swizzle, int depth) {
  const int bytes = span(swizzle), leading = depth * bytes;
  return {swizzle, true, 0, leading, 8 * bytes, 0, 16 * bytes, [=](int row, int k) {
            const int column = row * 2 / bytes;
            return column * leading + in_pattern(swizzle, k, row * 2 % bytes);
          }};
}
// 8×8 matrices, 128 bytes each, that lie `leading` and `stride` apart.
Layout plain(bool transposed, int rows, int depth) {
  const int to_next_rows = depth * 16, to_next_k = 128;
  if (transposed)
    return {Swizzle::kNone, true, 0, rows * 16, 128, 0, 2 * rows * 16, [=](int row, int k) {
              return row / 8 * 128 + k / 8 * rows * 16 + k % 8 * 16 + row % 8 * 2;
            }};
  return {Swizzle::kNone, false, 0, to_next_k, to_next_rows, 0, 2 * to_next_k, [=](int row, int k) {
            return row / 8 * to_next_rows + k / 8 * to_next_k + row % 8 * 16 + k % 8 * 2;
          }};
}

struct Multiplication {
  const uint16_t *a, *b;  // contents of shared memory
  int words_a, words_b, start_a, start_b, step_a, step_b, steps;
  uint64_t fields_a, fields_b;
  const uint16_t* left;  // [64, 16·steps], for registers
  bool accumulate;
  float* d;  // [64, N]
};

template <class T, int kN, bool kRegisters, int kTransA, int kTransB>
__global__ void __launch_bounds__(128) wgmma_kernel(const __grid_constant__ Multiplication p) {
  SHARED_MEMORY(shared);
  uint16_t* const words = reinterpret_cast<uint16_t*>(shared);
  const int room_a = (p.words_a * 2 + 1023) / 1024 * 1024;
  for (int i = threadIdx.x; i < p.words_a; i += 128) words[i] = p.a[i];
  for (int i = threadIdx.x; i < p.words_b; i += 128) words[room_a / 2 + i] = p.b[i];
  fence_proxy_async();
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto place = [&](int i) {
    return (16 * warp + lane / 4 + i / 2 % 2 * 8) * kN + i / 4 * 8 + lane % 4 * 2 + i % 2;
  };
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = p.d[place(i)];
  fence_registers(d);
  wgmma_fence();
  const uint32_t start = shared_address(shared);
  for (int step = 0; step < p.steps; ++step) {
    const uint64_t b = p.fields_b | (start + room_a + p.start_b + step * p.step_b) >> 4;
    const bool accumulate = p.accumulate || step > 0;
    if constexpr (kRegisters) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * warp + lane / 4 + i % 2 * 8, k = 16 * step + lane % 4 * 2 + i / 2 * 8;
        a[i] = *reinterpret_cast<const uint32_t*>(p.left + row * 16 * p.steps + k);
      }
      wgmma_fence();
      wgmma<T, kN, kTransB>(d, a, b, accumulate);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_fence();
    } else {
      const uint64_t a = p.fields_a | (start + p.start_a + step * p.step_a) >> 4;
      wgmma<T, kN, kTransA, kTransB>(d, a, b, accumulate);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(d);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) p.d[place(i)] = d[i];
}

template <class T, int kN, bool kRegisters, int kTransA, int kTransB>
void test_wgmma(const Layout& a, const Layout& b, int steps) {
  const Type type = std::is_same_v<T, BFloat16> ? Type::kBFloat16 : Type::kFloat16;
  const int depth = 16 * steps;
  const bool accumulate = coin();
  describe(format("wgmma N %d, depth %d, a %s %d %s, b %d %s, starts %d %d, base offsets %d %d", kN, depth,
                  kRegisters ? "registers" : "shared", span(a.swizzle), a.transposed ? "transposed" : "",
                  span(b.swizzle), b.transposed ? "transposed" : "", a.start, b.start, a.base_offset, b.base_offset));
  Values left(64 * depth), right(depth * kN), before(64 * kN);
  for (double& value : left) value = between(-4, 4);
  for (double& value : right) value = between(-4, 4);
  for (double& value : before) value = between(-9, 9);

  const auto contents = [&](const Layout& layout, int rows, const std::function<double(int, int)>& element) {
    std::vector<uint16_t> words(1, 0x7fff);  // the rest is NaN
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < depth; ++k) {
        const size_t place = layout.place(row, k) / 2;
        if (words.size() <= place) words.resize((place / 512 + 1) * 512, 0x7fff);
        words[place] = encode(type, element(row, k));
      }
    return words;
  };
  const auto copy = [](const std::vector<uint16_t>& words) {
    auto buffer = std::make_unique<Buffer<uint16_t>>(words.size());
    std::copy(words.begin(), words.end(), buffer->data());
    return buffer;
  };
  const auto a_words = copy(contents(a, 64, [&](int row, int k) { return left[row * depth + k]; }));
  const auto b_words = copy(contents(b, kN, [&](int row, int k) { return right[k * kN + row]; }));
  std::vector<uint16_t> rows;
  for (const double value : left) rows.push_back(encode(type, value));
  const auto left_words = copy(rows);

  Values want = accumulate ? before : Values(64 * kN, 0.0);
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < kN; ++n) want[m * kN + n] += left[m * depth + k] * right[k * kN + n];

  const auto size = [](const auto& words) { return static_cast<int>(words->size()); };
  float* d;
  run_and_check(
      [&](Outputs& outputs) {
        d = outputs.floats(64 * kN);
        std::copy(before.begin(), before.end(), d);
        const Multiplication p{
            a_words->data(), b_words->data(), size(a_words), size(b_words),      a.start,    b.start, a.step, b.step,
            steps,           a.fields(),      b.fields(),    left_words->data(), accumulate, d};
        const size_t bytes = 2 * (a_words->size() + b_words->size()) + 2048;
        launch(wgmma_kernel<T, kN, kRegisters, kTransA, kTransB>, dim3(1), dim3(128), bytes, nullptr, p);
      },
      [&] { expect_equal("d", values(d, 64 * kN), want); });
}

template <class T, int kN>
void test_wgmma_shapes() {
  const Layout rows_of_64 = lines_of_k(Swizzle::k128, 0, 8, 0);
  test_wgmma<T, kN, false, 0, 0>(rows_of_64, rows_of_64, 4);
  test_wgmma<T, kN, true, 0, 0>(rows_of_64, rows_of_64, 4);
  const int depth = 16 * between(1, 4);
  test_wgmma<T, kN, false, 1, 1>(lines_of_rows(Swizzle::k128, depth), lines_of_rows(Swizzle::k128, depth), depth / 16);
  test_wgmma<T, kN, true, 0, 1>(rows_of_64, lines_of_rows(Swizzle::k128, depth), depth / 16);
}

TEST(sm90_instructions_wgmma_shapes) {
  needs_sm90();
  test_wgmma_shapes<BFloat16, 64>();
  test_wgmma_shapes<Float16, 128>();
  test_wgmma_shapes<BFloat16, 256>();
}

// Operands that begin in the middle of a pattern, at any line, and whose groups of eight lines are apart: what reading
// a box of pixels from another pixel on makes of them.
TEST(sm90_instructions_wgmma_windows) {
  needs_sm90();
  const Layout weights = lines_of_k(Swizzle::k128, 0, 8, 0);
  for (int i = 0; i < 4; ++i) {
    const int group = between(8, 12), first = between(0, 25);
    test_wgmma<BFloat16, 64, false, 0, 0>(weights, lines_of_k(Swizzle::k128, first, group, 0), 4);
    test_wgmma<Float16, 64, false, 0, 0>(lines_of_k(Swizzle::k128, first, group, 0), weights, 4);
  }
}

// Patterns that begin elsewhere than at a multiple of 1024, which is what base offsets are for.
TEST(sm90_instructions_wgmma_base_offset) {
  needs_sm90();
  const int line = between(1, 7);
  test_wgmma<BFloat16, 64, false, 0, 0>(lines_of_k(Swizzle::k128, 0, 8, line), lines_of_k(Swizzle::k128, 0, 8, 0), 4);
  test_wgmma<BFloat16, 64, false, 0, 0>(lines_of_k(Swizzle::k128, 0, 8, 0), lines_of_k(Swizzle::k128, 0, 8, line), 4);
}

TEST(sm90_instructions_wgmma_swizzles) {
  needs_sm90();
  for (const Swizzle swizzle : {Swizzle::k32, Swizzle::k64, Swizzle::k128}) {
    const int depth = 16 * between(1, span(swizzle) / 32);
    test_wgmma<BFloat16, 64, false, 0, 0>(lines_of_k(swizzle, 0, 8, 0), lines_of_k(swizzle, 0, 8, 0), depth / 16);
    test_wgmma<Float16, 64, false, 1, 1>(lines_of_rows(swizzle, depth), lines_of_rows(swizzle, depth), depth / 16);
  }
  const int depth = 16 * between(1, 4);
  test_wgmma<Float16, 64, false, 0, 0>(plain(false, 64, depth), plain(false, 64, depth), depth / 16);
  test_wgmma<BFloat16, 64, false, 1, 1>(plain(true, 64, depth), plain(true, 64, depth), depth / 16);
}

}  // namespace
}  // namespace cmslap::cuda::testing
