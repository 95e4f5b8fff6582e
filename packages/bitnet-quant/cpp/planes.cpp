#include "planes.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace bitnet {
namespace {

void place_nibbles(const uint8_t* numbers, uint8_t* out) {
    for (size_t i = 0; i < 64; ++i) out[i] = uint8_t(numbers[i] >> 4 | (numbers[64 + i] & 0xf0));
}

void place_bits(const uint8_t* numbers, size_t plane, uint8_t* out) {
    uint8_t bytes[16] = {};
    for (size_t b = 0; b < 8; ++b) {
        const unsigned from = unsigned(kPlanes - 1 - plane), to = unsigned((b + plane) % 4 + b / 4 * 4);
        for (size_t i = 0; i < 16; ++i) bytes[i] = uint8_t(bytes[i] | (numbers[16 * b + i] >> from & 1) << to);
    }
    std::memcpy(out, bytes, sizeof bytes);
}

// The square of the sum is exact, its root to half a unit in the last place: the next float but one is above it.
float length_below(const uint8_t* numbers, size_t columns, int most) {
    int64_t sum = 0;
    for (size_t first = 0; first < columns; first += 4096) {
        const size_t last = first + 4096 < columns ? first + 4096 : columns;
        int32_t part = 0;
        for (size_t i = first; i < last; ++i) {
            const int twice = 2 * (numbers[i] & most) - most;
            part += twice * twice;
        }
        sum += part;
    }
    const float length = float(0.5 * std::sqrt(double(sum)));
    return std::nextafter(length, std::numeric_limits<float>::infinity());
}

}  // namespace

void pack_planes(Pool& pool, const Kernels& kernels, const uint8_t* rows, Float kind, const Extent& extent,
                 uint8_t* out, float* scale, float* rest) {
    const size_t columns = extent.columns, padded = extent.padded(), groups = extent.groups();
    const size_t row_bytes = columns * (kind == Float::f32 ? 4 : 2), next = groups * kRows * padded / 8;
    std::vector<float> wide(pool.threads() * columns);
    std::vector<int8_t> narrow(pool.threads() * columns);
    std::vector<uint8_t> unsign(pool.threads() * padded, 128);
    pool.run([&](size_t thread) {
        uint8_t* numbers = unsign.data() + thread * padded;
        int8_t* digits = narrow.data() + thread * columns;
        for (size_t row = groups * thread / pool.threads() * kRows;
             row < groups * (thread + 1) / pool.threads() * kRows; ++row) {
            scale[row] = 0;
            if (row < extent.rows)
                scale[row] =
                    int8_row(kernels, rows + row * row_bytes, kind, columns, wide.data() + thread * columns, digits);
            else
                std::memset(digits, 0, columns);
            for (size_t i = 0; i < columns; ++i) numbers[i] = uint8_t(digits[i] + 128);
            for (size_t i = 0; i < kRests; ++i)
                rest[i * groups * kRows + row] = length_below(numbers, columns, 15 >> i);
            for (size_t block = 0; block < padded / kPlaneColumns; ++block) {
                const uint8_t* from = numbers + block * kPlaneColumns;
                place_nibbles(from, out + row * padded / 2 + 64 * block);
                for (size_t plane = 0; plane < kPlanes; ++plane)
                    place_bits(from, plane, out + (4 + plane) * next + row * padded / 8 + 16 * block);
            }
        }
    });
}

}  // namespace bitnet
