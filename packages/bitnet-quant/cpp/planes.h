// Int8 matrices in planes, so that a row is read only as far as it matters. kernels.h has the order of the bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "layout.h"
#include "pool.h"

namespace bitnet {

// How often it is asked whether a row still matters: after its nibble, and after each of the first two bits.
constexpr size_t kRests = 3;
constexpr size_t kMostPlaneColumns = size_t(1) << 16;  // 255 * 128 times so many is what 32 bits hold

// What pack_bytes makes of rows, in planes: `out` has extent.groups() * extent.group_bytes() bytes, and `scale` 64
// floats a group. `rest` (kRests, 64 a group) is what a row has below its first 4 + i bits, less the middle of what
// that could be, as the root of the sum of squares over its columns, rounded up.
void pack_planes(Pool& pool, const Kernels& kernels, const Run& run, const Extent& extent, uint8_t* out, float* scale,
                 float* rest);

// Where the planes of a group begin, and how far it is from one plane of bits to the next.
struct Planes {
    const uint8_t* nibbles;
    const uint8_t* bits;
    size_t next;

    Planes(const uint8_t* data, const Extent& extent, size_t group)
        : next(extent.groups() * kRows * extent.padded() / 8) {
        nibbles = data + group * kRows * extent.padded() / 2;
        bits = data + 4 * next + group * kRows * extent.padded() / 8;
    }
};

}  // namespace bitnet
