// What the checks share: a count of what held, numbers by chance, and buffers between pages that nobody may touch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../kernels.h"

namespace bitnet::check {

// Where a fault would be reported: what is being called, for the handler of signals.
extern char place[200];

#define AT(...) std::snprintf(bitnet::check::place, sizeof bitnet::check::place, __VA_ARGS__)

class Report {
public:
    explicit Report(const char* name) : name_(name) {}

    void expect(bool holds, const char* what) {
        ++(holds ? passed : failed);
        if (!holds && failed <= 10) std::printf("  %s: %s: %s\n", name_, place, what);
    }

    size_t passed = 0, failed = 0;

private:
    const char* name_;
};

// The same numbers in every run.
class Chance {
public:
    explicit Chance(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}

    uint32_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return uint32_t(state_ >> 32);
    }
    int32_t between(int32_t low, int32_t high) { return low + int32_t(next() % uint32_t(high - low + 1)); }
    float fraction() { return float(next() >> 8) * 0x1p-23f - 1.0f; }  // from -1 to below 1

private:
    uint64_t state_;
};

// Whether a buffer ends directly before a page that may not be touched, or begins directly behind one.
enum class Edge { end, start };

// Room for one buffer at a time, between two such pages.
class Guarded {
public:
    explicit Guarded(size_t bytes) : page_(size_t(sysconf(_SC_PAGESIZE))), room_((bytes + page_ - 1) / page_ * page_) {
        void* found = mmap(nullptr, room_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) std::abort();
        base_ = static_cast<uint8_t*>(found);
        if (mprotect(base_ + page_, room_, PROT_READ | PROT_WRITE)) std::abort();
    }
    ~Guarded() { munmap(base_, room_ + 2 * page_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    template <typename T>
    T* room(Edge edge, size_t count) {
        if (count * sizeof(T) > room_) std::abort();
        uint8_t* start = base_ + page_;
        return reinterpret_cast<T*>(edge == Edge::start ? start : start + room_ - count * sizeof(T));
    }
    template <typename T>
    T* copy(Edge edge, const std::vector<T>& values) {
        T* to = room<T>(edge, values.size());
        if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
        return to;
    }
    template <typename T>
    T* filled(Edge edge, size_t count, T value) {
        return copy(edge, std::vector<T>(count, value));
    }

private:
    size_t page_, room_;
    uint8_t* base_;
};

// Equal, both not a number, or no further apart than `bound`.
inline bool near(float a, float b, double bound) {
    if (a != a || b != b) return a != a && b != b;
    if (a == b) return true;
    const double apart = double(a) - double(b);
    return apart <= bound && apart >= -bound;
}

template <typename T>
bool same(const T* a, const T* b, size_t count) {
    return !count || std::memcmp(a, b, count * sizeof(T)) == 0;
}

void check_integers(const Kernels& kernels, Report& report);
void check_floats(const Kernels& kernels, Report& report);
void check_dense(const Kernels& kernels, Report& report);
void check_packing(const Kernels& kernels, Report& report);
void check_planes(const Kernels& kernels, Report& report);
void check_head(const Kernels& kernels, Report& report);
void check_attention(const Kernels& kernels, Report& report);
void check_threads(Report& report, size_t rounds);

}  // namespace bitnet::check
