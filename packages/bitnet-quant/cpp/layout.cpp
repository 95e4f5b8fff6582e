#include "layout.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

namespace bitnet {
namespace {

constexpr std::string_view kNames[] = {"i2_s_128", "i2_s_64", "hf_rows", "tq1_0", "tq2_0", "q2_0_64", "q2_0_128"};

// Four runs share the bytes of a group; the k-th stands at bit shifts[k].
void unpack_strided(const uint8_t* from, size_t run, const int (&shifts)[4], uint8_t* out) {
    for (size_t k = 0; k < 4; ++k)
        for (size_t i = 0; i < run; ++i) out[k * run + i] = from[i] >> shifts[k] & 3;
}

void unpack_adjacent(const uint8_t* from, size_t bytes, uint8_t* out) {
    for (size_t i = 0; i < bytes; ++i)
        for (size_t k = 0; k < 4; ++k) out[4 * i + k] = from[i] >> 2 * k & 3;
}

// Five base-3 digits a byte, four in the last four bytes: times 3 ** k, a digit is what three times it overflows.
void unpack_tq1(const uint8_t* from, uint8_t* out) {
    constexpr struct {
        size_t start, length, at, count;
    } runs[] = {{0, 32, 0, 5}, {160, 16, 32, 5}, {240, 4, 48, 4}};
    for (const auto& run : runs) {
        unsigned power = 1;
        for (size_t k = 0; k < run.count; ++k, power *= 3)
            for (size_t i = 0; i < run.length; ++i) {
                const unsigned shifted = uint8_t(from[run.at + i] * power);
                out[run.start + k * run.length + i] = uint8_t(shifted * 3 >> 8);
            }
    }
}

struct Grouped {
    size_t digits;  // of a run of bytes
    void (*unpack)(const uint8_t* from, uint8_t* out);
};

Grouped grouped(Wire wire) {
    switch (wire) {
        case Wire::i2_s_128:
            return {128, [](const uint8_t* from, uint8_t* out) { unpack_strided(from, 32, {6, 4, 2, 0}, out); }};
        case Wire::i2_s_64:
            return {64, [](const uint8_t* from, uint8_t* out) { unpack_strided(from, 16, {6, 4, 2, 0}, out); }};
        case Wire::tq1_0: return {256, unpack_tq1};
        case Wire::tq2_0:
            return {256, [](const uint8_t* from, uint8_t* out) {
                        unpack_strided(from, 32, {0, 2, 4, 6}, out);
                        unpack_strided(from + 32, 32, {0, 2, 4, 6}, out + 128);
                    }};
        case Wire::q2_0_64: return {64, [](const uint8_t* from, uint8_t* out) { unpack_adjacent(from, 16, out); }};
        default: return {128, [](const uint8_t* from, uint8_t* out) { unpack_adjacent(from, 32, out); }};
    }
}

// One row as digits; `spare` holds a group that the row only begins or ends in.
void unpack_digits(Wire wire, const Stored& from, const Extent& extent, size_t row, uint8_t* out, uint8_t* spare) {
    if (wire == Wire::hf_rows) {
        const uint8_t* bytes = from.data + ptrdiff_t(row % from.count) * from.stride;
        const int shift = int(2 * (row / from.count));
        for (size_t i = 0; i < extent.columns; ++i) out[i] = bytes[i] >> shift & 3;
        return;
    }
    const Grouped layout = grouped(wire);
    const size_t end = (row + 1) * extent.columns;
    for (size_t at = row * extent.columns; at < end;) {
        const size_t group = at / layout.digits, skip = at % layout.digits;
        const size_t count = layout.digits - skip < end - at ? layout.digits - skip : end - at;
        const uint8_t* bytes = from.data + ptrdiff_t(group) * from.stride;
        if (count == layout.digits) {
            layout.unpack(bytes, out);
        } else {
            layout.unpack(bytes, spare);
            std::memcpy(out, spare + skip, count);
        }
        out += count;
        at += count;
    }
}

// Digits of two rows, padded, into their places in a group; gives what is not zero if a digit is 3.
uint32_t place_two_bits(const uint8_t* const (&rows)[2], size_t columns, size_t row, uint8_t* group) {
    uint32_t all = 0;
    uint8_t* at = group + 4 * row;
    for (size_t column = 0; column < columns; column += 16, at += 256) {
        uint32_t packed[2];
        for (size_t i = 0; i < 2; ++i) {
            uint32_t fields[4];
            std::memcpy(fields, rows[i] + column, sizeof fields);
            packed[i] = fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6;
            all |= packed[i] & packed[i] >> 1;
        }
        std::memcpy(at, packed, sizeof packed);
    }
    return all & 0x55555555;  // both bits of a digit
}

// Four numbers of each row make the forty bits that the two share.
uint32_t place_five_bits(const uint8_t* const (&rows)[2], size_t columns, size_t row, uint8_t* group) {
    uint32_t all = 0;
    uint8_t* at = group + row / 16 * 40 + row % 16 / 2 * 5;
    for (size_t column = 0; column < columns; column += 12, at += 160) {
        uint64_t packed[2];
        for (size_t i = 0; i < 2; ++i) {
            uint32_t fields[3];
            std::memcpy(fields, rows[i] + column, sizeof fields);
            all |= (fields[0] & fields[0] >> 1) | (fields[1] & fields[1] >> 1) | (fields[2] & fields[2] >> 1);
            const uint32_t numbers = fields[0] + 3 * fields[1] + 9 * fields[2];  // a byte each, at most 39
            const uint32_t pairs = (numbers & 0x001f001f) | (numbers & 0x1f001f00) >> 3;
            packed[i] = (pairs & 0x3ff) | (pairs >> 16) << 10;
        }
        const uint64_t both = packed[0] | packed[1] << 20;
        const uint32_t low = uint32_t(both);
        std::memcpy(at, &low, sizeof low);
        at[4] = uint8_t(both >> 32);
    }
    return all & 0x01010101;
}

// Digit 1, which is code 0, wherever the matrix ends.
void pad_segments(const uint8_t* digits, const Extent& extent, uint8_t* out) {
    const size_t segment = extent.segment(), padded = extent.padded_segment();
    for (size_t i = 0; i < extent.segments; ++i) {
        std::memcpy(out + i * padded, digits + i * segment, segment);
        std::memset(out + i * padded + segment, 1, padded - segment);
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

bool pack_ternary(Pool& pool, Wire wire, const Stored& from, const Extent& extent, uint8_t* out) {
    std::atomic<bool> sound{true};
    const size_t padded = extent.padded(), scratch = extent.columns + 2 * padded + 256;
    const auto place = extent.order == Order::two_bits ? place_two_bits : place_five_bits;
    std::vector<uint8_t> spares(pool.threads() * scratch);
    pool.run([&](size_t thread) {
        uint8_t* digits = spares.data() + thread * scratch;
        uint8_t* const rows[2] = {digits + extent.columns, digits + extent.columns + padded};
        const size_t groups = extent.groups();
        uint32_t wrong = 0;
        for (size_t row = groups * thread / pool.threads() * kRows;
             row < groups * (thread + 1) / pool.threads() * kRows; row += 2) {
            for (size_t i = 0; i < 2; ++i) {
                if (row + i < extent.rows) {
                    unpack_digits(wire, from, extent, row + i, digits, rows[1] + padded);
                    pad_segments(digits, extent, rows[i]);
                } else {
                    std::memset(rows[i], 1, padded);
                }
            }
            wrong |= place({rows[0], rows[1]}, padded, row % kRows, out + row / kRows * extent.group_bytes());
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

void pack_bytes(Pool& pool, const Kernels& kernels, const uint8_t* rows, Float kind, size_t count, size_t columns,
                int8_t* out, float* scale) {
    const size_t padded = (columns + kColumns - 1) / kColumns * kColumns, groups = (count + kRows - 1) / kRows;
    const size_t row_bytes = columns * (kind == Float::f32 ? 4 : 2);
    std::vector<float> wide(pool.threads() * padded);
    std::vector<int8_t> narrow(pool.threads() * padded);
    pool.run([&](size_t thread) {
        float* values = wide.data() + thread * padded;
        int8_t* digits = narrow.data() + thread * padded;
        for (size_t row = groups * thread / pool.threads() * kRows;
             row < groups * (thread + 1) / pool.threads() * kRows; ++row) {
            std::memset(digits, 0, padded);
            scale[row] = 0;
            if (row < count) scale[row] = int8_row(kernels, rows + row * row_bytes, kind, columns, values, digits);
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
