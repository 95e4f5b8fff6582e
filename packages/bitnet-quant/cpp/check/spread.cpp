// The adapters' second product: within 1e-6 of the sum of all magnitudes, and to the bit whoever else is in the call.
#include <cmath>

#include "check.h"

namespace bitnet::check {
namespace {

struct Buffers {
    Guarded rows{1 << 17}, weights{1 << 15}, out{1 << 13};
};

// Rows of 64 by chance, as they are stored.
std::vector<uint8_t> stored(Chance& chance, Float kind, size_t rank) {
    std::vector<uint8_t> data(rank * kRows * width_of(kind));
    for (size_t i = 0; i < rank * kRows; ++i) {
        const float value = chance.fraction();
        uint16_t half;
        kScalar.narrow(&value, 1, &half);
        if (kind == Float::f32)
            std::memcpy(&data[4 * i], &value, 4);
        else
            std::memcpy(&data[2 * i], &half, 2);
    }
    return data;
}

bool all_near(const std::vector<float>& found, const std::vector<uint8_t>& data, Float kind, size_t rank,
              const std::vector<float>& weights, size_t stride, size_t tokens) {
    std::vector<float> expected(tokens * kRows), rows(rank * kRows);
    kScalar.spread(data.data(), kind, rank, weights.data(), stride, tokens, expected.data());
    kScalar.widen(data.data(), kind, 1.0f, rows.size(), rows.data());
    bool all = true;
    for (size_t token = 0; token < tokens; ++token)
        for (size_t i = 0; i < kRows; ++i) {
            double reach = 0;
            for (size_t r = 0; r < rank; ++r)
                reach += std::fabs(double(rows[r * kRows + i]) * double(weights[token * stride + r]));
            all = all && near(found[token * kRows + i], expected[token * kRows + i], 1e-6 * reach);
        }
    return all;
}

// The weights of tokens stand `stride` apart: there may be others between them.
void spread_case(const Kernels& kernels, Buffers& buffers, Report& report, Float kind, size_t rank, size_t stride,
                 size_t tokens) {
    AT("%s spread, kind %d, rank %zu, stride %zu, %zu tokens", kernels.name, int(kind), rank, stride, tokens);
    Chance chance(rank * 1009 + stride * 17 + tokens);
    const std::vector<uint8_t> data = stored(chance, kind, rank);
    std::vector<float> weights((tokens - 1) * stride + rank), found;
    for (float& weight : weights) weight = chance.fraction();
    for (Edge edge : {Edge::end, Edge::start}) {
        float* out = buffers.out.filled(edge, tokens * kRows, 7.0f);
        const uint8_t* rows = buffers.rows.copy(edge, data);
        kernels.spread(rows, kind, rank, buffers.weights.copy(edge, weights), stride, tokens, out);
        if (edge == Edge::end) {
            found.assign(out, out + tokens * kRows);
            report.expect(all_near(found, data, kind, rank, weights, stride, tokens), "spread");
        }
        report.expect(same(out, found.data(), found.size()), "the same call gave other bits");
        bool equal = true;
        for (size_t token = 0; token < tokens; ++token) {
            const auto begin = weights.begin() + ptrdiff_t(token * stride);
            const std::vector<float> one(begin, begin + ptrdiff_t(rank));
            float* alone = buffers.out.filled(edge, kRows, 7.0f);
            kernels.spread(rows, kind, rank, buffers.weights.copy(edge, one), rank, 1, alone);
            equal = equal && same(alone, &found[token * kRows], kRows);
        }
        report.expect(equal, "a token's products depend on the other tokens");
    }
}

}  // namespace

void check_spread(const Kernels& kernels, Report& report) {
    Buffers buffers;
    for (Float kind : {Float::f16, Float::f32})
        for (size_t rank = 1; rank <= 70; ++rank)
            for (size_t tokens = 1; tokens <= kTokens; ++tokens)
                spread_case(kernels, buffers, report, kind, rank, rank + rank % 3, tokens);
}

}  // namespace bitnet::check
