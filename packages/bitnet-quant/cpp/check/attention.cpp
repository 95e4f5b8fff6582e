// Attention over pages: near the plain one; the same bits at both edges and for a row alone; and nothing of a position
// that a row does not see reaches it, whatever stands there.
#include <cmath>
#include <limits>

#include "check.h"

namespace bitnet::check {
namespace {

constexpr size_t kPages = 3, kOffset = 64;
constexpr const char* kHeld[] = {"f16", "f32", "int8"};
constexpr float kNothing = std::numeric_limits<float>::quiet_NaN();

// A call's numbers: those of a page are keys (size, positions), then values (positions, padded).
struct Scene {
    size_t rows, size, padded;
    Held held;
    std::vector<float> scales;  // of each page's keys, then its values
    std::vector<float> queries;
    std::vector<float> pages[kPages];
    std::vector<int64_t> first, last;

    Scene(size_t rows, size_t size, Held held, uint64_t seed)
        : rows(rows), size(size), padded((size + 15) / 16 * 16), held(held), queries(rows * padded) {
        Chance chance(seed);
        for (size_t row = 0; row < rows; ++row) {
            for (size_t i = 0; i < size; ++i)
                queries[row * padded + i] = 2 * chance.fraction() / std::sqrt(float(size));
            first.push_back(chance.between(0, 40));
            last.push_back(first.back() + chance.between(1, int32_t(kPages * kPositions) - int32_t(first.back())));
        }
        for (std::vector<float>& page : pages) {
            page.resize(kPositions * (size + padded));
            for (float& value : page) value = 2 * chance.fraction();
        }
        for (size_t i = 0; i < kPages * 2 * kPositions; ++i) scales.push_back(0.01f + chance.fraction() / 200);
        for (int64_t position = 0; position < int64_t(kPages * kPositions); ++position)
            if (!seen_by_any(position)) put(position, kNothing);
    }

    // The same pages before one of the rows.
    Scene only(size_t row) const {
        Scene one = *this;
        const auto from = queries.begin() + ptrdiff_t(row * padded);
        one.rows = 1;
        one.queries.assign(from, from + ptrdiff_t(padded));
        one.first = {first[row]};
        one.last = {last[row]};
        return one;
    }

    bool seen(size_t row, int64_t position) const { return position >= first[row] && position < last[row]; }

    bool seen_by_any(int64_t position) const {
        for (size_t row = 0; row < rows; ++row)
            if (seen(row, position)) return true;
        return false;
    }

    void put(int64_t position, float value) {
        std::vector<float>& page = pages[size_t(position) / kPositions];
        const size_t at = size_t(position) % kPositions;
        for (size_t i = 0; i < size; ++i) page[i * kPositions + at] = value;
        for (size_t i = 0; i < padded; ++i) page[kPositions * size + at * padded + i] = value;
        float* scale = scales.data() + size_t(position) / kPositions * 2 * kPositions + at;
        scale[0] = scale[kPositions] = value;
    }

    size_t page_bytes() const {
        return kOffset + pages[0].size() * width_of(held) + (held == Held::int8 ? 8 * kPositions : 0);
    }
};

struct Buffers {
    Guarded queries{1 << 14}, pages[kPages]{Guarded(1 << 17), Guarded(1 << 17), Guarded(1 << 17)}, mixed{1 << 14};
    Guarded weights{1 << 12}, peak{4096}, total{4096}, first{4096}, last{4096};
};

std::vector<float> mixed(const Kernels& kernels, Buffers& buffers, const Scene& scene, Edge edge) {
    uint8_t* pages[kPages];
    for (size_t page = 0; page < kPages; ++page) {
        pages[page] = buffers.pages[page].filled(edge, scene.page_bytes(), uint8_t(0xff));
        const std::vector<float>& values = scene.pages[page];
        if (scene.held == Held::f32) {
            std::memcpy(pages[page] + kOffset, values.data(), values.size() * sizeof(float));
        } else if (scene.held == Held::int8) {
            uint8_t* at = pages[page] + kOffset;
            for (float value : values) *at++ = value == value ? uint8_t(int8_t(value * 63)) : 0;
            std::memcpy(at, scene.scales.data() + page * 2 * kPositions, 2 * kPositions * sizeof(float));
        } else
            kScalar.narrow(values.data(), values.size(), reinterpret_cast<uint16_t*>(pages[page] + kOffset));
    }
    Attention call{};
    call.queries = buffers.queries.copy(edge, scene.queries);
    call.rows = scene.rows;
    call.size = scene.size;
    call.padded = scene.padded;
    call.first = buffers.first.copy(edge, scene.first);
    call.last = buffers.last.copy(edge, scene.last);
    call.pages = pages;
    call.offset = kOffset;
    call.held = scene.held;
    call.mixed = buffers.mixed.filled(edge, scene.rows * scene.padded, kNothing);
    call.weights = buffers.weights.filled(edge, scene.rows * kPositions, kNothing);
    call.peak = buffers.peak.filled(edge, scene.rows, kNothing);
    call.total = buffers.total.filled(edge, scene.rows, kNothing);
    kernels.attend(&call);
    std::vector<float> found;  // without the padding
    for (size_t row = 0; row < scene.rows; ++row)
        found.insert(found.end(), call.mixed + row * scene.padded, call.mixed + row * scene.padded + scene.size);
    return found;
}

void scene_case(const Kernels& kernels, Buffers& buffers, Report& report, Scene scene) {
    AT("%s attention, %zu rows of %zu, %s", kernels.name, scene.rows, scene.size, kHeld[size_t(scene.held)]);
    const std::vector<float> expected = mixed(kScalar, buffers, scene, Edge::end);
    const std::vector<float> found = mixed(kernels, buffers, scene, Edge::end);
    const std::vector<float> again = mixed(kernels, buffers, scene, Edge::start);
    bool all = true;  // values are below 2 in size
    for (size_t i = 0; i < found.size(); ++i) all = all && std::isfinite(found[i]) && near(found[i], expected[i], 4e-6);
    report.expect(all, "attention");
    report.expect(same(found.data(), again.data(), found.size()), "the same call gave other bits");
    bool independent = true;
    for (size_t row = 0; row < scene.rows; ++row) {
        const std::vector<float> alone = mixed(kernels, buffers, scene.only(row), Edge::end);
        independent = independent && same(alone.data(), &found[row * scene.size], scene.size);
    }
    report.expect(independent, "a row's attention depends on the other rows");
    // A position that is not a number: rows that see it are none, the others as before.
    const int64_t poisoned = scene.last[0] - 1;
    scene.put(poisoned, kNothing);
    const std::vector<float> after = mixed(kernels, buffers, scene, Edge::end);
    for (size_t row = 0; row < scene.rows; ++row) {
        const float *now = &after[row * scene.size], *before = &found[row * scene.size];
        bool holds = true;
        for (size_t i = 0; i < scene.size; ++i)
            holds = holds && (scene.seen(row, poisoned) ? now[i] != now[i] : same(now + i, before + i, 1));
        report.expect(holds, "a position that is not a number");
    }
}

}  // namespace

void check_attention(const Kernels& kernels, Report& report) {
    Buffers buffers;
    for (size_t size : {1, 8, 17, 64, 80, 96, 128, 200, 256})
        for (size_t rows = 1; rows <= 7; ++rows)
            for (Held held : {Held::f16, Held::f32, Held::int8})
                scene_case(kernels, buffers, report, Scene(rows, size, held, rows * size));
}

}  // namespace bitnet::check
