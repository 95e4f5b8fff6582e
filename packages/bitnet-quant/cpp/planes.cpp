#include "planes.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace bitnet {
namespace {

// A square of twice a length is exact, its root to half a unit in the last place: the next float but one is above it.
float length_of(int64_t square) {
    return std::nextafter(float(0.5 * std::sqrt(double(square))), std::numeric_limits<float>::infinity());
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
            int64_t squares[kPlanes];
            kernels.planes->place(numbers, padded / kPlaneColumns, next, out + row * padded / 2,
                                  out + 4 * next + row * padded / 8, squares);
            // Columns that a row lacks have the number 128, of which nothing is below the nibble.
            for (size_t i = 0; i < kRests; ++i) {
                const int64_t most = 15 >> i, lacking = int64_t(padded - columns) * most * most;
                rest[i * groups * kRows + row] = length_of(squares[i] - lacking);
            }
        }
    });
}

}  // namespace bitnet
