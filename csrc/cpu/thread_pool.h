// Threads. Compiled once, for any processor.
#pragma once

#include <cstdint>

#include "memory.h"

namespace cmslap::cpu {

// The workers of one operation; their scratch memory lasts from one convolution to the next.
class ThreadPool {
 public:
  using Task = void (*)(const void* context, int64_t block, float* scratch);

  ThreadPool();
  ~ThreadPool();  // not inline: the kernels' instruction sets must not reach the code others share
  int64_t size() const { return size_; }
  // Calls the task once for every block: [0, first) are one operation's, the `second` ones after them another's. A
  // worker begins with an even share of each, the same one in every call, whose images lie in its caches; then it helps
  // the others. A block's result may depend on nothing but its number: then all thread counts, and all runs, give the
  // same bits.
  void run(int64_t first, int64_t second, int64_t scratch_floats, Task task, const void* context);

 private:
  int64_t size_;
  Buffer scratch_;  // one after the other, so that each worker finds its own next time
};

// Given by whoever links the kernels: how many threads to use, and a call of body(context, worker) for each of them.
int64_t thread_count();
void on_threads(int64_t workers, void (*body)(const void* context, int64_t worker), const void* context);

}  // namespace cmslap::cpu
