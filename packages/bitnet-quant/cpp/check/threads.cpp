// The pool of threads: every thread does every job once, what one writes before a barrier all read behind it, and
// pools that are made, used and ended beside each other do not meet.
#include <atomic>
#include <chrono>
#include <thread>

#include "../pool.h"
#include "check.h"

namespace bitnet::check {
namespace {

// Each thread writes its own plain number and, behind the barrier, reads all of them.
bool meetings_hold(Pool& pool, size_t rounds) {
    std::vector<size_t> values(pool.threads()), wrong(pool.threads());
    for (size_t round = 1; round <= rounds; ++round)
        pool.run([&](size_t number) {
            for (size_t step = 0; step < 3; ++step) {
                values[number] = 3 * round + step;
                pool.meet();
                for (size_t value : values) wrong[number] += value != 3 * round + step;
                pool.meet();
            }
        });
    size_t all = 0;
    for (size_t count : wrong) all += count;
    return all == 0;
}

// Jobs that finish at once, and jobs of which one thread alone has something to do.
bool short_jobs_are_done(Pool& pool, size_t rounds) {
    std::vector<size_t> done(pool.threads());
    size_t slow = 0;
    for (size_t round = 0; round < rounds; ++round) {
        pool.run([&](size_t number) { ++done[number]; });
        pool.run([](size_t) {});
        pool.run([&](size_t number) {
            if (number == round % pool.threads()) slow += number + 1;
        });
    }
    size_t expected = 0;
    for (size_t round = 0; round < rounds; ++round) expected += round % pool.threads() + 1;
    for (size_t count : done)
        if (count != rounds) return false;
    return slow == expected;
}

// A pool that slept for long wakes for the next job.
bool sleepers_wake(Pool& pool) {
    std::atomic<size_t> woken{0};
    for (int nap = 0; nap < 3; ++nap) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        pool.run([&](size_t) { woken.fetch_add(1, std::memory_order_relaxed); });
    }
    return woken.load() == 3 * pool.threads();
}

}  // namespace

void check_threads(Report& report, size_t rounds) {
    for (size_t threads = 1; threads <= 8; ++threads) {
        AT("a pool of %zu", threads);
        Pool pool(threads);
        report.expect(meetings_hold(pool, rounds / threads + 1),
                      "what one wrote before a barrier was not read behind it");
        report.expect(short_jobs_are_done(pool, rounds / threads + 1), "a job was not done once by every thread");
        report.expect(sleepers_wake(pool), "a thread that slept did not wake");
    }
    AT("pools that end at once");
    for (size_t count = 0; count < rounds / 10 + 1; ++count) {
        Pool idle(1 + count % 8);
        Pool once(1 + count % 5);
        std::atomic<size_t> ran{0};
        once.run([&](size_t) { ran.fetch_add(1, std::memory_order_relaxed); });
        report.expect(ran.load() == once.threads(), "a new pool did not run its job");
    }
    AT("many pools at once");
    std::vector<uint8_t> held(8);
    std::vector<std::thread> callers;
    for (size_t caller = 0; caller < held.size(); ++caller)
        callers.emplace_back([&held, caller, rounds] {
            Pool pool(1 + caller % 4);
            held[caller] = meetings_hold(pool, rounds / 10 + 1) && short_jobs_are_done(pool, rounds / 10 + 1);
        });
    for (std::thread& caller : callers) caller.join();
    for (uint8_t one : held) report.expect(one, "pools beside each other disturbed one another");
}

}  // namespace bitnet::check
