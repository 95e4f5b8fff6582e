// Low-rank changes of projections, as the kernels have them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels.h"

namespace bitnet {

// What is added to one projection: up (scale * (down x)), with x its input as floats. Both matrices are float16 or
// float32, down as (rank, columns) and up as (groups of 64 rows, rank, 64); the memory is the caller's.
struct Change {
    size_t rank = 0;  // 0 where nothing is added
    Float down_kind = Float::f32, up_kind = Float::f32;
    const uint8_t* down = nullptr;
    const uint8_t* up = nullptr;
    const float* scale = nullptr;  // (rank): powers of two, which bring both into the range of float16
};

using Extents = std::array<std::pair<size_t, size_t>, 7>;  // rows and columns of a layer's projections

struct Adapter {
    Extents extents;
    std::vector<std::array<Change, 7>> layers;  // by layer and projection
};

// Which tokens of a batch run with which adapter. Within a chunk, those of one adapter stand side by side in slots,
// whatever sequence they belong to, so that they share each read of it.
struct Adapted {
    struct Run {
        const Adapter* adapter;
        size_t first, count;  // slots
    };
    std::vector<Run> runs{};
    std::vector<size_t> chunks{};   // where the runs of each chunk begin, and where the last ends
    std::vector<int64_t> slots{};   // of each token, -1 for none; empty where no token has an adapter
    std::vector<size_t> tokens{};   // of each slot of each chunk: its place in the chunk
    float* inputs = nullptr;        // (slots, all columns that an operation has to keep)
    std::vector<float> products{};  // (3, slots, rank)
    size_t held = 0;                // slots that there is room for
    size_t rank = 0;                // the highest
};

}  // namespace bitnet
