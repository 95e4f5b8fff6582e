#include "layout.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

namespace bitnet {
namespace {

constexpr std::string_view kNames[] = {"i2_s_128", "i2_s_64", "hf_rows", "tq1_0", "tq2_0", "q2_0_64", "q2_0_128"};

// One row as digits; `spare` holds a group that the row only begins or ends in.
void read_row(const Kernels& kernels, Wire wire, const Stored& from, const Extent& extent, size_t row, uint8_t* out,
              uint8_t* spare) {
    if (wire == Wire::hf_rows)
        return kernels.unpack(wire, from.data + ptrdiff_t(row % from.count) * from.stride, 1, extent.columns,
                              row / from.count, out);
    const size_t unit = digits_of(wire), end = (row + 1) * extent.columns;
    for (size_t at = row * extent.columns; at < end;) {
        const size_t skip = at % unit, left = end - at;
        const uint8_t* bytes = from.data + ptrdiff_t(at / unit) * from.stride;
        size_t count = left / unit * unit;  // whole groups at once
        if (skip || !count) {
            count = std::min(unit - skip, left);
            kernels.unpack(wire, bytes, from.stride, 1, 0, spare);
            std::memcpy(out, spare + skip, count);
        } else {
            kernels.unpack(wire, bytes, from.stride, count / unit, 0, out);
        }
        out += count;
        at += count;
    }
}

// Segments of a row that follow each other, each to where it begins; digit 1, which is code 0, wherever one ends.
void pad_segments(const Extent& extent, uint8_t* digits) {
    const size_t segment = extent.segment(), padded = extent.padded_segment();
    for (size_t i = extent.segments; i-- > 0;) {
        std::memmove(digits + i * padded, digits + i * segment, segment);
        std::memset(digits + i * padded + segment, 1, padded - segment);
    }
}

}  // namespace

bool wire_of(std::string_view name, Wire& found) {
    for (size_t i = 0; i < std::size(kNames); ++i)
        if (kNames[i] == name) {
            found = Wire(i);
            return true;
        }
    return false;
}

bool pack_ternary(Pool& pool, const Kernels& kernels, Wire wire, const Stored& from, const Extent& extent,
                  uint8_t* out) {
    constexpr size_t rows = 16, spare = 256;  // rows that are placed at once; digits of the largest group
    std::atomic<bool> sound{true};
    const size_t padded = extent.padded(), scratch = rows * padded + spare, tasks = extent.groups() * kRows / rows;
    std::vector<uint8_t> memory(pool.threads() * scratch);
    pool.run([&](size_t thread) {
        uint8_t* digits = memory.data() + thread * scratch;
        uint32_t wrong = 0;
        for (size_t task = tasks * thread / pool.threads(); task < tasks * (thread + 1) / pool.threads(); ++task) {
            for (size_t i = 0; i < rows; ++i) {
                if (task * rows + i < extent.rows) {
                    read_row(kernels, wire, from, extent, task * rows + i, digits + i * padded, digits + rows * padded);
                    pad_segments(extent, digits + i * padded);
                } else {
                    std::memset(digits + i * padded, 1, padded);
                }
            }
            const size_t quarter = task % (kRows / rows) * bytes_of(extent.order) * rows / kRows;
            wrong |= kernels.place(digits, padded, padded, out + task * rows / kRows * extent.group_bytes() + quarter);
        }
        if (wrong) sound.store(false, std::memory_order_relaxed);
    });
    return sound.load();
}

float int8_row(const Kernels& kernels, const uint8_t* row, Float kind, size_t columns, float* values, int8_t* out) {
    kernels.widen(row, kind, 1.0f, columns, values);
    const float largest = kernels.largest(values, columns);
    if (largest > 0)
        kernels.quantize(values, 127.0f / largest, columns, out);
    else
        std::memset(out, 0, columns);
    return largest / 127.0f;
}

void pack_bytes(Pool& pool, const Kernels& kernels, const Run& run, const Extent& extent, int8_t* out, float* scale) {
    const size_t columns = extent.columns, padded = extent.padded(), rows = run.end(extent) - run.first;
    std::vector<float> wide(pool.threads() * padded);
    std::vector<int8_t> narrow(pool.threads() * padded);
    pool.run([&](size_t thread) {
        float* values = wide.data() + thread * padded;
        int8_t* digits = narrow.data() + thread * padded;
        for (size_t i = rows * thread / pool.threads(); i < rows * (thread + 1) / pool.threads(); ++i) {
            const size_t row = run.first + i;
            std::memset(digits, 0, padded);
            scale[row] = 0;
            if (row < extent.rows)
                scale[row] = int8_row(kernels, run.row(row, columns), run.kind, columns, values, digits);
            int8_t* at = out + row / kRows * kRows * padded + row % kRows * 4;
            for (size_t column = 0; column < padded; column += 4, at += 4 * kRows) std::memcpy(at, digits + column, 4);
        }
    });
}

namespace {

unsigned digit_at(const uint8_t* group, Order order, size_t row, size_t place) {
    if (order == Order::two_bits) return group[place / 16 * 256 + 4 * row + place % 4] >> place % 16 / 4 * 2 & 3;
    const size_t bit = (row % 16 * 4 + place % 4) * 5;
    const uint8_t* at = group + place / 12 * 160 + row / 16 * 40 + bit / 8;
    const unsigned next = bit % 8 > 3 ? at[1] : 0;  // the number goes on in the next byte
    const unsigned number = (at[0] | next << 8) >> bit % 8 & 31;
    constexpr unsigned powers[] = {1, 3, 9};
    return number / powers[place % 12 / 4] % 3;
}

}  // namespace

void unpack_row(const uint8_t* packed, const Extent& extent, const float* scale, bool scale_each, size_t row,
                float factor, float* out) {
    const uint8_t* group = packed + row / kRows * extent.group_bytes();
    const size_t scales = extent.groups() * kRows;
    for (size_t column = 0; column < extent.columns; ++column) {
        const size_t segment = column / extent.segment();
        const size_t place = segment * extent.padded_segment() + column % extent.segment();
        const int code = int(digit_at(group, extent.order, row % kRows, place)) - 1;
        out[column] = float(code) * scale[scale_each ? segment * scales + row : segment] * factor;
    }
}

}  // namespace bitnet
