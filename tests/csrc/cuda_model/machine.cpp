// glibc's checked longjmp takes a switch between stacks for a mistake.
#undef _FORTIFY_SOURCE

#include "machine.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cinttypes>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "instructions.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cmslap::cuda::model {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

size_t page_bytes() { return sysconf(_SC_PAGESIZE); }

uint8_t* map_pages(size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return static_cast<uint8_t*>(pages);
}

// ---- Fibers ----

struct Stack {  // of the process or of a fiber, between two switches
  jmp_buf registers;
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* shadow = nullptr;  // AddressSanitizer's
};

void switch_stack(Stack& from, Stack& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.shadow, to.bottom, to.bytes);
#endif
  if (_setjmp(from.registers) == 0) _longjmp(to.registers, 1);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.shadow, &to.bottom, &to.bytes);
#endif
}

struct Cancelled {};  // thrown in the threads of a block that failed

struct Fiber : Thread {
  Stack stack;
  bool done;
  const uint64_t* watched;  // waits while *watched is `seen`
  uint64_t seen;
  const char* waits_for;
  uint64_t details[2];

  bool can_run() const { return !done && (watched == nullptr || *watched != seen); }
};

// ---- A block ----

struct Warp {
  uint64_t generation = 0;
  int arrived = 0;
  const char* instruction = nullptr;
  void* arguments[kLanes];
};
struct Barrier {
  uint64_t generation = 0;
  int arrived = 0, expected = 0;
};
constexpr int kBarriers = 16;

struct Machine {
  Stack scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;  // made once, used by all blocks
  int threads = 0;                             // of the block that runs
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::string failure;
  bool cancelled = false;
  std::minstd_rand random;
  std::vector<Warp> warps;
  Barrier barriers[kBarriers];
  std::deque<std::function<void()>> asynchronous;
  uint8_t* shared = nullptr;
  uint32_t shared_bytes = 0;
};
Machine machine;
std::mutex one_grid_at_a_time;

void back_to_scheduler() { switch_stack(machine.running->stack, machine.scheduler); }

void run_thread() {
  try {
    (*machine.body)();
    check_finished(*machine.running);
  } catch (const Failure& failure) {
    if (machine.failure.empty()) machine.failure = failure.what();
  } catch (const Cancelled&) {
  }
  machine.running->done = true;
}

// What a new fiber executes: one thread after the other, for ever.
void run_threads() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler.bottom, &machine.scheduler.bytes);
#endif
  for (;;) {
    back_to_scheduler();
    run_thread();
  }
}

std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  uint8_t* pages = map_pages(page_bytes() + kStackBytes);
  mprotect(pages, page_bytes(), PROT_NONE);  // stacks grow downwards: an overflow ends the program
  fiber->stack.bottom = pages + page_bytes();
  fiber->stack.bytes = kStackBytes;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = pages + page_bytes();
  context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, run_threads, 0);
  machine.running = fiber.get();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&machine.scheduler.shadow, fiber->stack.bottom, kStackBytes);
#endif
  if (_setjmp(machine.scheduler.registers) == 0) setcontext(&context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(machine.scheduler.shadow, nullptr, nullptr);
#endif
  return fiber;
}

void resume(Fiber& fiber) {
  machine.running = &fiber;
  const unsigned index = fiber.index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
  fiber.watched = nullptr;
  switch_stack(machine.scheduler, fiber.stack);
}

// Runs the lanes of a warp as far as they come; one warp far ahead of the others shows missing barriers.
bool run_warp(int warp) {
  const int first = warp * kLanes, lanes = std::min(kLanes, machine.threads - first);
  bool ran = false;
  for (bool again = true; again; ran |= again) {
    again = false;
    for (int i = 0; i < lanes && machine.failure.empty(); ++i) {
      Fiber& fiber = *machine.fibers[first + (options.descending ? lanes - 1 - i : i)];
      if (!fiber.can_run()) continue;
      resume(fiber);
      again = true;
    }
  }
  return ran;
}

bool run_asynchronous_work() {
  if (machine.asynchronous.empty()) return false;
  const auto which =
      machine.asynchronous.begin() + static_cast<int64_t>(machine.random() % machine.asynchronous.size());
  const auto work = std::move(*which);
  machine.asynchronous.erase(which);
  try {
    work();
  } catch (const Failure& failure) {
    machine.failure = failure.what();
  }
  return true;
}

// "threads 0-31 wait for ...", a line for all neighbours that wait for the same.
std::string describe_deadlock() {
  std::string text = "deadlock:";
  std::string previous;
  int first = 0;
  const auto flush = [&](int end) {
    if (previous.empty()) return;
    text += "\n  thread" + (end - first == 1 ? " " + std::to_string(first)
                                             : "s " + std::to_string(first) + "-" + std::to_string(end - 1));
    text += previous;
  };
  for (int t = 0; t <= machine.threads; ++t) {
    std::string state;
    if (t < machine.threads && !machine.fibers[t]->done) {
      const Fiber& fiber = *machine.fibers[t];
      char what[256];
      std::snprintf(what, sizeof what, fiber.waits_for, static_cast<unsigned long long>(fiber.details[0]),
                    static_cast<unsigned long long>(fiber.details[1]));
      state = std::string(": ") + what;
    }
    if (t == machine.threads || state != previous) {
      flush(t);
      previous = state;
      first = t;
    }
  }
  return text + describe_mbarriers();
}

void start_block(size_t shared_bytes) {
  for (int t = 0; t < machine.threads; ++t) {
    Fiber& fiber = *machine.fibers[t];
    static_cast<Thread&>(fiber) = Thread{};
    fiber.index = t;
    fiber.done = false;
    fiber.watched = nullptr;
  }
  machine.warps.assign((machine.threads + kLanes - 1) / kLanes, {});
  std::fill(std::begin(machine.barriers), std::end(machine.barriers), Barrier{});
  machine.asynchronous.clear();
  machine.failure.clear();
  machine.cancelled = false;
  std::memset(machine.shared, 0xff, shared_bytes);
  start_instructions();
}

bool all_done() {
  const auto done = [](const auto& fiber) { return fiber->done; };
  return std::all_of(machine.fibers.begin(), machine.fibers.begin() + machine.threads, done);
}

void run_block(size_t shared_bytes) {
  start_block(shared_bytes);
  std::vector<int> warps(machine.warps.size());
  std::iota(warps.begin(), warps.end(), 0);
  bool progress = true;
  while (progress && machine.failure.empty()) {
    progress = false;
    std::shuffle(warps.begin(), warps.end(), machine.random);
    for (const int warp : warps) progress |= run_warp(warp);
    if (!progress && !all_done()) progress = run_asynchronous_work();
  }
  if (all_done() && machine.failure.empty() && machine.asynchronous.empty()) return;

  if (all_done() && machine.failure.empty()) machine.failure = "ends while the copy engine writes its shared memory";
  if (machine.failure.empty()) machine.failure = describe_deadlock();
  machine.cancelled = true;
  for (int t = 0; t < machine.threads; ++t)
    if (!machine.fibers[t]->done) resume(*machine.fibers[t]);
  const unsigned b[] = {blockIdx.x, blockIdx.y, blockIdx.z};
  throw Failure("block " + std::to_string(b[0]) + "," + std::to_string(b[1]) + "," + std::to_string(b[2]) + ": " +
                machine.failure);
}

// Memory of which what a block has not asked for cannot be touched: to the byte under AddressSanitizer, else to the
// page.
void resize_shared_memory(size_t bytes) {
  const auto pages = [](size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); };
  const size_t all = pages(kMaxSharedBytes) + page_bytes();
  if (machine.shared == nullptr) machine.shared = map_pages(all);
  mprotect(machine.shared, all, PROT_READ | PROT_WRITE);
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(machine.shared, all);
  ASAN_POISON_MEMORY_REGION(machine.shared + bytes, all - bytes);
#endif
  mprotect(machine.shared + pages(bytes), all - pages(bytes), PROT_NONE);
  machine.shared_bytes = static_cast<uint32_t>(bytes);
}

}  // namespace

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) throw Failure("a block of " + std::to_string(threads) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Failure("a grid of " + std::to_string(grid.x) + "," + std::to_string(grid.y) + "," + std::to_string(grid.z));
  if (shared_bytes > kMaxSharedBytes) throw Failure(std::to_string(shared_bytes) + " bytes of shared memory");

  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  while (machine.fibers.size() < threads) machine.fibers.push_back(make_fiber());
  machine.threads = static_cast<int>(threads);
  machine.body = &body;
  machine.random.seed(options.seed);
  gridDim = grid;
  blockDim = block;
  resize_shared_memory(shared_bytes);
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  for (int64_t i = 0; i < blocks; ++i) {
    const uint64_t block_index = options.descending ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(block_index % grid.x), static_cast<unsigned>(block_index / grid.x % grid.y),
                static_cast<unsigned>(block_index / grid.x / grid.y)};
    run_block(shared_bytes);
  }
}

Thread& this_thread() { return *machine.running; }
int threads_of_block() { return machine.threads; }

void fail(const std::string& what) { throw Failure("thread " + std::to_string(machine.running->index) + ": " + what); }

void wait_for_change(const uint64_t& counter, const char* what, uint64_t first, uint64_t second) {
  Fiber& fiber = *machine.running;
  fiber.watched = &counter;
  fiber.seen = counter;
  fiber.waits_for = what;
  fiber.details[0] = first;
  fiber.details[1] = second;
  back_to_scheduler();
  if (machine.cancelled) throw Cancelled{};
}

void do_asynchronously(std::function<void()> work) {
  if (options.late) {
    machine.asynchronous.push_back(std::move(work));
  } else {
    work();
  }
}

void warp_together(const char* instruction, void* arguments, void (*compute)(void* const* of_lanes)) {
  Warp& warp = machine.warps[machine.running->index / kLanes];
  if (warp.arrived == 0) warp.instruction = instruction;
  if (std::strcmp(warp.instruction, instruction) != 0)
    fail(std::string(instruction) + " while other lanes of the warp are at " + warp.instruction);
  warp.arguments[machine.running->lane()] = arguments;
  if (++warp.arrived < kLanes) {
    wait_for_change(warp.generation, "the other lanes of the warp");
  } else {
    warp.arrived = 0;
    ++warp.generation;
    compute(warp.arguments);
  }
}

void barrier_sync(int id, int threads) {
  if (id < 0 || id >= kBarriers) fail("barrier " + std::to_string(id));
  if (threads <= 0 || (threads % kLanes != 0 && threads != machine.threads))
    fail("barrier " + std::to_string(id) + " for " + std::to_string(threads) + " threads");
  Barrier& barrier = machine.barriers[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads)
    fail("barrier " + std::to_string(id) + " for " + std::to_string(threads) + " threads, for others " +
         std::to_string(barrier.expected));
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    wait_for_change(barrier.generation, "barrier %llu of %llu threads", id, threads);
  }
}

uint8_t* shared_memory() { return machine.shared; }

uint32_t address_of(const void* pointer) {
  const auto offset = static_cast<const uint8_t*>(pointer) - machine.shared;
  if (offset < 0 || offset > machine.shared_bytes) fail("the address of something that is not shared memory");
  return kSharedBase + static_cast<uint32_t>(offset);
}

uint8_t* at_address(uint32_t address, uint32_t bytes, uint32_t alignment) {
  if (address < kSharedBase || uint64_t{address} + bytes > uint64_t{kSharedBase} + machine.shared_bytes)
    fail("shared address " + std::to_string(address) + ", " + std::to_string(bytes) + " bytes, where the block has " +
         std::to_string(kSharedBase) + " to " + std::to_string(kSharedBase + machine.shared_bytes));
  if (address % alignment != 0)
    fail("shared address " + std::to_string(address) + " is no multiple of " + std::to_string(alignment));
  return machine.shared + (address - kSharedBase);
}

}  // namespace cmslap::cuda::model

// ---- The runtime ----

const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "no error" : "invalid value"; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using namespace cmslap::cuda::model;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = options.multiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = options.compute_capability / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = options.compute_capability % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = kMaxSharedBytes; return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
