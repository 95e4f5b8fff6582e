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

void pack_planes(Pool& pool, const Kernels& kernels, const Run& run, const Extent& extent, uint8_t* out, float* scale,
                 float* rest) {
    const size_t columns = extent.columns, padded = extent.padded(), rows = run.end(extent) - run.first;
    const size_t all = extent.groups() * kRows, next = all * padded / 8;
    std::vector<float> wide(pool.threads() * columns);
    std::vector<int8_t> narrow(pool.threads() * columns);
    std::vector<uint8_t> unsign(pool.threads() * padded, 128);
    pool.run([&](size_t thread) {
        uint8_t* numbers = unsign.data() + thread * padded;
        int8_t* digits = narrow.data() + thread * columns;
        for (size_t i = rows * thread / pool.threads(); i < rows * (thread + 1) / pool.threads(); ++i) {
            const size_t row = run.first + i;
            scale[row] = 0;
            if (row < extent.rows)
                scale[row] =
                    int8_row(kernels, run.row(row, columns), run.kind, columns, wide.data() + thread * columns, digits);
            else
                std::memset(digits, 0, columns);
            for (size_t column = 0; column < columns; ++column) numbers[column] = uint8_t(digits[column] + 128);
            int64_t squares[kPlanes];
            kernels.planes->place(numbers, padded / kPlaneColumns, next, out + row * padded / 2,
                                  out + 4 * next + row * padded / 8, squares);
            // Columns that a row lacks have the number 128, of which nothing is below the nibble.
            for (size_t level = 0; level < kRests; ++level) {
                const int64_t most = 15 >> level, lacking = int64_t(padded - columns) * most * most;
                rest[level * all + row] = length_of(squares[level] - lacking);
            }
        }
    });
}

}  // namespace bitnet
