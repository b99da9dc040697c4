#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace cmslap::cpu {

namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;

// Memory that buffers left, for the next ones of their size: calls repeat, and the first touch of fresh pages can take
// longer than a small convolution (measured in a virtual machine: 2 µs each, 250 of them a call).
class IdleMemory {
 public:
  void* take(int64_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);  // who finds it taken, or forked so, does without
    if (!lock) return nullptr;
    const auto found =
        std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& block) { return block.bytes == bytes; });
    if (found == blocks_.end()) return nullptr;
    void* data = found->data;
    blocks_.erase(found);
    bytes_ -= bytes;
    return data;
  }

  // Whether it keeps the memory. The longest idle goes where there is too much.
  bool keep(void* data, int64_t bytes) {
    if (bytes > kLargest) return false;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    for (; !blocks_.empty() && bytes_ + bytes > kMost * thread_count(); blocks_.erase(blocks_.begin())) {
      bytes_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
    }
    blocks_.push_back({data, bytes});
    bytes_ += bytes;
    return true;
  }

 private:
  static constexpr int64_t kLargest = 4 << 20, kMost = 4 << 20;  // of a buffer, of all for each thread
  struct Block {
    void* data;
    int64_t bytes;
  };
  std::mutex mutex_;
  std::vector<Block> blocks_;
  int64_t bytes_ = 0;
};

IdleMemory& idle_memory() {
  static IdleMemory& memory = *new IdleMemory;  // outlives every buffer
  return memory;
}

// Huge pages save most of the address translations, as a tile's rows lie in different pages.
int64_t alignment_of(int64_t floats) {
  return floats * static_cast<int64_t>(sizeof(float)) >= 2 * kHugePage ? kHugePage : kCacheLine;
}

int64_t bytes_of(int64_t floats) {
  const int64_t alignment = alignment_of(floats);
  return (floats * sizeof(float) + alignment - 1) / alignment * alignment;
}

}  // namespace

Buffer::Buffer(int64_t floats) : data_(nullptr), size_(floats) {
  if (floats == 0) return;
  const int64_t bytes = bytes_of(floats);
  data_ = static_cast<float*>(idle_memory().take(bytes));
  if (data_) return;
  data_ = static_cast<float*>(std::aligned_alloc(alignment_of(floats), bytes));
  if (!data_) throw std::bad_alloc();
#ifdef __linux__
  if (alignment_of(floats) == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
  if (data_ && !idle_memory().keep(data_, bytes_of(size_))) std::free(data_);
}

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
