// Memory that is used again. Compiled once, for any processor.
#pragma once

#include <cstdint>

namespace cmslap::cpu {

// Not initialised, on a cache line's boundary; std::bad_alloc where there is none left. `bytes` becomes what there is,
// which may be more, and what release() wants to hear.
void* allocate(int64_t& bytes);
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
  float* data_ = nullptr;
  int64_t size_, bytes_ = 0;
};

}  // namespace cmslap::cpu
