// A fixed team of threads that does one step together.
//
// Between steps the helpers sleep (an idle server uses no processor time). Within a step, work comes as phases of many small
// tasks, taken from one counter, with a barrier after each phase: there are hundreds of phases in a step of a few
// milliseconds, so a member waits by spinning, for some 20 microseconds, and then sleeps: whoever it waits for may need its core.
// (One busy process beside a team of two on two cores makes steps 2.5 times longer, with spins of 100 or 400 us up to 10 times.)
// Which member does a task never changes its result.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace headrace {

class Team {
 public:
  explicit Team(int threads) : size_(threads) {
    for (int id = 1; id < threads; id++) helpers_.emplace_back([this, id] { help(id); });
  }

  ~Team() {
    job_ = nullptr;
    wake();
    for (auto& helper : helpers_) helper.join();
  }

  int size() const { return size_; }

  // Run body(member) on all members, the caller being member 0, until all have returned.
  template <class Body>
  void run(Body&& body) {
    job_ = [](void* context, int member) { (*static_cast<std::remove_reference_t<Body>*>(context))(member); };
    context_ = &body;
    wake();
    job_(context_, 0);
    barrier();
  }

  // One phase: task(i) for i in [0, tasks), each by some member; returns when all are done. All members call it.
  template <class Task>
  void each(int tasks, Task&& task) {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
    barrier();
  }

  // The same for many small tasks: taken several at a time: taking them one by one was 3-5 % of a prefill step.
  template <class Task>
  void each_row(int64_t rows, Task&& task) {
    const int grain = std::max(1, (int)rows / (8 * size_));
    each(((int)rows + grain - 1) / grain, [&](int i) {
      for (int r = i * grain; r < std::min((int)rows, (i + 1) * grain); r++) task(r);
    });
  }

 private:
  static constexpr uint64_t SPIN = 60000;  // cycles

  void wake() {
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }

  void help(int id) {
    for (uint32_t seen = 0;;) {
      epoch_.wait(seen, std::memory_order_acquire);
      seen++;
      if (!job_) return;
      job_(context_, id);
      barrier();
    }
  }

  // The last to arrive resets the task counter (nobody takes tasks now) and lets the others go.
  void barrier() {
    uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    const uint64_t began = __rdtsc();
    while (phase_.load(std::memory_order_acquire) == phase) {
      _mm_pause();
      if (__rdtsc() - began > SPIN) phase_.wait(phase, std::memory_order_acquire);
    }
  }

  const int size_;
  std::vector<std::thread> helpers_;
  void (*job_)(void*, int) = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace headrace
