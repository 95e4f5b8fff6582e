// The engine's adapters: inputs of projections are kept as floats, and low-rank products of them added to the results.
// Each sum has an order of its own, whoever computes it and whoever else is in the batch.
#include "adapters.h"

#include <algorithm>
#include <cstring>

#include "engine.h"

namespace bitnet {
namespace {

constexpr size_t kTall = 4;    // rows of a first matrix that are multiplied together
constexpr size_t kBlock = 12;  // tokens that one thread takes at a time: their inputs stay in its cache

}  // namespace

// Columns of the inputs that an operation keeps: three of `project`, two of `feed` and one behind them.
size_t Engine::kept_columns() const {
    return std::max(shape_.hidden, shape_.heads * shape_.head_size) + shape_.hidden +
           std::max(shape_.hidden, shape_.ffn);
}

size_t Engine::kept_offset(size_t index) const {
    const size_t first = std::max(shape_.hidden, shape_.heads * shape_.head_size);
    return index == 0 ? 0 : index == 1 ? first : first + shape_.hidden;
}

bool Engine::fits(const std::vector<const Adapter*>& adapters) const {
    return std::all_of(adapters.begin(), adapters.end(), [&](const Adapter* adapter) {
        return !adapter || (adapter->layers.size() == shape_.layers && adapter->extents == extents_of(shape_));
    });
}

size_t Engine::adapt(const std::vector<const Adapter*>& adapters) {
    adapted_ = {};
    if (std::all_of(adapters.begin(), adapters.end(), [](const Adapter* adapter) { return !adapter; })) return 0;
    adapted_.slots.assign(tokens_, -1);
    adapted_.tokens.resize(tokens_);
    for (size_t chunk = 0; chunk < tokens_; chunk += kChunk) {
        const size_t end = std::min(chunk + kChunk, tokens_);
        adapted_.chunks.push_back(adapted_.runs.size());
        size_t slot = 0;
        for (size_t i = 0; i < sequences_.size(); ++i) {
            const auto known = [&](const Adapted::Run& run) { return run.adapter == adapters[i]; };
            const auto begun = adapted_.runs.begin() + ptrdiff_t(adapted_.chunks.back());
            if (!adapters[i] || std::any_of(begun, adapted_.runs.end(), known)) continue;
            const size_t first = slot;
            for (size_t j = i; j < sequences_.size(); ++j) {
                if (adapters[j] != adapters[i]) continue;
                const Sequence& sequence = sequences_[j];
                for (size_t token = std::max(chunk, sequence.first);
                     token < std::min(end, sequence.first + sequence.count); ++token) {
                    adapted_.slots[token] = int64_t(slot);
                    adapted_.tokens[chunk + slot++] = token - chunk;
                }
            }
            if (slot > first) adapted_.runs.push_back({adapters[i], first, slot - first});
        }
        adapted_.held = std::max(adapted_.held, slot);
    }
    adapted_.chunks.push_back(adapted_.runs.size());
    for (const Adapted::Run& run : adapted_.runs)
        for (const auto& layer : run.adapter->layers)
            for (const Change& change : layer) adapted_.rank = std::max(adapted_.rank, change.rank);
    adapted_.products.resize(3 * adapted_.held * adapted_.rank);
    return adapted_.held;
}

std::span<const Adapted::Run> Engine::runs_of(size_t first) const {
    if (adapted_.slots.empty()) return {};
    const size_t *chunk = &adapted_.chunks[first / kChunk], from = chunk[0];
    return {adapted_.runs.data() + from, chunk[1] - from};
}

// A row of inputs, as it is before it is quantized, if the token has an adapter.
void Engine::keep(size_t token, const Matrix& matrix, const Inputs& inputs, const float* x) const {
    if (adapted_.slots.empty() || adapted_.slots[token] < 0) return;
    float* row = adapted_.inputs + size_t(adapted_.slots[token]) * kept_columns();
    std::memcpy(row + kept_offset(size_t(&inputs - inputs_)), x, matrix.extent.columns * sizeof(float));
}

// This thread's share of the first products, of all parts of the work on a chunk.
void Engine::reduce(size_t thread, size_t layer, std::span<const Work> work, size_t first) {
    alignas(64) float sums[kTokens * kRows];
    const size_t stride = kept_columns();
    size_t unit = 0;
    for (size_t part = 0; part < work.size(); ++part)
        for (const Adapted::Run& run : runs_of(first)) {
            const Change& change = change_of(run, layer, work[part]);
            const size_t columns = work[part].matrix->extent.columns;
            const size_t row_bytes = columns * width_of(change.down_kind);
            const float* inputs = adapted_.inputs + kept_offset(size_t(work[part].inputs - inputs_));
            for (size_t block = 0; block < run.count; block += kBlock)
                for (size_t at = 0; at < change.rank; at += kTall) {
                    if (unit++ % pool_.threads() != thread) continue;
                    const size_t rows = std::min(kTall, change.rank - at);
                    for (size_t i = block; i < std::min(block + kBlock, run.count); i += kTokens) {
                        const size_t slot = run.first + i, count = std::min(kTokens, run.count - i);
                        kernels_.dense(change.down + at * row_bytes, change.down_kind, row_bytes, rows, columns,
                                       inputs + slot * stride, stride, count, sums);
                        for (size_t t = 0; t < count; ++t)
                            for (size_t row = 0; row < rows; ++row)
                                product(part, slot + t)[at + row] = sums[t * kRows + row] * change.scale[at + row];
                    }
                }
        }
}

// This thread's share of the second products, added to what `multiply` left; then all threads meet.
void Engine::spread(size_t thread, size_t layer, std::span<const Work> work, size_t first) {
    const std::span<const Adapted::Run> runs = runs_of(first);
    if (runs.empty()) return;
    size_t groups = 0;
    for (const Work& part : work) groups += part.matrix->extent.groups() * runs.size();
    auto [from, to] = share(groups, thread);
    for (size_t part = 0; part < work.size(); ++part)
        for (const Adapted::Run& run : runs) {
            const size_t here = work[part].matrix->extent.groups();
            const Change& change = change_of(run, layer, work[part]);
            if (change.rank) spread_groups(work[part], part, run, change, from, std::min(to, here), first);
            from = from > here ? from - here : 0;
            to = to > here ? to - here : 0;
        }
    pool_.meet();
}

// A few tokens at a time over all groups: their results are written one after another, the groups stay in the cache.
void Engine::spread_groups(const Work& work, size_t part, const Adapted::Run& run, const Change& change, size_t from,
                           size_t to, size_t first) {
    alignas(64) float sums[kTokens * kRows];
    const float factor = work.add ? shape_.residual_scale : 1.0f;
    const size_t group_bytes = change.rank * kRows * width_of(change.up_kind);
    for (size_t i = 0; i < run.count; i += kTokens)
        for (size_t group = from; group < to; ++group) {
            const size_t slot = run.first + i, count = std::min(kTokens, run.count - i);
            const size_t begin = group * kRows, rows = std::min(kRows, work.matrix->extent.rows - begin);
            kernels_.spread(change.up + group * group_bytes, change.up_kind, change.rank, product(part, slot),
                            adapted_.rank, count, sums);
            for (size_t t = 0; t < count; ++t) {
                float* out = work.out + adapted_.tokens[first + slot + t] * work.stride + begin;
                for (size_t row = 0; row < rows; ++row) out[row] += sums[t * kRows + row] * factor;
            }
        }
}

// Where one token's first product of one part of the work stands.
float* Engine::product(size_t part, size_t slot) {
    return adapted_.products.data() + (part * adapted_.held + slot) * adapted_.rank;
}

const Change& Engine::change_of(const Adapted::Run& run, size_t layer, const Work& work) const {
    return run.adapter->layers[layer][size_t(work.matrix - layers_[layer].matrices.data())];
}

}  // namespace bitnet
