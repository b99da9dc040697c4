#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <vector>

namespace cmslap::cpu {

namespace {
constexpr int64_t kPage = 4096 / sizeof(float);
}

ThreadPool::ThreadPool() : size_(std::max<int64_t>(1, thread_count())) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t first, int64_t second, int64_t scratch_floats, Task task, const void* context) {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t workers = std::min(first + second, size());
  std::vector<Share> shares(2 * workers);
  const int64_t stride = (scratch_floats + kPage - 1) / kPage * kPage;
  if (scratch_.size() < workers * stride) scratch_ = Buffer(workers * stride);
  for (int64_t worker = 0; worker < workers; ++worker) {
    const auto share = [&](int64_t begin, int64_t blocks, Share& part) {
      part.next = begin + worker * blocks / workers;
      part.end = begin + (worker + 1) * blocks / workers;
    };
    share(0, first, shares[2 * worker]);
    share(first, second, shares[2 * worker + 1]);
  }
  const auto work = [&](int64_t worker) {
    for (int64_t i = 0; i < 2 * workers; ++i) {
      Share& share = shares[(2 * worker + i) % (2 * workers)];
      for (int64_t block = share.next++; block < share.end; block = share.next++)
        task(context, block, scratch_.data() + worker * stride);
    }
  };
  on_threads(
      workers, [](const void* body, int64_t worker) { (*static_cast<const decltype(work)*>(body))(worker); }, &work);
}

}  // namespace cmslap::cpu
