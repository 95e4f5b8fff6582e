// Every table of kernels that can run here against the scalar one, without Python: for processors that are emulated.
// Prints a line for each finding, and the tables that were compared; ends with 1 if there are findings.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "engine.h"
#include "isa.h"

using namespace bitnet;

namespace {

int findings = 0;
std::mt19937 generator(7);

void expect(bool holds, const Kernels& kernels, const char* what, size_t size) {
    if (holds) return;
    std::printf("%s: %s differs at size %zu\n", kernels.name, what, size);
    ++findings;
}

template <typename T>
std::vector<T> integers(size_t count, int low, int high) {
    std::uniform_int_distribution<int> any(low, high);
    std::vector<T> values(count);
    for (T& value : values) value = T(any(generator));
    return values;
}

std::vector<float> floats(size_t count, float spread = 1) {
    std::normal_distribution<float> any(0, spread);
    std::vector<float> values(count);
    for (float& value : values) value = any(generator);
    return values;
}

bool near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
    for (size_t i = 0; i < a.size(); ++i)
        if (!(std::fabs(a[i] - b[i]) <= tolerance * (1 + std::fabs(b[i])))) return false;
    return true;
}

void compare_sums(const Kernels& kernels, size_t blocks, int low, int high) {
    const size_t columns = blocks * 16;
    // Any bytes will do for two bits; tables with another order are compared by the tests in Python.
    const auto group = integers<uint8_t>(blocks * 256, low < 0 ? 0 : 0xaa, low < 0 ? 255 : 0xaa);
    const auto weights = integers<int8_t>(blocks * 1024, std::max(low, -127), high);
    for (size_t tokens = 1; tokens <= kTokens; ++tokens) {
        const auto x = integers<int8_t>(tokens * columns, low, high);
        std::vector<int32_t> starts(tokens), one(tokens * kRows), two(tokens * kRows);
        for (size_t t = 0; t < tokens; ++t)
            for (size_t i = 0; i < columns; ++i) starts[t] -= x[t * columns + i];
        if (kernels.order == Order::two_bits && tokens <= kernels.few) {
            kernels.ternary(group.data(), blocks, x.data(), columns, tokens, starts.data(), one.data());
            kScalar.ternary(group.data(), blocks, x.data(), columns, tokens, starts.data(), two.data());
            expect(one == two, kernels, "ternary", columns);
        }
        const auto* bytes = reinterpret_cast<const uint8_t*>(weights.data());
        kernels.bytes(bytes, blocks, x.data(), columns, tokens, starts.data(), one.data());
        kScalar.bytes(bytes, blocks, x.data(), columns, tokens, starts.data(), two.data());
        expect(one == two, kernels, "bytes", columns);
    }
}

void compare_dense(const Kernels& kernels, size_t rows, size_t columns) {
    for (Float kind : {Float::f16, Float::bf16, Float::f32}) {
        const size_t width = kind == Float::f32 ? 4 : 2;
        const auto values = floats(rows * columns), x = floats(kTokens * columns);
        std::vector<uint8_t> data(rows * columns * width);
        for (size_t i = 0; i < values.size(); ++i) {
            uint16_t half;
            kScalar.narrow(&values[i], 1, &half);
            if (kind == Float::bf16) std::memcpy(&half, reinterpret_cast<const uint8_t*>(&values[i]) + 2, 2);
            std::memcpy(&data[i * width], kind == Float::f32 ? static_cast<const void*>(&values[i]) : &half, width);
        }
        std::vector<float> one(kTokens * kRows), two(kTokens * kRows), alone(kRows);
        kernels.dense(data.data(), kind, columns * width, rows, columns, x.data(), columns, kTokens, one.data());
        kScalar.dense(data.data(), kind, columns * width, rows, columns, x.data(), columns, kTokens, two.data());
        expect(near(one, two, 1e-4f), kernels, "dense", columns);
        for (size_t t = 0; t < kTokens; ++t) {
            kernels.dense(data.data(), kind, columns * width, rows, columns, x.data() + t * columns, columns, 1,
                          alone.data());
            expect(!std::memcmp(alone.data(), &one[t * kRows], rows * sizeof(float)), kernels, "dense alone", columns);
        }
    }
}

void compare_rows(const Kernels& kernels, size_t count) {
    const auto x = floats(count, 3), weight = floats(count);
    std::vector<float> one(count), two(count);
    kernels.norm(x.data(), weight.data(), 1e-5, count, one.data());
    kScalar.norm(x.data(), weight.data(), 1e-5, count, two.data());
    expect(near(one, two, 1e-6f), kernels, "norm", count);
    const float largest = kScalar.largest(x.data(), count);
    expect(kernels.largest(x.data(), count) == largest, kernels, "largest", count);
    std::vector<int8_t> a(3 * count), b(3 * count);
    expect(kernels.quantize(x.data(), 127 / largest, count, a.data()) ==
                   kScalar.quantize(x.data(), 127 / largest, count, b.data()) &&
               a == b,
           kernels, "quantize", count);
    for (size_t planes : {2, 3}) {
        int32_t sums[3] = {}, others[3] = {};
        kernels.split(x.data(), largest_of(planes) / largest, count, planes, a.data(), count, sums);
        kScalar.split(x.data(), largest_of(planes) / largest, count, planes, b.data(), count, others);
        expect(a == b && std::equal(sums, sums + 3, others), kernels, "split", count);
    }
    for (Gate gate : {Gate::relu2, Gate::silu, Gate::gelu}) {
        one = two = floats(count, 20);
        kernels.activate(gate, one.data(), weight.data(), count);
        kScalar.activate(gate, two.data(), weight.data(), count);
        expect(near(one, two, 2e-6f), kernels, "activate", count);
    }
    std::vector<uint16_t> halves(count), others(count);
    const auto wide = floats(count, 40000);
    kernels.narrow(wide.data(), count, halves.data());
    kScalar.narrow(wide.data(), count, others.data());
    expect(halves == others, kernels, "narrow", count);
    kernels.widen(reinterpret_cast<const uint8_t*>(halves.data()), Float::f16, 0.5f, count, one.data());
    kScalar.widen(reinterpret_cast<const uint8_t*>(halves.data()), Float::f16, 0.5f, count, two.data());
    expect(one == two, kernels, "widen", count);
}

void compare_finish(const Kernels& kernels) {
    const auto sums = integers<int32_t>(3 * kRows, -900000, 900000);
    const auto scale = floats(kRows);
    for (size_t planes = 1; planes <= 3; ++planes)
        for (size_t step : {0, 1}) {
            std::vector<float> one(kRows, 1), two(kRows, 1);
            kernels.finish(sums.data(), planes, scale.data(), step, 2e9f, true, one.data());
            kScalar.finish(sums.data(), planes, scale.data(), step, 2e9f, true, two.data());
            expect(near(one, two, 1e-6f), kernels, "finish", planes);
        }
}

// Rows at different positions, over pages of which the part that nobody sees is poisoned.
void compare_attention(const Kernels& kernels, size_t size, size_t rows, int64_t window, bool wide) {
    const size_t padded = (size + 15) / 16 * 16, positions = 70 + rows, pages = positions / kPositions + 1;
    const size_t page_bytes = head_bytes(size, wide), width = wide ? 4 : 2;
    std::vector<std::vector<uint8_t>> memory(pages, std::vector<uint8_t>(page_bytes, 0xff));
    std::vector<uint8_t*> table;
    for (auto& page : memory) table.push_back(page.data());
    for (size_t position = 0; position < positions; ++position) {
        const auto pair = floats(2 * size);
        for (size_t i = 0; i < 2 * size; ++i) {
            const size_t slot = position % kPositions, value = size * kPositions + slot * padded + i - size;
            uint8_t* at = memory[position / kPositions].data() + width * (i < size ? i * kPositions + slot : value);
            uint16_t half;
            kScalar.narrow(&pair[i], 1, &half);
            std::memcpy(at, wide ? static_cast<const void*>(&pair[i]) : &half, width);
        }
    }
    auto queries = floats(rows * padded, 0.3f);
    std::vector<int64_t> first(rows), last(rows);
    for (size_t row = 0; row < rows; ++row) {
        last[row] = int64_t(71 + row);
        first[row] = window ? std::max<int64_t>(0, last[row] - window) : 0;
    }
    std::vector<float> weights(rows * kPositions), peak(rows), total(rows), one(rows * padded), two(rows * padded);
    const auto run = [&](const Kernels& with, std::vector<float>& mixed, size_t from, size_t count) {
        const Attention call{queries.data() + from * padded,
                             count,
                             size,
                             padded,
                             first.data() + from,
                             last.data() + from,
                             table.data(),
                             0,
                             wide,
                             mixed.data(),
                             weights.data(),
                             peak.data(),
                             total.data()};
        with.attend(&call);
        for (size_t row = 0; row < count; ++row) std::fill_n(mixed.begin() + row * padded + size, padded - size, 0.0f);
    };
    run(kernels, one, 0, rows);
    run(kScalar, two, 0, rows);
    expect(near(one, two, 3e-6f), kernels, "attend", size);
    std::vector<float> alone(padded);
    for (size_t row = 0; row < rows; ++row) {
        run(kernels, alone, row, 1);
        expect(!std::memcmp(alone.data(), &one[row * padded], size * sizeof(float)), kernels, "attend alone", size);
    }
}

}  // namespace

int main() {
    for (const Kernels* kernels : usable()) {
        for (size_t blocks : {1, 2, 3, 33, 160, 432}) compare_sums(*kernels, blocks, -128, 127);
        compare_sums(*kernels, 432, 127, 127);
        for (size_t columns : {1, 3, 4, 7, 20, 100, 515})
            for (size_t rows : {1, 5, 64}) compare_dense(*kernels, rows, columns);
        for (size_t count = 1; count < 70; ++count) compare_rows(*kernels, count);
        compare_rows(*kernels, 6912);
        compare_finish(*kernels);
        for (size_t size : {8, 20, 32, 128, 256})
            for (size_t rows : {1, 2, 3, 5, 17})
                for (int64_t window : {0, 8, 40})
                    for (bool wide : {false, true}) compare_attention(*kernels, size, rows, window, wide);
        std::printf("%s compared\n", kernels->name);
    }
    return findings != 0;
}
