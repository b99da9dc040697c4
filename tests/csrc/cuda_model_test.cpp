// What the model of a thread block finds: kernels that are wrong, each in its own way.
#include "cuda/indexing_sm90.h"
#include "cuda/ptx.h"
#include "cuda/tensor_map.h"
#include "cuda_problems.h"

namespace cmslap::cuda::testing {
namespace {

constexpr int kSharedBytes = 8192;

// Runs the kernel in each timing; one of them at least must say `what`.
template <class Kernel, class... Arguments>
void expect_failure(const char* what, int threads, Kernel kernel, const Arguments&... arguments) {
  std::string said;
  for (int timing = 0; timing < kTimings; ++timing) {
    set_timing(timing, generator());
    try {
      launch(+kernel, dim3(1), dim3(threads), kSharedBytes, nullptr, arguments...);
    } catch (const model::Failure& failure) {
      said += std::string(failure.what()) + "\n";
    }
  }
  if (said.find(what) == std::string::npos)
    throw std::runtime_error(std::string("not found: ") + what + ", but " + said);
}

// Runs it in each timing; in one of them at least a number it leaves must be NaN.
template <class Kernel>
void expect_poison(int threads, Kernel kernel) {
  bool poisoned = false;
  for (int timing = 0; timing < kTimings; ++timing) {
    set_timing(timing, generator());
    Buffer<float> out(threads);
    launch(+kernel, dim3(1), dim3(threads), kSharedBytes, nullptr, out.data());
    finish_run();
    for (int i = 0; i < threads; ++i) poisoned |= std::isnan(out[i]);
  }
  if (!poisoned) throw std::runtime_error("no NaN");
}

// ---- Waiting ----

TEST(model_finds_a_barrier_that_some_do_not_reach) {
  expect_failure("threads 0-63: barrier 0 of 96 threads", 96, [] {
    if (threadIdx.x < 64) __syncthreads();
  });
}

TEST(model_finds_barriers_of_other_sizes) {
  expect_failure(" threads, for others ", 96, [] { named_barrier_sync(1, threadIdx.x < 32 ? 64 : 96); });
}

TEST(model_finds_lanes_at_different_instructions) {
  expect_failure("shfl while other lanes of the warp are at __syncwarp", 32, [] {
    if (threadIdx.x % 2 == 0) {
      __syncwarp();
    } else {
      __shfl_xor_sync(0xffffffffu, 1, 1);
    }
  });
}

TEST(model_finds_a_missing_syncthreads) {
  expect_poison(64, [](float* out) {
    SHARED_MEMORY(shared);
    reinterpret_cast<float*>(shared)[threadIdx.x] = 1;
    out[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x ^ 32];
  });
}

// ---- Addresses ----

TEST(model_finds_addresses_outside_shared_memory) {
  expect_failure("16 bytes, where the block has 1024 to 9216", 32, [] {
    SHARED_MEMORY(shared);
    uint32_t d[4];
    ldmatrix_x4(d, shared_address(shared) + threadIdx.x * 16 + kSharedBytes - 496);
  });
  expect_failure("is no multiple of 16", 32, [] {
    SHARED_MEMORY(shared);
    cp_async_16(shared_address(shared) + 8, nullptr, false);
  });
}

// ---- cp.async ----

TEST(model_finds_a_missing_wait_for_copies) {
  static const uint4 zeros[32] = {};
  expect_poison(32, [](float* out) {
    SHARED_MEMORY(shared);
    cp_async_16(shared_address(shared) + threadIdx.x * 16, zeros + threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<1>();
    out[threadIdx.x] = reinterpret_cast<float*>(shared)[4 * threadIdx.x];
  });
}

// ---- mbarriers ----

__global__ void start_mbarrier(uint32_t address, int arrivals) {
  if (threadIdx.x == 0) {
    mbarrier_init(address, arrivals);
    fence_barrier_init();
  }
  __syncthreads();
}

TEST(model_finds_mbarriers_that_nobody_completes) {
  expect_failure("mbarrier 1024: phase 0 lacks 0 of 1 arrivals and 128 bytes", 32, [] {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared);
    start_mbarrier(barrier, 1);
    if (threadIdx.x == 0) mbarrier_arrive_expect_tx(barrier, 128);
    mbarrier_wait(barrier, 0);
  });
}

TEST(model_finds_wrong_uses_of_mbarriers) {
  expect_failure("no mbarrier at 1024", 32, [] {
    SHARED_MEMORY(shared);
    mbarrier_arrive(shared_address(shared));
  });
  expect_failure("was overwritten", 32, [] {
    SHARED_MEMORY(shared);
    start_mbarrier(shared_address(shared), 32);
    if (threadIdx.x == 0) shared[3] = 0;
    __syncthreads();
    mbarrier_arrive(shared_address(shared));
  });
  expect_failure("went on by two phases unseen", 32, [] {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared);
    start_mbarrier(barrier, 1);
    if (threadIdx.x == 0) {
      mbarrier_arrive(barrier);
      mbarrier_arrive(barrier);
    } else {
      mbarrier_wait(barrier, 0);
    }
  });
}

// ---- Copy engine ----

TensorMap some_map() {
  alignas(16) static uint16_t tensor[8 * 64];
  return make_tensor_map(Tensor<4>{tensor, {64, 8, 1, 1}, {128, 1024, 1024}, {64, 8, 1, 1}});
}

template <class Kernel>
void expect_copy_failure(const char* what, Kernel kernel) {
  expect_failure(what, 32, kernel, some_map());
}

TEST(model_finds_wrong_loads) {
  expect_copy_failure("without fence_barrier_init", [](TensorMap map) {
    SHARED_MEMORY(shared);
    if (threadIdx.x > 0) return;
    mbarrier_init(shared_address(shared), 1);
    tma_load_4d(shared_address(shared) + 1024, map, shared_address(shared), 0, 0, 0, 0);
  });
  expect_copy_failure("is no multiple of 128", [](TensorMap map) {
    SHARED_MEMORY(shared);
    start_mbarrier(shared_address(shared), 1);
    if (threadIdx.x == 0) tma_load_4d(shared_address(shared) + 16, map, shared_address(shared), 0, 0, 0, 0);
  });
  expect_copy_failure("ends while the copy engine writes its shared memory", [](TensorMap map) {
    SHARED_MEMORY(shared);
    start_mbarrier(shared_address(shared), 1);
    if (threadIdx.x == 0) tma_load_4d(shared_address(shared) + 1024, map, shared_address(shared), 0, 0, 0, 0);
  });
  // Fewer bytes expected than come: the phase never completes.
  expect_copy_failure("lacks 0 of 1 arrivals and -512 bytes", [](TensorMap map) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared);
    start_mbarrier(barrier, 1);
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect_tx(barrier, 512);
      tma_load_4d(barrier + 1024, map, barrier, 0, 0, 0, 0);
    }
    mbarrier_wait(barrier, 0);
  });
}

TEST(model_finds_a_store_without_wait) {
  expect_copy_failure("ends without waiting for its tma_store", [](TensorMap map) {
    SHARED_MEMORY(shared);
    if (threadIdx.x > 0) return;
    tma_store_4d(map, shared_address(shared) + 1024, 0, 0, 0, 0);
    tma_store_commit();
  });
}

TEST(model_finds_a_store_of_what_stmatrix_wrote_without_a_fence) {
  expect_copy_failure("without fence_proxy_async", [](TensorMap map) {
    SHARED_MEMORY(shared);
    const uint32_t words[4] = {};
    stmatrix_x4_trans(shared_address(shared) + 1024 + 16 * threadIdx.x, words);
    if (threadIdx.x > 0) return;
    tma_store_4d(map, shared_address(shared) + 1024, 0, 0, 0, 0);
    tma_store_commit();
    tma_store_wait<0>();
  });
}

TEST(model_finds_wrong_tensor_maps) {
  alignas(16) static uint16_t tensor[1024];
  const auto expect = [](const char* what, const Tensor<3>& description) {
    try {
      make_tensor_map(description);
    } catch (const std::invalid_argument& error) {
      if (std::string(error.what()).find(what) != std::string::npos) return;
    }
    throw std::runtime_error(std::string("not found: ") + what);
  };
  expect("multiple of 16 bytes", {tensor + 1, {64, 2, 2}, {128, 256}, {64, 1, 1}});
  expect("strides are multiples of 16", {tensor, {64, 2, 2}, {136, 272}, {64, 1, 1}});
  expect("1 to 256 elements", {tensor, {64, 2, 2}, {128, 256}, {64, 257, 1}});
  expect("as long as the swizzle's", {tensor, {64, 2, 2}, {128, 256}, {8, 1, 1}});
}

// Maps are made once for a description, whatever else is asked for in between.
TEST(tensor_maps_follow_their_descriptions) {
  alignas(16) static uint16_t tensor[4096];
  for (int i = 0; i < 20000; ++i) {
    const uint64_t rows = between(1, 400), images = between(1, 20);
    const TensorMap map = make_tensor_map(Tensor<3>{tensor, {64, rows, images}, {128, 128 * rows}, {64, 8, 1}});
    if (map.data != reinterpret_cast<uint8_t*>(tensor) || map.extents[1] != rows || map.extents[2] != images ||
        map.strides[2] != 128 * rows)
      throw std::runtime_error("the map of another description");
  }
}

// ---- wgmma ----

// Zeros of shared memory multiplied; `kFence`, `kWait` and `kTouch` say what the kernel remembers and what it spoils.
template <bool kFence, bool kWait, bool kTouch>
__global__ void multiply_kernel(float* out) {
  SHARED_MEMORY(shared);
  for (int i = threadIdx.x; i < 2048; i += 128) reinterpret_cast<float*>(shared)[i] = 0;
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  const uint64_t operand = sm90::descriptor(shared_address(shared), sm90::kLeadingUnread, sm90::kPatternBytes);
  if (kFence) wgmma_fence();
  wgmma<Float16, 64>(d, operand, operand);
  wgmma_commit();
  if (kTouch) d[0] = 1;
  if (kWait) wgmma_wait<0>();
  out[threadIdx.x] = d[0];
  wgmma_wait<0>();
}

TEST(model_finds_wrong_uses_of_wgmma) {
  Buffer<float> out(128);
  expect_failure("wgmma without wgmma_fence", 128, multiply_kernel<false, true, false>, out.data());
  expect_failure("wrote an accumulator that wgmma was adding to", 128, multiply_kernel<true, true, true>, out.data());
  expect_poison(128, multiply_kernel<true, false, false>);
  for (int timing = 0; timing < kTimings; ++timing) {
    set_timing(timing, generator());
    launch(multiply_kernel<true, true, false>, dim3(1), dim3(128), kSharedBytes, nullptr, out.data());
    finish_run();
    for (int i = 0; i < 128; ++i)
      if (out[i] != 0) throw std::runtime_error("the right kernel is taken for a wrong one");
  }
}

TEST(model_finds_warps_that_miss_a_product) {
  expect_failure("threads 0-95: wgmma, with the other warps of the warpgroup", 128, [] {
    SHARED_MEMORY(shared);
    float d[32] = {};
    if (threadIdx.x >= 96) return;
    const uint64_t operand = sm90::descriptor(shared_address(shared), sm90::kLeadingUnread, sm90::kPatternBytes);
    wgmma_fence();
    wgmma<Float16, 64>(d, operand, operand);
    wgmma_commit();
    wgmma_wait<0>();
  });
}

// ---- Launches ----

TEST(model_finds_impossible_launches) {
  const auto expect = [](dim3 grid, dim3 block, size_t bytes) {
    try {
      launch(+[] {}, grid, block, bytes, nullptr);
    } catch (const model::Failure&) {
      return;
    }
    throw std::runtime_error("an impossible launch ran");
  };
  expect(dim3(0), dim3(32), 0);
  expect(dim3(1), dim3(1056), 0);
  expect(dim3(1, 65536), dim3(32), 0);
  expect(dim3(1), dim3(32), 227 * 1024 + 1);
}

}  // namespace
}  // namespace cmslap::cuda::testing
