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

constexpr int kLine = 128, kPattern = 1024;  // bytes

// Where byte `byte` of line `line` lies, from the start of a pattern.
int in_pattern(int line, int byte) { return line * kLine + ((byte / 16) ^ (line % 8)) * 16 + byte % 16; }

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

// Registers of 32 lanes to matrices [4, 8, 8], transposed.
__global__ void stmatrix_kernel(const uint32_t* registers, uint16_t* matrices) {
  SHARED_MEMORY(shared);
  const int lane = threadIdx.x;
  uint32_t s[4];
  for (int i = 0; i < 4; ++i) s[i] = registers[i * 32 + lane];
  stmatrix_x4_trans(shared_address(shared + lane * 16), s);
  __syncwarp();
  for (int i = lane; i < 256; i += 32) matrices[i] = reinterpret_cast<const uint16_t*>(shared)[i];
}

TEST(sm90_instructions_stmatrix) {
  needs_sm90();
  Inputs inputs(Type::kFloat16);
  const auto words = inputs.words(256);
  Values want(256);
  for (int i = 0; i < 256; ++i) {
    const int matrix = i / 64, lane = i / 2 % 32, row = lane / 4, column = lane % 4 * 2 + i % 2;
    want[matrix * 64 + column * 8 + row] = words[i];
  }
  Buffer<uint16_t> matrices(256);
  launch(stmatrix_kernel, dim3(1), dim3(32), 1024, nullptr, reinterpret_cast<const uint32_t*>(words.on_device),
         matrices.data());
  finish_run();
  expect_equal("matrices", values(matrices), want);
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
  std::array<uint64_t, kRank> extents, strides{}, box;  // elements
  std::array<int, kRank> corner;
  int64_t elements = 1;   // of the tensor
  int count = 1, offset;  // of the box; bytes from a multiple of 1024
  std::vector<int64_t> in_tensor;
  std::vector<int> in_shared;

  Placement() {
    offset = kPattern + kLine * between(0, 9);
    for (size_t i = 0; i < kRank; ++i) {
      box[i] = i > 0 ? between(1, 5) : kLine / 2;
      extents[i] = i > 0 ? between(1, 6) : 8 * between(1, 9);
      corner[i] = between(-3, static_cast<int>(extents[i]) - 1);
      strides[i] = elements;
      elements *= extents[i];
      count *= box[i];
    }
    for (int i = 0; i < count; ++i) {
      int64_t place = 0;
      int rest = i;
      for (size_t d = 0; d < kRank; ++d) {
        const int size = static_cast<int>(box[d]);
        const int64_t x = corner[d] + rest % size;
        rest /= size;
        const bool exists = x >= 0 && x < static_cast<int64_t>(extents[d]);
        place = exists && place >= 0 ? place + x * static_cast<int64_t>(strides[d]) : -1;
      }
      in_tensor.push_back(place);
      const int first = (offset - kPattern) / kLine;  // the pattern begins at a multiple of 1024
      in_shared.push_back((in_pattern(first + i * 2 / kLine, i * 2 % kLine) - first * kLine) / 2);
    }
  }
  Transfer transfer(const uint16_t* tensor, uint16_t* contents) const {
    Tensor<kRank> description{tensor, extents, {}, box};
    for (size_t i = 1; i < kRank; ++i) description.strides[i - 1] = 2 * strides[i];
    Transfer t{make_tensor_map(description), kRank, {}, 2 * count, offset, contents};
    std::copy(corner.begin(), corner.end(), t.corner);
    return t;
  }
  size_t shared_bytes() const { return offset + 2 * count + kPattern; }
};

Values words_of(const uint16_t* map, int64_t count) { return Values(host(map), host(map) + count); }

template <size_t kRank>
void test_load() {
  const Placement<kRank> p;
  describe(format("load of rank %zu, offset %d", kRank, p.offset));
  Inputs inputs(Type::kFloat16);
  const auto tensor = inputs.words(p.elements);
  Values want(p.count);
  for (int i = 0; i < p.count; ++i) want[p.in_shared[i]] = p.in_tensor[i] < 0 ? 0 : tensor[p.in_tensor[i]];
  uint16_t* contents;
  run_and_check(
      [&](Outputs& outputs) {
        contents = outputs.words(p.count);
        launch(load_kernel, dim3(1), dim3(64), p.shared_bytes(), nullptr, p.transfer(tensor, contents));
      },
      [&] { expect_equal("box", words_of(contents, p.count), want); });
}

template <size_t kRank>
void test_store() {
  const Placement<kRank> p;
  describe(format("store of rank %zu, offset %d", kRank, p.offset));
  Inputs inputs(Type::kFloat16);
  const auto box = inputs.words(p.count);
  Values want(p.elements, 0xffff);
  for (int i = 0; i < p.count; ++i)
    if (p.in_tensor[i] >= 0) want[p.in_tensor[i]] = box[p.in_shared[i]];
  uint16_t* tensor;
  run_and_check(
      [&](Outputs& outputs) {
        tensor = outputs.words(p.elements);
        launch(store_kernel, dim3(1), dim3(64), p.shared_bytes(), nullptr,
               p.transfer(tensor, const_cast<uint16_t*>(box.on_device)));
      },
      [&] { expect_equal("tensor", words_of(tensor, p.elements), want); });
}

TEST(sm90_instructions_tma_load) {
  needs_sm90();
  for (int i = 0; i < 5; ++i) test_load<3>(), test_load<4>();
}
TEST(sm90_instructions_tma_store) {
  needs_sm90();
  for (int i = 0; i < 5; ++i) test_store<4>(), test_store<5>();
}

// ---- wgmma ----

// An operand in shared memory: where element (row, k) is, from a multiple of 1024, and the descriptor's fields.
struct Layout {
  bool transposed;
  int start, leading, stride;  // bytes
  int step;                    // bytes from 16 of k to the next 16
  std::function<int(int row, int k)> place;

  uint64_t fields() const {
    constexpr uint64_t kSwizzle128 = 1;
    return uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | kSwizzle128 << 62;
  }
};

// Lines of consecutive k, a line a row: row r is line first + r; groups of eight rows may have other lines between
// them.
Layout lines_of_k(int first, int lines_a_group) {
  return {false, first * kLine,
          16,    lines_a_group * kLine,
          32,    [=](int row, int k) {
            return in_pattern(first + row / 8 * lines_a_group + row % 8, 2 * k); }};
}
// Lines of 64 consecutive rows, a line a k, from line `first` on; the next 64 rows are `lines` lines further on.
Layout lines_of_rows(int first, int lines) {
  return {true,          first * kLine,
          lines * kLine, kPattern,
          16 * kLine,    [=](int row, int k) { return in_pattern(first + row / 64 * lines + k, row % 64 * 2); }};
}

struct Multiplication {
  const uint16_t *a, *b;  // contents of shared memory
  int words_a, words_b, start_a, start_b, step_a, step_b, steps;
  uint64_t fields_a, fields_b;
  bool accumulate;
  float* d;  // [64, N]
};

template <class T, int kN, int kTransposeA, int kTransposeB>
__global__ void __launch_bounds__(128) wgmma_kernel(const __grid_constant__ Multiplication p) {
  SHARED_MEMORY(shared);
  uint16_t* const words = reinterpret_cast<uint16_t*>(shared);
  const int bytes_a = (p.words_a * 2 + 1023) / 1024 * 1024;
  for (int i = threadIdx.x; i < p.words_a; i += 128) words[i] = p.a[i];
  for (int i = threadIdx.x; i < p.words_b; i += 128) words[bytes_a / 2 + i] = p.b[i];
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
    const uint64_t a = p.fields_a | (start + p.start_a + step * p.step_a) >> 4;
    const uint64_t b = p.fields_b | (start + bytes_a + p.start_b + step * p.step_b) >> 4;
    wgmma<T, kN, kTransposeA, kTransposeB>(d, a, b, p.accumulate || step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  fence_registers(d);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) p.d[place(i)] = d[i];
}

Values random_integers(int count, int max) {
  Values numbers(count);
  for (double& number : numbers) number = between(-max, max);
  return numbers;
}

// Shared memory that holds element(row, k) where the layout says, and NaN elsewhere.
template <class Element>
std::unique_ptr<Buffer<uint16_t>> contents(Type type, const Layout& layout, int rows, int depth, Element element) {
  std::vector<uint16_t> words(1, 0x7fff);
  for (int row = 0; row < rows; ++row)
    for (int k = 0; k < depth; ++k) {
      const size_t place = layout.place(row, k) / 2;
      if (words.size() <= place) words.resize((place / 512 + 1) * 512, 0x7fff);
      words[place] = encode(type, element(row, k));
    }
  auto buffer = std::make_unique<Buffer<uint16_t>>(words.size());
  std::copy(words.begin(), words.end(), buffer->begin());
  return buffer;
}

template <class T, int kN, int kTransposeA, int kTransposeB>
void test_wgmma(const Layout& a, const Layout& b, int steps) {
  const Type type = std::is_same_v<T, BFloat16> ? Type::kBFloat16 : Type::kFloat16;
  const int depth = 16 * steps;
  const bool accumulate = coin();
  describe(format("wgmma N %d, depth %d, a%s from %d, b%s from %d", kN, depth, a.transposed ? " transposed" : "",
                  a.start, b.transposed ? " transposed" : "", b.start));
  const Values left = random_integers(64 * depth, 4), right = random_integers(depth * kN, 4);
  const Values before = random_integers(64 * kN, 9);
  const auto in_a = contents(type, a, 64, depth, [&](int row, int k) { return left[row * depth + k]; });
  const auto in_b = contents(type, b, kN, depth, [&](int row, int k) { return right[k * kN + row]; });

  Values want = accumulate ? before : Values(64 * kN, 0.0);
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < kN; ++n) want[m * kN + n] += left[m * depth + k] * right[k * kN + n];

  Multiplication p{};
  p.a = in_a->data(), p.b = in_b->data();
  p.words_a = static_cast<int>(in_a->size()), p.words_b = static_cast<int>(in_b->size());
  p.start_a = a.start, p.start_b = b.start, p.step_a = a.step, p.step_b = b.step, p.steps = steps;
  p.fields_a = a.fields(), p.fields_b = b.fields(), p.accumulate = accumulate;
  run_and_check(
      [&](Outputs& outputs) {
        p.d = outputs.floats_from(before);
        const size_t bytes = 2 * (in_a->size() + in_b->size()) + 2 * kPattern;
        launch(wgmma_kernel<T, kN, kTransposeA, kTransposeB>, dim3(1), dim3(128), bytes, nullptr, p);
      },
      [&] { expect_equal("d", values(p.d, 64 * kN), want); });
}

template <class T, int kN>
void test_wgmma_shapes() {
  test_wgmma<T, kN, 0, 0>(lines_of_k(0, 8), lines_of_k(0, 8), 4);
  const int steps = between(1, 4);
  test_wgmma<T, kN, 1, 1>(lines_of_rows(0, 16 * steps), lines_of_rows(0, 16 * steps), steps);
}

TEST(sm90_instructions_wgmma_shapes) {
  needs_sm90();
  test_wgmma_shapes<BFloat16, 64>();
  test_wgmma_shapes<Float16, 128>();
  test_wgmma_shapes<BFloat16, 192>();
  test_wgmma_shapes<Float16, 256>();
}

// Operands that begin in the middle of a pattern, at any line: what reading a box of pixels from another pixel on makes
// of them. Summed over channels, groups of eight lines are apart, as rows of a tile are in its box.
TEST(sm90_instructions_wgmma_windows) {
  needs_sm90();
  for (int i = 0; i < 4; ++i) {
    const Layout window = lines_of_k(between(0, 25), between(8, 12));
    test_wgmma<BFloat16, 64, 0, 0>(lines_of_k(0, 8), window, 4);
    test_wgmma<BFloat16, 256, 0, 0>(lines_of_k(0, 8), window, 4);
    test_wgmma<Float16, 64, 0, 0>(window, lines_of_k(0, 8), 4);
  }
}

// Summed over pixels, three taps above each other are rows of the box, 18 or 17 pixels apart: as weight gradients read
// them.
TEST(sm90_instructions_wgmma_taps) {
  needs_sm90();
  for (const int width : {18, 17}) {
    test_wgmma<BFloat16, 192, 1, 1>(lines_of_rows(0, 16), lines_of_rows(between(0, 25), width), 1);
    test_wgmma<Float16, 192, 1, 1>(lines_of_rows(0, 16), lines_of_rows(between(0, 25), width), 1);
  }
}

}  // namespace
}  // namespace cmslap::cuda::testing
