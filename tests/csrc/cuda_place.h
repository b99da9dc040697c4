// Where the tests of CUDA code run: in the model of a thread block, or, compiled by nvcc, on the machine's own GPU.
#pragma once

#include <new>

#include "cuda/launch.h"

#ifdef __CUDACC__

namespace cmslap::cuda::testing {

constexpr int kTimings = 1;
inline void set_timing(int, unsigned) {}
inline void set_multiprocessors(int) {}
inline void finish_run() { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
inline bool runs_sm90() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// Memory with a guard on either side, whose contents a test looks at afterwards.
class Pages {
 public:
  static constexpr size_t kGuardBytes = 4096;
  explicit Pages(size_t bytes) : bytes_(bytes) {
    check(cudaMallocManaged(&pages_, bytes + 2 * kGuardBytes), "cudaMallocManaged");
  }
  Pages(const Pages&) = delete;
  ~Pages() { cudaFree(pages_); }

  uint8_t* begin() { return static_cast<uint8_t*>(pages_); }
  uint8_t* end() { return begin() + bytes_ + 2 * kGuardBytes; }
  uint8_t* inner_end() { return end() - kGuardBytes; }
  void read_only() {}

 private:
  size_t bytes_;
  void* pages_;
};

}  // namespace cmslap::cuda::testing

#else

#include <sys/mman.h>
#include <unistd.h>

#include "cuda_model/machine.h"

namespace cmslap::cuda::testing {

constexpr int kTimings = 4;
inline void set_timing(int which, unsigned seed) {
  model::options.late = which & 1;
  model::options.descending = which & 2;
  model::options.seed = seed;
}
inline void set_multiprocessors(int count) { model::options.multiprocessors = count; }
inline void finish_run() {}
inline bool runs_sm90() { return true; }

// Memory between pages that nobody may touch.
class Pages {
 public:
  explicit Pages(size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE);
    bytes_ = (bytes + page - 1) / page * page;
    void* const all = mmap(nullptr, bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<uint8_t*>(all) + page;
    mprotect(begin_, bytes_, PROT_READ | PROT_WRITE);
  }
  Pages(const Pages&) = delete;
  ~Pages() {
    const size_t page = sysconf(_SC_PAGESIZE);
    munmap(begin_ - page, bytes_ + 2 * page);
  }

  uint8_t* begin() { return begin_; }
  uint8_t* end() { return begin_ + bytes_; }
  uint8_t* inner_end() { return end(); }
  void read_only() { mprotect(begin_, bytes_, PROT_READ); }

 private:
  size_t bytes_;
  uint8_t* begin_;
};

}  // namespace cmslap::cuda::testing

#endif
