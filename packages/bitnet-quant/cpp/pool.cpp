#include "pool.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace bitnet {
namespace {

// About 50 microseconds: longer than the gap between two calls of a forward pass, shorter than anybody's patience.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until the value is no longer `old`: spins for a moment, then sleeps.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

Pool::Pool(size_t threads) : threads_(threads) {
    workers_.reserve(threads - 1);
    try {
        for (size_t number = 1; number < threads; ++number) workers_.emplace_back([this, number] { work(number); });
    } catch (...) {
        ending_ = true;
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        throw;
    }
}

Pool::~Pool() {
    ending_ = true;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::start(Call call, void* context) {
    call_ = call;
    context_ = context;
    if (threads_ > 1) {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }
    call(context, 0);
    meet();
}

void Pool::work(size_t number) {
    for (uint32_t round = 0;; ++round) {
        wait_while(round_, round);
        if (ending_) return;
        call_(context_, number);
        meet();
    }
}

void Pool::meet() {
    if (threads_ == 1) return;
    const uint32_t passed = passed_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.fetch_add(1, std::memory_order_release);
        passed_.notify_all();
    } else {
        wait_while(passed_, passed);
    }
}

}  // namespace bitnet
