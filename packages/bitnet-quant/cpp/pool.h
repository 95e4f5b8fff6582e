// Threads that run one job together, and meet at barriers within it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace bitnet {

class Pool {
public:
    // `threads` counts the caller, who works too.
    explicit Pool(size_t threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    size_t threads() const { return threads_; }

    // Every thread calls job(number); returns when all have. One caller at a time; the job must not throw.
    template <typename Job>
    void run(Job&& job) {
        start([](void* context, size_t number) { (*static_cast<std::remove_reference_t<Job>*>(context))(number); },
              &job);
    }

    // Inside a job: waits until every thread is here.
    void meet();

private:
    using Call = void (*)(void*, size_t);

    void start(Call call, void* context);
    void work(size_t number);

    const size_t threads_;
    Call call_ = nullptr;  // written before round_ grows, read after
    void* context_ = nullptr;
    bool ending_ = false;
    alignas(64) std::atomic<uint32_t> round_{0};    // jobs begun
    alignas(64) std::atomic<uint32_t> arrived_{0};  // at the present barrier
    alignas(64) std::atomic<uint32_t> passed_{0};   // barriers that all have reached
    std::vector<std::thread> workers_;
};

}  // namespace bitnet
