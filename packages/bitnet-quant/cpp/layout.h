// Weights from the byte orders of files into the order of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels.h"
#include "pool.h"

namespace bitnet {

// A matrix as the kernels have it: its columns are cut in segments that share a scale, each padded to whole blocks.
struct Extent {
    size_t rows;
    size_t columns;
    size_t segments;
    Order order = Order::two_bits;  // of a ternary one

    size_t groups() const { return (rows + kRows - 1) / kRows; }
    size_t segment() const { return columns / segments; }
    size_t blocks() const { return (segment() + columns_of(order) - 1) / columns_of(order); }  // of a segment
    size_t padded_segment() const { return blocks() * columns_of(order); }
    size_t padded() const { return segments * padded_segment(); }
    size_t group_bytes() const { return segments * blocks() * bytes_of(order); }
};

// Bytes of a file's layout: `count` runs of `width` bytes, `stride` apart.
struct Stored {
    const uint8_t* data;
    size_t count;
    size_t width;
    ptrdiff_t stride;
};

// Some rows of a matrix of floats, one after another.
struct Run {
    const uint8_t* data;
    Float kind;
    size_t first;
    size_t count;

    // Behind the rows that are placed with these: the last ones bring what fills their group up.
    size_t end(const Extent& extent) const {
        return first + count == extent.rows ? extent.groups() * kRows : first + count;
    }
    const uint8_t* row(size_t index, size_t columns) const {
        return data + (index - first) * columns * (kind == Float::f32 ? 4 : 2);
    }
};

bool wire_of(std::string_view name, Wire& found);

// Packs into `out` (groups * group_bytes), in the kernels' order; false where bits say what no code says.
bool pack_ternary(Pool& pool, const Kernels& kernels, Wire wire, const Stored& from, const Extent& extent,
                  uint8_t* out);

// Rows of floats as int8 with a scale each, largest magnitude over 127, in their places in the whole matrix: `out` has
// 64 * columns bytes a group, with columns rounded up to 16, and `scale` 64 floats a group.
void pack_bytes(Pool& pool, const Kernels& kernels, const Run& run, const Extent& extent, int8_t* out, float* scale);

// A row of floats as int8: gives the scale, which is the largest magnitude over 127. `values` is scratch of its length.
float int8_row(const Kernels& kernels, const uint8_t* row, Float kind, size_t columns, float* values, int8_t* out);

// One row of a packed matrix as floats, times a factor.
void unpack_row(const uint8_t* packed, const Extent& extent, const float* scale, bool scale_each, size_t row,
                float factor, float* out);

}  // namespace bitnet
