// Matrices from Python's arrays, checked against the sizes that they are said to have.
#pragma once

#include <string>

#include "arrays.h"
#include "engine.h"
#include "planes.h"

namespace bitnet {

inline Extent extent_of(size_t rows, size_t columns, size_t segments, Order order = Order::two_bits) {
    require(rows && columns && segments && columns % segments == 0,
            "a matrix has rows, columns, and segments that divide the columns");
    // Sums of digits are 32-bit: 2 * 128 a column stays below that for eight million columns.
    require(columns <= size_t(1) << 22 && rows <= size_t(1) << 32, "a matrix of that size is not supported");
    return {rows, columns, segments, order};
}

// Whole rows of a matrix of that extent.
inline Run run_of(Array<const uint8_t, 1> data, const std::string& kind, size_t first, const Extent& extent) {
    const Float stored = float_of(kind);
    const size_t width = extent.columns * width_of(stored), count = data.size() / width;
    require_size("from", data.size(), count * width);
    require(first <= extent.rows && count <= extent.rows - first, "from: rows beyond those of the matrix");
    return {data.data(), stored, first, count};
}

// A matrix and the arrays that it points into.
struct Placed {
    Matrix matrix;
    nb::ndarray<> owners[3];
};

inline Placed bytes_matrix(Array<const uint8_t, 1> data, Array<const float, 1> scale, size_t rows, size_t columns) {
    const Extent extent = extent_of(rows, columns, 1);
    require_size("data", data.size(), extent.groups() * kRows * extent.padded());
    require_size("scale", scale.size(), extent.groups() * kRows);
    return {{Matrix::Kind::bytes, Float::f32, 2, extent, data.data(), scale.data(), true},
            {nb::ndarray<>(data), nb::ndarray<>(scale)}};
}

inline Placed planes_matrix(Array<const uint8_t, 1> data, Array<const float, 1> scale, Array<const float, 2> rest,
                            size_t rows, size_t columns) {
    const Extent extent = extent_of(rows, columns, 1, Order::planes);
    require(columns <= kMostPlaneColumns, "columns: too many for 32-bit sums");
    require_size("data", data.size(), extent.groups() * extent.group_bytes());
    require_size("scale", scale.size(), extent.groups() * kRows);
    require_shape("rest", rest, kRests, extent.groups() * kRows);
    Matrix matrix{Matrix::Kind::planes, Float::f32, 2, extent, data.data(), scale.data(), true};
    matrix.rest = rest.data();
    return {matrix, {nb::ndarray<>(data), nb::ndarray<>(scale), nb::ndarray<>(rest)}};
}

inline Placed dense_matrix(Array<const uint8_t, 1> data, const std::string& kind, size_t rows, size_t columns) {
    const Float stored = float_of(kind);
    const Extent extent = extent_of(rows, columns, 1);
    require_size("data", data.size(), rows * columns * width_of(stored));
    return {{Matrix::Kind::dense, stored, 1, extent, data.data()}, {nb::ndarray<>(data), nb::ndarray<>()}};
}

}  // namespace bitnet
