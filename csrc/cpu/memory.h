// Memory that is used again. Compiled once, for any processor.
#pragma once

#include <cstdint>

namespace cmslap::cpu {

// Not initialised, on a cache line's boundary; std::bad_alloc where there is none left.
void* allocate(int64_t bytes);
void release(void* data, int64_t bytes);

// Floats on a cache line's boundary, not initialised.
class Buffer {
 public:
  explicit Buffer(int64_t floats = 0);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  float* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  float* data_;
  int64_t size_;
};

}  // namespace cmslap::cpu
