#include "thread_pool.h"

#include <algorithm>
#include <atomic>

namespace cmslap::cpu {

ThreadPool::ThreadPool() : scratch_(std::max<int64_t>(1, thread_count())) {}

// Last in, first out is how memory is used again: so that each worker finds its own.
ThreadPool::~ThreadPool() {
  while (!scratch_.empty()) scratch_.pop_back();
}

void ThreadPool::run(int64_t first, int64_t second, int64_t scratch_floats, Task task, const void* context) {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t workers = std::min(first + second, size());
  std::vector<Share> shares(2 * workers);
  for (int64_t worker = 0; worker < workers; ++worker) {
    if (scratch_[worker].size() < scratch_floats) scratch_[worker] = Buffer(scratch_floats);
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
        task(context, block, scratch_[worker].data());
    }
  };
  on_threads(
      workers, [](const void* body, int64_t worker) { (*static_cast<const decltype(work)*>(body))(worker); }, &work);
}

}  // namespace cmslap::cpu
