#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace cmslap::cpu {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;

Buffer::Buffer(int64_t floats) : data_(nullptr), size_(floats) {
  if (floats == 0) return;
  // A tile's rows lie in different pages. Huge ones save most of the address translations, and the first touch is
  // cheaper.
  const int64_t alignment = floats * sizeof(float) >= 2 * kHugePage ? kHugePage : kCacheLine;
  const int64_t bytes = (floats * sizeof(float) + alignment - 1) / alignment * alignment;
  data_ = static_cast<float*>(std::aligned_alloc(alignment, bytes));
  if (!data_) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

ThreadPool::ThreadPool() : scratch_(std::max<int64_t>(1, thread_count())) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t blocks, int64_t scratch_floats, Task task, const void* context) {
  const int64_t workers = std::min(blocks, size());
  for (int64_t worker = 0; worker < workers; ++worker)
    if (scratch_[worker].size() < scratch_floats) scratch_[worker] = Buffer(scratch_floats);
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t worker) {
    for (int64_t block = next++; block < blocks; block = next++) task(context, block, scratch_[worker].data());
  };
  on_threads(
      workers, [](const void* body, int64_t worker) { (*static_cast<const decltype(work)*>(body))(worker); }, &work);
}

}  // namespace cmslap::cpu
