// The engine's attention: keys and values into their pages, and queries over what the pages hold.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace bitnet {
namespace {

constexpr float kLeast = 1e-30f;  // what is smaller in size is held as zero by int8

// A key among the positions of a page, which stand side by side.
template <typename T>
void put_column(T* keys, const T* key, size_t size, size_t slot) {
    for (size_t i = 0; i < size; ++i) keys[i * kPositions + slot] = key[i];
}

// As int8; gives the scale, which is not a number where an input is none.
float shrink(const Kernels& kernels, const float* x, size_t size, int8_t* out) {
    const float largest = kernels.largest(x, size);
    kernels.quantize(x, largest < kLeast ? 0.0f : 127.0f / largest, size, out);
    return largest < kLeast ? 0.0f : largest / 127.0f;
}

}  // namespace

size_t Engine::head_offset(size_t layer, size_t kv_head) const {
    return (layer * shape_.kv_heads + kv_head) * head_bytes(shape_.head_size, shape_.held);
}

// One head at the position of a token of the batch, with its norm, if it has one.
void Engine::turn(const Rope& rope, size_t token, const float* norm, const float* from, float* to) const {
    if (norm)
        kernels_.norm(from, norm, shape_.norm_eps, shape_.head_size, to);
    else
        std::memcpy(to, from, shape_.head_size * sizeof(float));
    const size_t pairs = rope.frequencies.size();
    const float *cosines = rope.cosines.data() + token * pairs, *sines = rope.sines.data() + token * pairs;
    for (size_t pair = 0; pair < pairs; ++pair) {
        const float first = to[pair], second = to[pair + pairs];
        to[pair] = first * cosines[pair] - second * sines[pair];
        to[pair + pairs] = second * cosines[pair] + first * sines[pair];
    }
}

void Engine::write_token(size_t index, size_t token, const Sequence& sequence, const float* keys, const float* values) {
    const Layer& layer = layers_[index];
    const size_t size = shape_.head_size, padded = padded_to(size, 16);
    const size_t position = size_t(sequence.start) + token - sequence.first, slot = position % kPositions;
    uint8_t* page = pages_[sequence.table + position / kPositions];
    float turned[kHead];
    uint16_t half[kHead];
    for (size_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
        const size_t at = (token * shape_.kv_heads + kv_head) * size;
        uint8_t* to = page + head_offset(index, kv_head);
        turn(ropes_[layer.rope], token, layer.vectors[kKNorm], keys + at, turned);
        uint8_t* value = to + width_of(shape_.held) * (size * kPositions + slot * padded);
        if (shape_.held == Held::f32) {
            put_column(reinterpret_cast<float*>(to), turned, size, slot);
            std::memcpy(value, values + at, size * sizeof(float));
        } else if (shape_.held == Held::int8) {
            int8_t digits[kHead];
            float* scales = reinterpret_cast<float*>(to + kPositions * (size + padded));
            scales[slot] = shrink(kernels_, turned, size, digits);
            put_column(reinterpret_cast<int8_t*>(to), digits, size, slot);
            scales[kPositions + slot] = shrink(kernels_, values + at, size, reinterpret_cast<int8_t*>(value));
        } else {
            kernels_.narrow(turned, size, half);
            put_column(reinterpret_cast<uint16_t*>(to), half, size, slot);
            kernels_.narrow(values + at, size, reinterpret_cast<uint16_t*>(value));
        }
    }
}

void Engine::attend_unit(size_t index, const Unit& unit, size_t kv_head, const float* queries, float* attended,
                         const Scores& scratch) const {
    const Layer& layer = layers_[index];
    const Sequence& sequence = sequences_[unit.sequence];
    const size_t size = shape_.head_size, padded = padded_to(size, 16), sharing = shape_.heads / shape_.kv_heads;
    const auto place = [&](size_t row) {  // of a query among all of the batch
        const size_t token = sequence.first + unit.first + row / sharing;
        return (token * shape_.heads + kv_head * sharing + row % sharing) * size;
    };
    const size_t rows = unit.count * sharing;
    for (size_t row = 0; row < rows; ++row) {
        const size_t at = unit.first + row / sharing;
        float* query = scratch.queries + row * padded;
        turn(ropes_[layer.rope], sequence.first + at, layer.vectors[kQNorm], queries + place(row), query);
        for (size_t i = 0; i < size; ++i) query[i] *= shape_.query_scale;
        const int64_t position = sequence.start + int64_t(at);
        scratch.first[row] = layer.window ? std::max<int64_t>(0, position - layer.window + 1) : 0;
        scratch.last[row] = position + 1;
    }
    const Attention call{scratch.queries,
                         rows,
                         size,
                         padded,
                         scratch.first,
                         scratch.last,
                         pages_.data() + sequence.table,
                         head_offset(index, kv_head),
                         shape_.held,
                         scratch.mixed,
                         scratch.weights,
                         scratch.peak,
                         scratch.total};
    kernels_.attend(&call);
    for (size_t row = 0; row < rows; ++row)
        std::memcpy(attended + place(row), scratch.mixed + row * padded, size * sizeof(float));
}

void Engine::attend(size_t layer, const float* queries, const float* keys, const float* values, float* attended) {
    next_.store(0, std::memory_order_relaxed);
    pool_.run([&](size_t thread) {
        const auto [from, to] = share(tokens_, thread);
        for (const Sequence& sequence : sequences_)
            for (size_t token = std::max(from, sequence.first); token < std::min(to, sequence.first + sequence.count);
                 ++token)
                write_token(layer, token, sequence, keys, values);
        pool_.meet();
        const size_t heads = shape_.kv_heads;
        // The last units of a sequence see the most: they go first, so that none is left to wait for.
        for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < units_.size() * heads;)
            attend_unit(layer, units_[units_.size() - 1 - i / heads], i % heads, queries, attended, scores_[thread]);
    });
}

}  // namespace bitnet
