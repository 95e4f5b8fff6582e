// Products of stored floats: within 1e-6 of the sum of all magnitudes, and to the bit whoever else is in the call.
#include <cmath>
#include <limits>

#include "check.h"

namespace bitnet::check {
namespace {

struct Buffers {
    Guarded data{2 << 20}, x{1 << 18}, out{1 << 13};
};

// `rows` of chance as they are stored; `wrong` puts what is not finite among them.
std::vector<uint8_t> stored(Chance& chance, Float kind, size_t count, bool wrong) {
    std::vector<uint8_t> data(count * (kind == Float::f32 ? 4 : 2));
    for (size_t i = 0; i < count; ++i) {
        float value = chance.fraction();
        if (wrong && chance.between(0, 40) == 0) value = std::numeric_limits<float>::quiet_NaN();
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        uint16_t half = uint16_t(bits >> 16);
        if (kind == Float::f16) kScalar.narrow(&value, 1, &half);
        if (kind == Float::f32)
            std::memcpy(&data[4 * i], &bits, 4);
        else
            std::memcpy(&data[2 * i], &half, 2);
    }
    return data;
}

// What is not finite in a product must be so in any order of its sum; else it is near.
bool all_near(const std::vector<float>& found, const std::vector<uint8_t>& data, Float kind, size_t rows,
              size_t columns, const std::vector<float>& x, size_t tokens) {
    std::vector<float> expected(tokens * kRows), weights(rows * columns);
    const size_t row_bytes = columns * (kind == Float::f32 ? 4 : 2);
    kScalar.dense(data.data(), kind, row_bytes, rows, columns, x.data(), columns, tokens, expected.data());
    kScalar.widen(data.data(), kind, 1.0f, weights.size(), weights.data());
    bool all = true;
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < rows; ++row) {
            double spread = 0;
            for (size_t column = 0; column < columns; ++column)
                spread += std::fabs(double(weights[row * columns + column]) * double(x[token * columns + column]));
            const float a = found[token * kRows + row], b = expected[token * kRows + row];
            all = all && near(a, b, std::isfinite(b) ? 1e-6 * spread : 0);
        }
    return all;
}

void dense_case(const Kernels& kernels, Buffers& buffers, Report& report, Float kind, size_t rows, size_t columns,
                size_t tokens, bool wrong) {
    AT("%s dense, kind %d, %zu rows, %zu columns, %zu tokens", kernels.name, int(kind), rows, columns, tokens);
    Chance chance(rows * 1009 + columns * 17 + tokens);
    const std::vector<uint8_t> data = stored(chance, kind, rows * columns, wrong);
    std::vector<float> x(tokens * columns);
    for (float& value : x) {
        value = chance.fraction();
        if (wrong && chance.between(0, 40) == 0) value = chance.next() & 1 ? INFINITY : NAN;
    }
    const size_t row_bytes = columns * (kind == Float::f32 ? 4 : 2);
    std::vector<float> found;
    for (Edge edge : {Edge::end, Edge::start}) {
        float* out = buffers.out.filled(edge, tokens * kRows, 7.0f);
        const uint8_t* weights = buffers.data.copy(edge, data);
        kernels.dense(weights, kind, row_bytes, rows, columns, buffers.x.copy(edge, x), columns, tokens, out);
        if (edge == Edge::end) {
            found.assign(out, out + tokens * kRows);
            report.expect(all_near(found, data, kind, rows, columns, x, tokens), "dense");
        }
        bool equal = true;
        for (size_t token = 0; token < tokens; ++token)
            equal = equal && same(out + token * kRows, &found[token * kRows], rows);
        report.expect(equal, "the same call gave other bits");
        if (wrong) continue;
        equal = true;
        for (size_t token = 0; token < tokens; ++token) {
            const std::vector<float> one(x.begin() + ptrdiff_t(token * columns),
                                         x.begin() + ptrdiff_t((token + 1) * columns));
            float* alone = buffers.out.filled(edge, kRows, 7.0f);
            kernels.dense(weights, kind, row_bytes, rows, columns, buffers.x.copy(edge, one), columns, 1, alone);
            equal = equal && same(alone, &found[token * kRows], rows);
        }
        report.expect(equal, "a token's products depend on the other tokens");
    }
}

}  // namespace

void check_dense(const Kernels& kernels, Report& report) {
    Buffers buffers;
    for (Float kind : {Float::f16, Float::bf16, Float::f32}) {
        for (size_t rows = 0; rows <= kRows; ++rows)
            dense_case(kernels, buffers, report, kind, rows, 1 + rows * 5 % 67, rows % 7, rows % 3 == 2);
        for (size_t columns = 1; columns <= 300; columns += 2)
            dense_case(kernels, buffers, report, kind, 1 + columns % 9, columns, 1 + columns % 6, columns % 3 == 2);
        dense_case(kernels, buffers, report, kind, 5, 5460, 6, false);
    }
}

}  // namespace bitnet::check
