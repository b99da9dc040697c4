// Where the tests of CUDA code run: in the model of a thread block, or, compiled by nvcc, on the machine's own GPU.
#pragma once

#include <new>

#include "cuda/launch.h"

#ifdef __CUDACC__

namespace cmslap::cuda::testing {

constexpr int kTimings = 1;
inline void set_timing(int, unsigned) {}
inline void wait_for_device() { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }
inline bool runs_sm90() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// Memory of the device, with a guard on either side that a test looks at afterwards.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : bytes_(bytes + 2 * kGuardBytes) {
    check(cudaMalloc(&memory_, bytes_), "cudaMalloc");
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(memory_); }

  uint8_t* begin() const { return static_cast<uint8_t*>(memory_); }
  size_t bytes() const { return bytes_; }
  size_t inner_bytes() const { return bytes_ - kGuardBytes; }  // to the guard at the end
  void write(const uint8_t* from) { check(cudaMemcpy(memory_, from, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy"); }
  void read(uint8_t* to) const { check(cudaMemcpy(to, memory_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy"); }
  void read_only() {}

 private:
  static constexpr size_t kGuardBytes = 4096;
  size_t bytes_;
  void* memory_;
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
inline void wait_for_device() {}
inline bool runs_sm90() { return true; }

// Memory between pages that nobody may touch.
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE);
    bytes_ = (bytes + page - 1) / page * page;
    void* const all = mmap(nullptr, bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<uint8_t*>(all) + page;
    mprotect(begin_, bytes_, PROT_READ | PROT_WRITE);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() {
    const size_t page = sysconf(_SC_PAGESIZE);
    munmap(begin_ - page, bytes_ + 2 * page);
  }

  uint8_t* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }
  size_t inner_bytes() const { return bytes_; }
  void write(const uint8_t* from) { std::memcpy(begin_, from, bytes_); }
  void read(uint8_t* to) const { std::memcpy(to, begin_, bytes_); }
  void read_only() { mprotect(begin_, bytes_, PROT_READ); }

 private:
  size_t bytes_;
  uint8_t* begin_;
};

}  // namespace cmslap::cuda::testing

#endif
