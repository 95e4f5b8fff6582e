// Heads in planes: what is left out for a reach is beyond it, and the rest to the bit what reading all gives, with any
// threads. Here for the sanitizers; the tests in Python have more kinds of rows.
#include "../head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"

namespace bitnet::check {
namespace {

struct Scene {
    Extent extent;
    std::vector<uint8_t> data;
    std::vector<float> scale, rest, divisors;
    std::vector<int8_t> digits;
    std::vector<int32_t> starts;

    Scene(const Kernels& kernels, Pool& pool, size_t rows, size_t columns, size_t tokens)
        : extent{rows, columns, 1, Order::planes},
          data(extent.groups() * extent.group_bytes()),
          scale(extent.groups() * kRows),
          rest(kRests * extent.groups() * kRows),
          digits(2 * tokens * extent.padded()) {
        Chance chance(rows + columns);
        std::vector<float> weights(rows * columns), x(columns);
        for (float& value : weights) value = chance.fraction();
        const Run run{reinterpret_cast<const uint8_t*>(weights.data()), Float::f32, 0, rows};
        pack_planes(pool, kernels, run, extent, data.data(), scale.data(), rest.data());
        for (size_t token = 0; token < tokens; ++token) {
            const float* near = &weights[chance.next() % rows * columns];
            for (size_t i = 0; i < columns; ++i) x[i] = chance.fraction() + (token % 2 ? near[i] : 0);
            divisors.push_back(largest_of(2) / kernels.largest(x.data(), columns));
            int32_t sums[2];
            kernels.split(x.data(), divisors.back(), columns, 2, digits.data() + 2 * token * extent.padded(),
                          extent.padded(), sums);
            for (int32_t sum : sums) starts.push_back(-sum);
        }
    }

    std::vector<float> logits(Head& head, Pool& pool, const std::vector<Reach>& reaches) const {
        std::vector<float> found(reaches.size() * extent.rows);
        head.begin();
        pool.run([&](size_t thread) {
            head.multiply(thread, {extent, data.data(), scale.data(), rest.data()},
                          {digits.data(), divisors.data(), starts.data()}, reaches, found.data());
        });
        return found;
    }
};

bool within_reach(const float* found, const float* whole, size_t count, const Reach& reach) {
    std::vector<float> sorted(whole, whole + count);
    std::sort(sorted.begin(), sorted.end());
    const float lowest = std::min(sorted[count - reach.best], sorted[count - 1] - float(reach.margin));
    bool all = true;
    for (size_t i = 0; i < count; ++i)
        all = all && (found[i] == whole[i] || (whole[i] < lowest && std::isinf(found[i]) && found[i] < 0));
    return all;
}

void head_case(const Kernels& kernels, Report& report, size_t rows, size_t columns, size_t threads) {
    AT("%s head, %zu rows of %zu, %zu threads", kernels.name, rows, columns, threads);
    constexpr size_t tokens = 9;
    Pool pool(threads);
    const Scene scene(kernels, pool, rows, columns, tokens);
    Head head(kernels, pool);
    head.use(nullptr, scene.extent);
    std::vector<uint64_t> scratch(head.scratch_bytes(scene.extent) / 8 + 1);
    head.use(reinterpret_cast<uint8_t*>(scratch.data()), scene.extent);
    const std::vector<float> whole = scene.logits(head, pool, std::vector<Reach>(tokens));
    for (const Reach& reach : {Reach{1, 0}, Reach{2, 0.5}, Reach{rows, 0}})
        for (size_t count = 1; count <= tokens; ++count) {
            const std::vector<float> found = scene.logits(head, pool, std::vector<Reach>(count, reach));
            bool all = true;
            for (size_t token = 0; token < count; ++token)
                all = all && within_reach(&found[token * rows], &whole[token * rows], rows, reach);
            report.expect(all, "logits within reach");
        }
}

}  // namespace

void check_head(const Kernels& kernels, Report& report) {
    if (!kernels.planes) return;
    for (size_t threads = 1; threads <= 3; ++threads) {
        head_case(kernels, report, 70, 16, threads);
        head_case(kernels, report, 193, 130, threads);
        head_case(kernels, report, 1000, 300, threads);
    }
}

}  // namespace bitnet::check
