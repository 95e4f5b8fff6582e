#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace bitnet {
namespace {

constexpr size_t kUnitRows = 64;  // queries that share a reading of keys and values
constexpr float kFloor = 1e-5f;   // the least magnitude that a scale is made for
constexpr size_t kExpanded = 96;  // tokens that a group is multiplied by as it is; more are worth expanding it

// Hands out parts of a block of memory, or counts what they would take.
class Parts {
public:
    explicit Parts(uint8_t* memory) : memory_(memory) {}

    template <typename T>
    T* take(size_t count) {
        uint8_t* part = memory_ ? memory_ + used_ : nullptr;
        used_ += padded_to(count * sizeof(T), 64);
        return reinterpret_cast<T*>(part);
    }

    size_t used() const { return used_; }

private:
    uint8_t* memory_;
    size_t used_ = 0;
};

// Blocks of a segment in the order of two bits. The last may reach past the segment, where its digits are 0.
size_t blocks_expanded(const Extent& extent) { return padded_to(extent.segment(), 16) / 16; }

bool shares_inputs(const Matrix& a, const Matrix& b) {
    return !a.norm && !b.norm && a.kind == b.kind && a.planes == b.planes && a.extent.segments == b.extent.segments;
}

}  // namespace

Engine::Engine(const Kernels& kernels, size_t threads, const Shape& shape)
    : kernels_(kernels),
      shape_(shape),
      pool_(threads),
      layers_(shape.layers),
      rows_(threads),
      groups_(threads),
      scores_(threads),
      head_(kernels, pool_) {}

void Engine::add_rope(std::vector<double> frequencies, double magnitude) {
    ropes_.push_back({std::move(frequencies), magnitude});
}

Engine::Range Engine::share(size_t count, size_t thread) const {
    return {count * thread / pool_.threads(), count * (thread + 1) / pool_.threads()};
}

size_t Engine::unit_tokens() const { return std::max<size_t>(1, kUnitRows * shape_.kv_heads / shape_.heads); }

size_t Engine::lay_out(uint8_t* memory, const Matrix& head) {
    size_t columns = 0, digits = 0, starts = 0, widest = 0, blocks = 0;
    const auto measure = [&](const Matrix& matrix) {
        widest = std::max(widest, matrix.extent.columns);
        if (matrix.kind == Matrix::Kind::dense) {
            columns = std::max(columns, matrix.extent.columns);
        } else {
            digits = std::max(digits, matrix.planes * matrix.extent.padded());
            starts = std::max(starts, matrix.planes * matrix.extent.segments);
            blocks = std::max(blocks, matrix.extent.segments * blocks_expanded(matrix.extent));
        }
    };
    for (const Layer& layer : layers_)
        for (const Matrix& matrix : layer.matrices) measure(matrix);
    measure(head);
    Parts parts(memory);
    for (Inputs& inputs : inputs_)
        inputs = {parts.take<float>(kChunk * columns), parts.take<int8_t>(kChunk * digits + kColumns),
                  parts.take<float>(kChunk), parts.take<int32_t>(kChunk * starts)};
    gate_ = parts.take<float>(kChunk * shape_.ffn);
    up_ = parts.take<float>(kChunk * shape_.ffn);
    change_ = parts.take<float>(kChunk * shape_.hidden);
    const size_t queries = unit_tokens() * (shape_.heads / shape_.kv_heads), padded = padded_to(shape_.head_size, 16);
    for (size_t thread = 0; thread < pool_.threads(); ++thread) {
        groups_[thread] = parts.take<uint8_t>(kernels_.expand ? blocks * bytes_of(Order::two_bits) : 0);
        rows_[thread] = {parts.take<float>(widest), parts.take<float>(widest)};
        scores_[thread] = {parts.take<float>(queries * padded),
                           parts.take<float>(queries * padded),
                           parts.take<float>(queries * kPositions),
                           parts.take<float>(queries),
                           parts.take<float>(queries),
                           parts.take<int64_t>(queries),
                           parts.take<int64_t>(queries)};
    }
    const bool planes = head.kind == Matrix::Kind::planes;
    head_.use(planes ? parts.take<uint8_t>(head_.scratch_bytes(head.extent)) : nullptr, head.extent);
    return parts.used();
}

void Engine::begin(std::vector<Sequence> sequences, std::vector<uint8_t*> pages, size_t tokens) {
    tokens_ = 0;  // should memory run out below, nothing is begun
    adapted_ = {};
    sequences_ = std::move(sequences);
    pages_ = std::move(pages);
    units_.clear();
    for (size_t i = 0; i < sequences_.size(); ++i)
        for (size_t at = 0; at < sequences_[i].count; at += unit_tokens())
            units_.push_back({i, at, std::min(unit_tokens(), sequences_[i].count - at)});
    for (Rope& rope : ropes_) {
        const size_t pairs = rope.frequencies.size();
        rope.cosines.resize(tokens * pairs);
        rope.sines.resize(tokens * pairs);
        for (const Sequence& sequence : sequences_)
            for (size_t at = 0; at < sequence.count; ++at)
                for (size_t pair = 0; pair < pairs; ++pair) {
                    const double angle = double(sequence.start + int64_t(at)) * rope.frequencies[pair];
                    rope.cosines[(sequence.first + at) * pairs + pair] = float(std::cos(angle) * rope.magnitude);
                    rope.sines[(sequence.first + at) * pairs + pair] = float(std::sin(angle) * rope.magnitude);
                }
    }
    tokens_ = tokens;
}

void Engine::embed(const Matrix& embedding, const int32_t* ids, size_t tokens, float* x) {
    const Extent& extent = embedding.extent;
    const size_t row_bytes = extent.columns * (embedding.stored == Float::f32 ? 4 : 2);
    for (size_t token = 0; token < tokens; ++token, x += extent.columns) {
        const size_t row = size_t(ids[token]);
        if (embedding.kind == Matrix::Kind::dense)
            kernels_.widen(embedding.data + row * row_bytes, embedding.stored, shape_.embedding_scale, extent.columns,
                           x);
        else
            unpack_row(embedding.data, extent, embedding.scale, embedding.scale_each, row, shape_.embedding_scale, x);
    }
}

void Engine::quantize(const Matrix& matrix, const Inputs& inputs, const float* x, size_t token) const {
    const Extent& extent = matrix.extent;
    const size_t planes = matrix.planes, padded = extent.padded();
    const float largest = kernels_.largest(x, extent.columns);
    const float scale = largest_of(planes) / (largest < kFloor ? kFloor : largest);
    inputs.divisors[token] = scale;
    for (size_t segment = 0; segment < extent.segments; ++segment) {
        const float* from = x + segment * extent.segment();
        int8_t* to = inputs.digits + token * planes * padded + segment * extent.padded_segment();
        int32_t* starts = inputs.starts + segment * kChunk * planes + token * planes;
        if (planes == 1)
            starts[0] = kernels_.quantize(from, scale, extent.segment(), to);
        else
            kernels_.split(from, scale, extent.segment(), planes, to, padded, starts);
        for (size_t plane = 0; plane < planes; ++plane) {
            starts[plane] = -starts[plane];
            std::memset(to + plane * padded + extent.segment(), 0, extent.padded_segment() - extent.segment());
        }
    }
}

// A row of inputs for one matrix, whose own norm goes before; `row` is scratch. Gives the row as floats.
const float* Engine::prepare(const Matrix& matrix, const Inputs& inputs, const float* x, size_t token,
                             float* row) const {
    const size_t columns = matrix.extent.columns;
    if (matrix.norm) {
        kernels_.norm(x, matrix.norm, shape_.sub_norm_eps, columns, row);
        x = row;
    }
    if (matrix.kind == Matrix::Kind::dense)
        std::memcpy(inputs.x + token * columns, x, columns * sizeof(float));
    else
        quantize(matrix, inputs, x, token);
    return x;
}

void Engine::multiply_dense(const Work& work, size_t group, size_t token, size_t count, float* out) const {
    const Matrix& matrix = *work.matrix;
    const size_t columns = matrix.extent.columns, row_bytes = columns * (matrix.stored == Float::f32 ? 4 : 2);
    const size_t rows = std::min(kRows, matrix.extent.rows - group * kRows);
    kernels_.dense(matrix.data + group * kRows * row_bytes, matrix.stored, row_bytes, rows, columns,
                   work.inputs->x + token * columns, columns, count, out);
}

// Sums of some tokens over a group; over its expanded form, where there is one.
void Engine::multiply_tile(const Work& work, size_t group, const uint8_t* expanded, size_t token, size_t count,
                           bool add, float* out, size_t stride) const {
    alignas(64) int32_t sums[kMost * kRows];
    const Matrix& matrix = *work.matrix;
    const Extent& extent = matrix.extent;
    const size_t planes = matrix.planes, first = token * planes, padded = extent.padded();
    const bool ternary = matrix.kind == Matrix::Kind::ternary;
    const auto kernel = expanded ? kernels_.expanded : ternary ? kernels_.ternary : kernels_.bytes;
    const size_t blocks = expanded ? blocks_expanded(extent) : ternary ? extent.blocks() : padded / kColumns;
    const size_t step = expanded ? blocks * bytes_of(Order::two_bits) : blocks * bytes_of(extent.order);
    const uint8_t* data = expanded  ? expanded
                          : ternary ? matrix.data + group * extent.group_bytes()
                                    : matrix.data + group * kRows * padded;
    for (size_t segment = 0; segment < extent.segments; ++segment) {
        kernel(data + segment * step, blocks, work.inputs->digits + first * padded + segment * extent.padded_segment(),
               padded, count * planes, work.inputs->starts + segment * kChunk * planes + first, sums);
        const float* scale = matrix.scale + (matrix.scale_each ? (segment * extent.groups() + group) * kRows : segment);
        for (size_t t = 0; t < count; ++t)
            kernels_.finish(sums + t * planes * kRows, planes, scale, matrix.scale_each,
                            work.inputs->divisors[token + t], add || segment > 0, out + t * stride);
    }
}

void Engine::multiply_group(size_t thread, const Work& work, size_t group, size_t tokens) const {
    const Matrix& matrix = *work.matrix;
    const Extent& extent = matrix.extent;
    const size_t first = group * kRows, rows = std::min(kRows, extent.rows - first);
    const bool ternary = matrix.kind == Matrix::Kind::ternary;
    const bool expands = ternary && kernels_.expand && tokens * matrix.planes > kExpanded;
    if (expands)
        for (size_t segment = 0; segment < extent.segments; ++segment)
            kernels_.expand(
                matrix.data + group * extent.group_bytes() + segment * extent.blocks() * bytes_of(extent.order),
                extent.blocks(), blocks_expanded(extent),
                groups_[thread] + segment * blocks_expanded(extent) * bytes_of(Order::two_bits));
    const size_t most = (ternary && !expands ? kernels_.few : kTokens) / matrix.planes;
    const size_t tiles = (tokens + most - 1) / most, tile = (tokens + tiles - 1) / tiles;
    // Whole groups go straight to where they belong; x plus 1 times a sum is x plus the sum.
    const bool direct = matrix.kind != Matrix::Kind::dense && rows == kRows && !matrix.bias &&
                        (!work.add || shape_.residual_scale == 1.0f);
    alignas(64) float sums[kMost * kRows];
    for (size_t token = 0; token < tokens; token += tile) {
        const size_t count = std::min(tile, tokens - token);
        const uint8_t* expanded = expands ? groups_[thread] : nullptr;
        if (direct) {
            multiply_tile(work, group, expanded, token, count, work.add, work.out + token * work.stride + first,
                          work.stride);
            continue;
        }
        if (matrix.kind == Matrix::Kind::dense)
            multiply_dense(work, group, token, count, sums);
        else
            multiply_tile(work, group, expanded, token, count, false, sums, kRows);
        for (size_t t = 0; t < count; ++t) {
            float *sum = sums + t * kRows, *out = work.out + (token + t) * work.stride + first;
            if (matrix.bias)
                for (size_t row = 0; row < rows; ++row) sum[row] += matrix.bias[first + row];
            if (work.add)
                for (size_t row = 0; row < rows; ++row) out[row] += sum[row] * shape_.residual_scale;
            else
                std::memcpy(out, sum, rows * sizeof(float));
        }
    }
}

// This thread's share of all groups, which follow each other in memory as they do here.
void Engine::multiply(size_t thread, std::span<const Work> work, size_t tokens) const {
    size_t groups = 0;
    for (const Work& part : work) groups += part.matrix->extent.groups();
    auto [from, to] = share(groups, thread);
    for (const Work& part : work) {
        const size_t here = part.matrix->extent.groups();
        for (size_t group = from; group < std::min(to, here); ++group) multiply_group(thread, part, group, tokens);
        from = from > here ? from - here : 0;
        to = to > here ? to - here : 0;
    }
}

void Engine::project(size_t index, const float* x, float* queries, float* keys, float* values) {
    const Layer& layer = layers_[index];
    const size_t q = shape_.heads * shape_.head_size, kv = shape_.kv_heads * shape_.head_size;
    pool_.run([&](size_t thread) {
        Work work[3] = {{&layer.matrices[kQ], &inputs_[0], queries, q, false},
                        {&layer.matrices[kK], &inputs_[1], keys, kv, false},
                        {&layer.matrices[kV], &inputs_[2], values, kv, false}};
        for (size_t i = 1; i < 3; ++i)
            for (size_t j = i; j-- > 0;)
                if (shares_inputs(*work[i].matrix, *work[j].matrix)) work[i].inputs = work[j].inputs;
        const auto [row, spare] = rows_[thread];
        for (size_t first = 0; first < tokens_; first += kChunk) {
            const size_t count = std::min(kChunk, tokens_ - first);
            const auto [from, to] = share(count, thread);
            for (size_t token = from; token < to; ++token) {
                kernels_.norm(x + (first + token) * shape_.hidden, layer.vectors[kAttnNorm], shape_.norm_eps,
                              shape_.hidden, row);
                for (size_t i = 0; i < 3; ++i)
                    if (work[i].inputs == &inputs_[i])
                        keep(first + token, *work[i].matrix, inputs_[i],
                             prepare(*work[i].matrix, inputs_[i], row, token, spare));
            }
            pool_.meet();
            multiply(thread, work, count);
            reduce(thread, index, work, first);
            pool_.meet();
            spread(thread, index, work, first);
            for (Work& part : work) part.out += count * part.stride;
        }
    });
}

// x plus a projection of the inputs, with the norm after it, if there is one.
void Engine::finish_residual(size_t thread, size_t layer, const Matrix& matrix, const Inputs& inputs, const float* post,
                             float* x, size_t first, size_t tokens) {
    x += first * shape_.hidden;
    const Work work{&matrix, &inputs, post ? change_ : x, shape_.hidden, !post};
    multiply(thread, {&work, 1}, tokens);
    reduce(thread, layer, {&work, 1}, first);
    pool_.meet();
    spread(thread, layer, {&work, 1}, first);
    if (!post) return;
    float* row = rows_[thread].first;
    const auto [from, to] = share(tokens, thread);
    for (size_t token = from; token < to; ++token) {
        kernels_.norm(change_ + token * shape_.hidden, post, shape_.norm_eps, shape_.hidden, row);
        for (size_t i = 0; i < shape_.hidden; ++i) x[token * shape_.hidden + i] += row[i] * shape_.residual_scale;
    }
    pool_.meet();
}

void Engine::merge(size_t index, float* x, const float* attended) {
    Layer& layer = layers_[index];
    Matrix& output = layer.matrices[kO];
    const size_t width = output.extent.columns;
    pool_.run([&](size_t thread) {
        const auto [row, spare] = rows_[thread];
        for (size_t first = 0; first < tokens_; first += kChunk) {
            const size_t count = std::min(kChunk, tokens_ - first);
            const auto [from, to] = share(count, thread);
            for (size_t token = from; token < to; ++token) {
                const float* inputs = attended + (first + token) * width;
                if (layer.vectors[kAttnSub]) {
                    kernels_.norm(inputs, layer.vectors[kAttnSub], shape_.sub_norm_eps, width, row);
                    inputs = row;
                }
                keep(first + token, output, inputs_[0], prepare(output, inputs_[0], inputs, token, spare));
            }
            pool_.meet();
            finish_residual(thread, index, output, inputs_[0], layer.vectors[kAttnPost], x, first, count);
        }
    });
}

void Engine::feed(size_t index, float* x) {
    Layer& layer = layers_[index];
    Matrix &gate = layer.matrices[kGate], &up = layer.matrices[kUp], &down = layer.matrices[kDown];
    const size_t hidden = shape_.hidden, ffn = shape_.ffn;
    const bool shared = shares_inputs(gate, up);
    const Work work[2] = {{&gate, &inputs_[0], gate_, ffn, false}, {&up, &inputs_[shared ? 0 : 1], up_, ffn, false}};
    pool_.run([&](size_t thread) {
        const auto [row, spare] = rows_[thread];
        for (size_t first = 0; first < tokens_; first += kChunk) {
            const size_t count = std::min(kChunk, tokens_ - first);
            const auto [from, to] = share(count, thread);
            for (size_t token = from; token < to; ++token) {
                kernels_.norm(x + (first + token) * hidden, layer.vectors[kFfnNorm], shape_.norm_eps, hidden, row);
                keep(first + token, gate, inputs_[0], prepare(gate, inputs_[0], row, token, spare));
                if (!shared) keep(first + token, up, inputs_[1], prepare(up, inputs_[1], row, token, spare));
            }
            pool_.meet();
            multiply(thread, work, count);
            reduce(thread, index, work, first);
            pool_.meet();
            spread(thread, index, work, first);
            for (size_t token = from; token < to; ++token) {
                const float* inner = gate_ + token * ffn;
                kernels_.activate(shape_.gate, gate_ + token * ffn, up_ + token * ffn, ffn);
                if (layer.vectors[kFfnSub]) {
                    kernels_.norm(inner, layer.vectors[kFfnSub], shape_.sub_norm_eps, ffn, row);
                    inner = row;
                }
                keep(first + token, down, inputs_[2], prepare(down, inputs_[2], inner, token, spare));
            }
            pool_.meet();
            finish_residual(thread, index, down, inputs_[2], layer.vectors[kFfnPost], x, first, count);
        }
    });
}

void Engine::head(const Matrix& matrix, const float* states, std::span<const Reach> reaches, float* logits) {
    const size_t columns = matrix.extent.columns, rows = matrix.extent.rows, tokens = reaches.size();
    const bool planes = matrix.kind == Matrix::Kind::planes;
    const HeadWeights weights{matrix.extent, matrix.data, matrix.scale, matrix.rest};
    const HeadInputs inputs{inputs_[0].digits, inputs_[0].divisors, inputs_[0].starts};
    head_.begin();
    pool_.run([&](size_t thread) {
        for (size_t first = 0; first < tokens; first += kChunk) {
            const size_t count = std::min(kChunk, tokens - first);
            const auto [from, to] = share(count, thread);
            for (size_t token = from; token < to; ++token)
                prepare(matrix, inputs_[0], states + (first + token) * columns, token, nullptr);
            pool_.meet();
            const Work work{&matrix, &inputs_[0], logits + first * rows, rows, false};
            if (planes)
                head_.multiply(thread, weights, inputs, reaches.subspan(first, count), work.out);
            else
                multiply(thread, {&work, 1}, count);
            pool_.meet();
        }
    });
}

}  // namespace bitnet
