// A model's weights as the kernels have them, and the coarse operations over them.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "adapters.h"
#include "head.h"
#include "kernels.h"
#include "layout.h"
#include "pool.h"

namespace bitnet {

constexpr size_t kChunk = 288;  // tokens between two readings of the weights: their digits stay in the cache

inline size_t padded_to(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }

// What the operations need to know of a model.
struct Shape {
    size_t hidden = 0, ffn = 0, layers = 0, heads = 0, kv_heads = 0, head_size = 0;
    Gate gate = Gate::relu2;
    Held held = Held::f16;  // keys and values
    double norm_eps = 0, sub_norm_eps = 0;
    float query_scale = 1, embedding_scale = 1, residual_scale = 1;
};

// A weight that tokens are multiplied by; the memory is the caller's.
struct Matrix {
    enum class Kind : uint8_t { none, ternary, bytes, planes, dense };
    Kind kind = Kind::none;
    Float stored = Float::f32;  // of a dense one
    size_t planes = 1;          // int8 digits of an input: 1, or 3 for inputs that are floats
    Extent extent{0, 0, 1};
    const uint8_t* data = nullptr;
    const float* scale = nullptr;  // of each segment: one, or one a row of all groups
    bool scale_each = false;
    const float* norm = nullptr;  // of the projection's own input
    const float* bias = nullptr;
    const float* rest = nullptr;  // of one in planes: see planes.h
};

// The seven projections of a layer, and its norms; the sub norms stand before o and down.
enum Projection : size_t { kQ, kK, kV, kO, kGate, kUp, kDown, kProjections };
enum Vector : size_t { kAttnNorm, kFfnNorm, kAttnSub, kFfnSub, kQNorm, kKNorm, kAttnPost, kFfnPost, kVectors };

inline Extents extents_of(const Shape& shape) {
    const size_t q = shape.heads * shape.head_size, kv = shape.kv_heads * shape.head_size;
    return {{{q, shape.hidden},
             {kv, shape.hidden},
             {kv, shape.hidden},
             {shape.hidden, q},
             {shape.ffn, shape.hidden},
             {shape.ffn, shape.hidden},
             {shape.hidden, shape.ffn}}};
}

struct Layer {
    std::array<Matrix, kProjections> matrices;
    std::array<const float*, kVectors> vectors{};
    size_t rope = 0;
    int64_t window = 0;  // positions seen back, 0 for all
};

struct Rope {
    std::vector<double> frequencies;
    double magnitude;
    std::vector<float> cosines{}, sines{};  // of the batch: (tokens, pairs)
};

// The tokens of a batch that belong to one sequence, and where its table of pages begins.
struct Sequence {
    size_t first, count;
    int64_t start;
    size_t table;
};

// Bytes of keys and values of one head in a page; heads of a layer, then layers, follow each other.
inline size_t head_bytes(size_t head_size, Held held) {
    const size_t scales = held == Held::int8 ? 2 * sizeof(float) : 0;  // of a position
    return kPositions * (width_of(held) * (head_size + padded_to(head_size, 16)) + scales);
}

class Engine {
public:
    Engine(const Kernels& kernels, size_t threads, const Shape& shape);

    Pool& pool() { return pool_; }
    const Kernels& kernels() const { return kernels_; }
    const Shape& shape() const { return shape_; }
    Layer& layer(size_t index) { return layers_.at(index); }
    void add_rope(std::vector<double> frequencies, double magnitude);
    size_t ropes() const { return ropes_.size(); }

    // Where the operations keep what passes between their steps: gives the bytes that it takes, and uses `memory`
    // unless it is null. To be called when all weights are set.
    size_t lay_out(uint8_t* memory, const Matrix& head);

    // What the next operations are about: each sequence's tokens, and the pages of all.
    void begin(std::vector<Sequence> sequences, std::vector<uint8_t*> pages, size_t tokens);
    size_t tokens() const { return tokens_; }
    size_t sequences() const { return sequences_.size(); }

    // Which adapter each sequence of the batch runs with, null for none; they are used until the next batch begins.
    // Gives the rows of `kept_columns` floats that `keep_in` must then be given.
    size_t adapt(const std::vector<const Adapter*>& adapters);
    bool fits(const std::vector<const Adapter*>& adapters) const;  // all of them are of this model
    void keep_in(float* memory) { adapted_.inputs = memory; }
    size_t kept_rows() const { return adapted_.held; }
    size_t kept_columns() const;
    bool keeps() const { return adapted_.inputs || !adapted_.held; }

    void embed(const Matrix& embedding, const int32_t* ids, size_t tokens, float* x);
    void project(size_t layer, const float* x, float* queries, float* keys, float* values);
    void attend(size_t layer, const float* queries, const float* keys, const float* values, float* attended);
    void merge(size_t layer, float* x, const float* attended);
    void feed(size_t layer, float* x);
    // Logits within the reach of each token are what they are without one, to the bit; others may be minus infinity.
    void head(const Matrix& matrix, const float* states, std::span<const Reach> reaches, float* logits);
    const Head& last_head() const { return head_; }

private:
    // Rows of inputs as a matrix multiplies them: floats, or digits of one or more planes.
    struct Inputs {
        float* x;         // (chunk, columns)
        int8_t* digits;   // (chunk * planes, padded)
        float* divisors;  // (chunk)
        int32_t* starts;  // (segments, chunk * planes): minus the sums of the digits
    };
    struct Work {
        const Matrix* matrix;
        const Inputs* inputs;
        float* out;  // (tokens, stride)
        size_t stride;
        bool add;  // to what stands there, times the residual scale
    };
    struct Scores {  // one thread's part of attention
        float *queries, *mixed, *weights, *peak, *total;
        int64_t *first, *last;
    };
    struct Unit {  // tokens of one sequence that attend together
        size_t sequence, first, count;
    };
    using Range = std::pair<size_t, size_t>;

    Range share(size_t count, size_t thread) const;
    size_t unit_tokens() const;
    const float* prepare(const Matrix& matrix, const Inputs& inputs, const float* x, size_t token, float* row) const;
    void quantize(const Matrix& matrix, const Inputs& inputs, const float* x, size_t token) const;
    void multiply(size_t thread, std::span<const Work> work, size_t tokens) const;
    void multiply_group(size_t thread, const Work& work, size_t group, size_t tokens) const;
    void multiply_tile(const Work& work, size_t group, const uint8_t* expanded, size_t token, size_t count, bool add,
                       float* out, size_t stride) const;
    void multiply_dense(const Work& work, size_t group, size_t token, size_t count, float* out) const;
    void finish_residual(size_t thread, size_t layer, const Matrix& matrix, const Inputs& inputs, const float* post,
                         float* x, size_t first, size_t tokens);
    size_t kept_offset(size_t index) const;
    std::span<const Adapted::Run> runs_of(size_t first) const;
    void keep(size_t token, const Matrix& matrix, const Inputs& inputs, const float* x) const;
    void reduce(size_t thread, size_t layer, std::span<const Work> work, size_t first);
    void spread(size_t thread, size_t layer, std::span<const Work> work, size_t first);
    void spread_groups(const Work& work, size_t part, const Adapted::Run& run, const Change& change, size_t from,
                       size_t to, size_t first);
    float* product(size_t part, size_t slot);
    const Change& change_of(const Adapted::Run& run, size_t layer, const Work& work) const;
    void write_token(size_t layer, size_t token, const Sequence& sequence, const float* keys, const float* values);
    void attend_unit(size_t layer, const Unit& unit, size_t kv_head, const float* queries, float* attended,
                     const Scores& scratch) const;
    void turn(const Rope& rope, size_t token, const float* norm, const float* from, float* to) const;
    size_t head_offset(size_t layer, size_t kv_head) const;

    const Kernels& kernels_;
    const Shape shape_;
    Pool pool_;
    std::vector<Layer> layers_;
    std::vector<Rope> ropes_;
    std::vector<Sequence> sequences_;
    std::vector<uint8_t*> pages_;
    std::vector<Unit> units_;
    Adapted adapted_;
    size_t tokens_ = 0;
    std::atomic<size_t> next_{0};  // of the units and heads that attend
    Inputs inputs_[3]{};
    float *gate_ = nullptr, *up_ = nullptr, *change_ = nullptr;  // (chunk, ffn), (chunk, ffn), (chunk, hidden)
    std::vector<std::pair<float*, float*>> rows_;                // two of the widest rows, a thread
    std::vector<uint8_t*> groups_;                               // an expanded one a thread
    std::vector<Scores> scores_;
    Head head_;
};

}  // namespace bitnet
