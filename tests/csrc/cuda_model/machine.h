// A multiprocessor that runs one thread block at a time on the CPU: threads, warps, shared memory, barriers.
//
// Threads are fibers. One runs until it has to wait for others; which one goes on next is part of the Options. What a
// kernel does wrong ends in a Failure, thrown by launch(): misaligned addresses, addresses outside shared memory, lanes
// of a warp at different instructions, deadlock.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace cmslap::cuda::model {

struct Options {
  // Asynchronous work is done at once, or when nothing else can go on. Early finds what reads memory before its data is
  // there; late finds missing waits, which then see poison, and memory reused too soon.
  bool late = false;
  bool descending = false;  // blocks and the lanes of a warp run from the last to the first
  unsigned seed = 1;        // of the random order in which warps and what is asynchronous take turns
  int multiprocessors = 3;
  int compute_capability = 90;
};
inline Options options;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int kLanes = 32;
constexpr int kWarpgroup = 128;
constexpr uint32_t kMaxSharedBytes = 227 * 1024;
constexpr uint32_t kSharedBase = 1024;  // the device keeps the first kilobyte for itself

// Runs `body` as every thread of every block, block after block.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// ---- For the instructions: all that follows is called by a running thread ----

struct Copy {  // cp.async
  uint8_t* destination;
  const void* source;
  bool valid;
};
struct InFlight {  // an accumulator that wgmma is adding to
  float* registers;
  int products;
  std::vector<float> values;
};
struct Thread {
  int index;
  std::vector<Copy> copies;  // not committed
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<std::function<void()>> stores;  // of the copy engine, not committed
  std::deque<std::vector<std::function<void()>>> store_groups;
  uint64_t products_issued;             // wgmma
  std::deque<uint64_t> product_groups;  // products_issued at each commit
  std::vector<InFlight> in_flight;
  bool fenced;  // by wgmma.fence

  int lane() const { return index % kLanes; }
};
Thread& this_thread();

[[noreturn]] void fail(const std::string& what);
inline void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

// Lets others run until *counter is no longer what it is now. `what` is a printf format of two unsigned long long.
void wait_for_change(const uint64_t& counter, const char* what, uint64_t first = 0, uint64_t second = 0);

// Work of the copy engine and of wgmma: at once, or when no thread can go on without it.
void do_asynchronously(std::function<void()> work);

// All 32 lanes bring their arguments to the same instruction; the last to come computes for all.
void warp_together(const char* instruction, void* arguments, void (*compute)(void* const* of_lanes));

// Threads of this block's barrier `id` (0 is __syncthreads) come together.
void barrier_sync(int id, int threads);

uint8_t* shared_memory();  // of the block, poisoned with NaN of every type when it starts
uint32_t address_of(const void* pointer);
uint8_t* at_address(uint32_t address, uint32_t bytes, uint32_t alignment);  // fails unless all of it is shared memory
int threads_of_block();

}  // namespace cmslap::cuda::model
