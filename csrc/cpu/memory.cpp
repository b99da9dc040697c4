#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
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

// Huge pages save most of the address translations, as a tile's rows lie in different pages.
int64_t alignment_of(int64_t bytes) { return bytes >= 2 * kHugePage ? kHugePage : kCacheLine; }

int64_t rounded(int64_t bytes) {
  const int64_t alignment = alignment_of(bytes);
  return (bytes + alignment - 1) / alignment * alignment;
}

void* fresh(int64_t bytes) {
  void* data = std::aligned_alloc(alignment_of(bytes), bytes);
#ifdef __linux__
  if (data && alignment_of(bytes) == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// Released memory, for the next who want its size: calls repeat, and the system gives fresh pages, cleared, at a tenth
// of the rate at which a convolution fills them. With what is in use it is never more than a quarter, or a few small
// results, above the most that was in use at once; what has been idle longest goes first.
class IdleMemory {
 public:
  // For something new; null where there is none of this size, or up to a third larger: then `bytes` is its own.
  void* take(int64_t& bytes) {
    const int64_t used = used_ += bytes;
    const std::unique_lock lock(mutex_, std::try_to_lock);  // who finds it taken, or forked so, does without
    if (!lock) return nullptr;
    most_used_ = std::max<int64_t>(most_used_, used);
    auto found = blocks_.rend();
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
      if (block->bytes >= bytes && block->bytes <= bytes + bytes / 3 &&
          (found == blocks_.rend() || block->bytes < found->bytes))
        found = block;
    if (found == blocks_.rend()) {
      drop(most() - used);
      return nullptr;
    }
    void* data = found->data;
    used_ += found->bytes - bytes;
    bytes = found->bytes;
    blocks_.erase(std::next(found).base());
    bytes_ -= bytes;
    return data;
  }

  // Whether it keeps the memory.
  bool keep(void* data, int64_t bytes) {
    const int64_t most_idle = std::min(kMost, most() - (used_ -= bytes));
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || bytes > most_idle) return false;
    drop(most_idle - bytes);
    blocks_.push_back({data, bytes});
    bytes_ += bytes;
    return true;
  }

  void forget(int64_t bytes) { used_ -= bytes; }  // taken, but not to be had

  void clear() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) drop(0);
  }

 private:
  static constexpr int64_t kMost = 512 << 20, kFew = 16 << 20;
  struct Block {
    void* data;
    int64_t bytes;
  };

  int64_t most() const { return most_used_ + std::max<int64_t>(most_used_ / 4, kFew); }
  void drop(int64_t most) {
    for (; bytes_ > most && !blocks_.empty(); blocks_.erase(blocks_.begin())) {
      bytes_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  int64_t bytes_ = 0;
  std::atomic<int64_t> used_{0}, most_used_{0};
};

IdleMemory& idle_memory() {
  static IdleMemory& memory = *new IdleMemory;  // outlives every tensor
  return memory;
}

}  // namespace

void* allocate(int64_t& bytes) {
  bytes = rounded(bytes);
  if (void* data = idle_memory().take(bytes)) return data;
  void* data = fresh(bytes);
  if (!data) {
    idle_memory().clear();
    data = fresh(bytes);
  }
  if (!data) {
    idle_memory().forget(bytes);
    throw std::bad_alloc();
  }
  return data;
}

void release(void* data, int64_t bytes) {
  if (!idle_memory().keep(data, bytes)) std::free(data);
}

Buffer::Buffer(int64_t floats) : size_(floats), bytes_(floats * sizeof(float)) {
  if (floats > 0) data_ = static_cast<float*>(allocate(bytes_));
}

Buffer::~Buffer() {
  if (data_) release(data_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept : Buffer() { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace cmslap::cpu
