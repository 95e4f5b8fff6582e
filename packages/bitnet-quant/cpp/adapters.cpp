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

size_t ceiling(size_t count, size_t unit) { return (count + unit - 1) / unit; }

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

// The first products of all parts of the work on a chunk, each thread its share; `multiply` adds the second ones.
void Engine::reduce(size_t thread, size_t layer, std::span<Work> work, size_t first) {
    const std::span<const Adapted::Run> runs = runs_of(first);
    if (runs.empty()) return;
    size_t unit = 0;
    for (size_t part = 0; part < work.size(); ++part) {
        work[part].runs = runs;
        work[part].layer = layer;
        work[part].first = first;
        work[part].part = part;
        for (const Adapted::Run& run : runs) reduce_run(thread, work[part], run, unit);
    }
    pool_.meet();
}

void Engine::reduce_run(size_t thread, const Work& work, const Adapted::Run& run, size_t& unit) {
    alignas(64) float sums[kTokens * kRows];
    const Change& change = change_of(run, work);
    const size_t columns = work.matrix->extent.columns, row_bytes = columns * width_of(change.down_kind);
    const size_t stride = kept_columns();
    const float* inputs = adapted_.inputs + kept_offset(size_t(work.inputs - inputs_));
    for (size_t block = 0; block < run.count; block += kBlock)
        for (size_t at = 0; at < change.rank; at += kTall) {
            if (unit++ % pool_.threads() != thread) continue;
            const size_t rows = std::min(kTall, change.rank - at), end = std::min(block + kBlock, run.count);
            for (size_t i = block; i < end; i += kTokens) {
                const size_t slot = run.first + i, count = std::min(kTokens, end - i);
                kernels_.dense(change.down + at * row_bytes, change.down_kind, row_bytes, rows, columns,
                               inputs + slot * stride, stride, count, sums);
                for (size_t t = 0; t < count; ++t)
                    for (size_t row = 0; row < rows; ++row)
                        adapted_.product(work.part, slot + t)[at + row] = sums[t * kRows + row] * change.scale[at + row];
            }
        }
}

// The second products of a group of rows, added to what `multiply_group` left of it.
void Engine::spread(const Work& work, const Adapted::Run& run, size_t group) const {
    alignas(64) float sums[kTokens * kRows];
    const Change& change = change_of(run, work);
    if (!change.rank) return;
    const size_t begin = group * kRows, rows = std::min(kRows, work.matrix->extent.rows - begin);
    const float factor = work.add ? shape_.residual_scale : 1.0f;
    const uint8_t* up = change.up + begin * change.rank * width_of(change.up_kind);
    for (size_t i = 0; i < run.count; i += kTokens) {
        const size_t slot = run.first + i, count = std::min(kTokens, run.count - i);
        kernels_.spread(up, change.up_kind, change.rank, adapted_.product(work.part, slot), adapted_.rank, count, sums);
        for (size_t t = 0; t < count; ++t) {
            float* out = work.out + adapted_.tokens[work.first + slot + t] * work.stride + begin;
            for (size_t row = 0; row < rows; ++row) out[row] += sums[t * kRows + row] * factor;
        }
    }
}

const Change& Engine::change_of(const Adapted::Run& run, const Work& work) const {
    return run.adapter->layers[work.layer][size_t(work.matrix - layers_[work.layer].matrices.data())];
}

}  // namespace bitnet
