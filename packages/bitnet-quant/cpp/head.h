// The output head in planes: all rows of it, or only what may be within a sampler's reach.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "planes.h"
#include "pool.h"

namespace bitnet {

// The logits of a token that are wanted: the `best` highest, and all within `margin` of the highest; all where best is
// 0.
struct Reach {
    size_t best = 0;
    double margin = 0;
};

// What pack_planes made.
struct HeadWeights {
    Extent extent;
    const uint8_t* data;
    const float* scale;
    const float* rest;
};

// States as two digits each.
struct HeadInputs {
    const int8_t* digits;   // (tokens, 2, padded)
    const float* divisors;  // (tokens): what the digits were multiplied by
    const int32_t* starts;  // (tokens, 2): minus the sums of the digits
};

class Head {
public:
    // Rows of which so much was read: the nibble, and each further plane.
    using Counts = std::array<size_t, 1 + kPlanes>;

    Head(const Kernels& kernels, Pool& pool);

    size_t scratch_bytes(const Extent& extent) const;
    void use(uint8_t* scratch, const Extent& extent);

    // Before the threads of a call part.
    void begin();
    // A thread's part of the logits (tokens, rows). Where all tokens have a reach, and few are there and want few, a
    // logit beyond reach is minus infinity. Which are depends on the token and its reach alone.
    void multiply(size_t thread, const HeadWeights& weights, const HeadInputs& inputs, std::span<const Reach> reaches,
                  float* logits);
    // Of the last call.
    Counts counts() const;

private:
    // One token: the integers X that stand for its state, and a logit that is in reach or below what is.
    struct Token {
        double sum;     // of X
        double length;  // the root of the sum of the squares of X, or more
        float floor;
    };
    // Rows of a group that may be in reach.
    struct Left {
        uint8_t rows[kRows];
        size_t count;

        void keep(const float* upper, float floor);
    };

    struct Call {
        const HeadWeights& weights;
        const HeadInputs& inputs;
        std::span<const Reach> reaches;
        float* logits;

        const int8_t* digits(size_t token) const { return inputs.digits + 2 * token * weights.extent.padded(); }
        size_t blocks() const { return weights.extent.padded() / kPlaneColumns; }
    };
    bool leaves_out(const Call& call) const;
    void read_all(size_t thread, const Call& call) const;
    void measure(const Call& call, size_t token);
    void read_coarse(size_t thread, const Call& call);
    void bound(const Call& call, size_t group, size_t token, size_t level, const int32_t* sums, float* upper,
               float* about) const;
    void add_plane(const Call& call, size_t token, size_t first, size_t plane, std::span<const Left> left,
                   int32_t (*sums)[2 * kRows]) const;
    void finish(const Call& call, size_t token, size_t group, int32_t* sums, float* values) const;
    void copy_sums(const Call& call, size_t token, size_t group, int32_t* to) const;
    void find_floor(const Call& call, size_t token);
    float best_of(const Call& call, size_t token, size_t group) const;
    Left choose(const Call& call, size_t token, size_t group) const;
    void refine(const Call& call, size_t token, size_t first, size_t groups, Counts& counts) const;
    void write(const Call& call, size_t token, size_t group, const Left& left, int32_t* sums) const;
    void keep_reach(const Call& call, size_t token);
    size_t at(size_t token, size_t group) const { return token * groups_ + group; }

    const Kernels& kernels_;
    Pool& pool_;
    size_t groups_ = 0;
    int32_t* sums_ = nullptr;    // (groups, tokens, 2, 64), of the bits that were read of all rows
    float* upper_ = nullptr;     // (tokens, groups, 64): no logit is higher
    float* peaks_ = nullptr;     // (tokens, groups): what the highest logit is about, then what it is
    uint32_t* order_ = nullptr;  // (tokens, groups), scratch
    uint8_t* joined_ = nullptr;  // (threads, kWholeRows, padded)
    std::array<Token, 6> tokens_{};  // for more it is faster to read all
    std::vector<Counts> counts_;  // of each thread
    std::atomic<size_t> next_{0};
    bool deep_ = false;  // the first plane is read with the nibbles, because most rows would need it
};

}  // namespace bitnet
