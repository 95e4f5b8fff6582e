// The engine as Python sees it: typed arrays in, everything checked before a pointer is used, and the work without the
// lock.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "matrices.h"

namespace bitnet {

// The engine with all that it points into. Calls exclude each other: one that waits for another is slow, not wrong.
class Runner {
public:
    using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;

    // `crew`: how many place weights, until the scratch memory is set.
    Runner(const std::string& isa, size_t threads, const Shape& shape, size_t crew)
        : engine_(checked(isa, threads, shape), threads, shape), crew_(std::make_unique<Pool>(counted(crew))) {}

    Engine& engine() { return engine_; }

    size_t ternary_bytes(size_t rows, size_t columns, size_t segments) const {
        const Extent extent = extent_of(rows, columns, segments, engine_.kernels().order);
        return extent.groups() * extent.group_bytes();
    }

    // A matrix that `pack` filled, in the order of this engine's kernels.
    Placed ternary_matrix(Array<const uint8_t, 1> data, Array<const float, 1> scale, size_t rows, size_t columns,
                          size_t segments, bool each, bool floats) const {
        const Extent extent = extent_of(rows, columns, segments, engine_.kernels().order);
        require_size("data", data.size(), extent.groups() * extent.group_bytes());
        require_size("scale", scale.size(), each ? segments * extent.groups() * kRows : segments);
        Matrix matrix{Matrix::Kind::ternary, Float::f32, floats ? 3u : 1u, extent, data.data(), scale.data(), each};
        return {matrix, {nb::ndarray<>(data), nb::ndarray<>(scale)}};
    }

    void keep(nb::ndarray<> owner) { owners_.push_back(std::move(owner)); }

    void set_matrix(size_t layer, size_t which, const Placed& placed, std::optional<Array<const float, 1>> norm,
                    std::optional<Array<const float, 1>> bias) {
        const Shape& shape = engine_.shape();
        require(layer < shape.layers && which < kProjections, "no such layer or projection");
        const auto [rows, columns] = extents_of(shape)[which];
        require_size("rows", placed.matrix.extent.rows, rows);
        require_size("columns", placed.matrix.extent.columns, columns);
        Matrix matrix = placed.matrix;
        check_order(matrix);
        if (norm) {
            require_size("norm", norm->size(), columns);
            matrix.norm = norm->data();
            keep(nb::ndarray<>(*norm));
        }
        if (bias) {
            require_size("bias", bias->size(), rows);
            matrix.bias = bias->data();
            keep(nb::ndarray<>(*bias));
        }
        for (const nb::ndarray<>& owner : placed.owners) keep(owner);
        engine_.layer(layer).matrices[which] = matrix;
    }

    void set_vector(size_t layer, size_t which, Array<const float, 1> values) {
        const Shape& shape = engine_.shape();
        const size_t sizes[] = {shape.hidden, shape.hidden,    shape.heads * shape.head_size,
                                shape.ffn,    shape.head_size, shape.head_size,
                                shape.hidden, shape.hidden};
        require(layer < shape.layers && which < kVectors, "no such layer or norm");
        require_size("values", values.size(), sizes[which]);
        engine_.layer(layer).vectors[which] = values.data();
        keep(nb::ndarray<>(values));
    }

    void set_ends(const Placed& embedding, const Placed& head, Array<const float, 1> norm) {
        const Shape& shape = engine_.shape();
        require_size("columns", embedding.matrix.extent.columns, shape.hidden);
        require_size("columns", head.matrix.extent.columns, shape.hidden);
        require_size("norm", norm.size(), shape.hidden);
        require(embedding.matrix.kind == Matrix::Kind::ternary || embedding.matrix.kind == Matrix::Kind::dense,
                "an embedding is ternary or of floats");
        require(head.matrix.kind != Matrix::Kind::planes || splits(shape.hidden), "these kernels read no planes");
        check_order(embedding.matrix);
        check_order(head.matrix);
        embedding_ = embedding.matrix;
        head_ = head.matrix;
        norm_ = norm.data();
        for (const Placed* placed : {&embedding, &head})
            for (const nb::ndarray<>& owner : placed->owners) keep(owner);
        keep(nb::ndarray<>(norm));
    }

    void set_rope(size_t layer, size_t rope, int64_t window) {
        require(layer < engine_.shape().layers && rope < engine_.ropes() && window >= 0, "no such layer or rope");
        engine_.layer(layer).rope = rope;
        engine_.layer(layer).window = window;
    }

    void add_rope(Array<const double, 1> frequencies, double magnitude) {
        require(2 * frequencies.size() <= engine_.shape().head_size, "a rope turns at most a whole head");
        engine_.add_rope({frequencies.data(), frequencies.data() + frequencies.size()}, magnitude);
    }

    size_t scratch_bytes() {
        check_complete();
        return engine_.lay_out(nullptr, head_);
    }

    void use_scratch(Array<uint8_t, 1> memory) {
        require(memory.size() >= scratch_bytes(), "the scratch memory is too small");
        require(reinterpret_cast<uintptr_t>(memory.data()) % 64 == 0, "the scratch memory is not aligned to 64 bytes");
        engine_.lay_out(memory.data(), head_);
        keep(nb::ndarray<>(memory));
        crew_.reset();
        ready_ = true;
    }

    // Sequences as (first row, tokens, start position) and their pages' addresses, one table after another.
    void begin(Array<const int64_t, 2> sequences, Array<const uint64_t, 1> pages) {
        check_ready();
        std::vector<Sequence> found;
        size_t tokens = 0, table = 0;
        require(sequences.shape(1) == 3, "sequences: expected three columns");
        for (size_t i = 0; i < sequences.shape(0); ++i) {
            const int64_t *row = sequences.data() + 3 * i, held = row[1] + row[2];
            require(row[0] == int64_t(tokens) && row[1] > 0 && row[2] >= 0,
                    "sequences: rows, counts and starts do not fit");
            found.push_back({size_t(row[0]), size_t(row[1]), row[2], table});
            tokens += size_t(row[1]);
            table += (size_t(held) + kPositions - 1) / kPositions;
        }
        require_size("pages", pages.size(), table);
        std::vector<uint8_t*> addresses(table);
        for (size_t i = 0; i < table; ++i) addresses[i] = reinterpret_cast<uint8_t*>(uintptr_t(pages.data()[i]));
        const std::lock_guard<std::mutex> lock(mutex_);
        engine_.begin(std::move(found), std::move(addresses), tokens);
    }

    size_t adapt(std::vector<const Adapter*> adapters) {
        const std::lock_guard<std::mutex> lock(mutex_);
        require_size("adapters", adapters.size(), engine_.sequences());
        require(engine_.fits(adapters), "an adapter of another model");
        return engine_.adapt(adapters);
    }

    void keep_in(Array<float, 2> memory) {
        require_shape("memory", memory, engine_.kept_rows(), engine_.kept_columns());
        engine_.keep_in(memory.data());
    }

    void embed(Array<const int32_t, 1> ids, Array<float, 2> x) {
        check_ready();
        require_shape("x", x, ids.size(), engine_.shape().hidden);
        for (size_t i = 0; i < ids.size(); ++i)
            require(ids.data()[i] >= 0 && size_t(ids.data()[i]) < embedding_.extent.rows,
                    "a token is not in the vocabulary");
        const std::lock_guard<std::mutex> lock(mutex_);
        engine_.embed(embedding_, ids.data(), ids.size(), x.data());
    }

    void project(size_t layer, Array<const float, 2> x, Array<float, 2> queries, Array<float, 2> keys,
                 Array<float, 2> values) {
        const std::lock_guard<std::mutex> lock(mutex_);
        check_layer(layer);
        require_shape("x", x, engine_.tokens(), engine_.shape().hidden);
        check_heads(queries, keys, values);
        engine_.project(layer, x.data(), queries.data(), keys.data(), values.data());
    }

    void attend(size_t layer, Array<const float, 2> queries, Array<const float, 2> keys, Array<const float, 2> values,
                Array<float, 2> attended) {
        const std::lock_guard<std::mutex> lock(mutex_);
        check_layer(layer);
        check_heads(queries, keys, values);
        require_shape("attended", attended, engine_.tokens(), engine_.shape().heads * engine_.shape().head_size);
        engine_.attend(layer, queries.data(), keys.data(), values.data(), attended.data());
    }

    void merge(size_t layer, Array<float, 2> x, Array<const float, 2> attended) {
        const std::lock_guard<std::mutex> lock(mutex_);
        check_layer(layer);
        require_shape("x", x, engine_.tokens(), engine_.shape().hidden);
        require_shape("attended", attended, engine_.tokens(), engine_.shape().heads * engine_.shape().head_size);
        engine_.merge(layer, x.data(), attended.data());
    }

    void feed(size_t layer, Array<float, 2> x) {
        const std::lock_guard<std::mutex> lock(mutex_);
        check_layer(layer);
        require_shape("x", x, engine_.tokens(), engine_.shape().hidden);
        engine_.feed(layer, x.data());
    }

    void states(Array<const float, 2> x, Array<const int64_t, 1> rows, Array<float, 2> out) {
        check_ready();
        const size_t hidden = engine_.shape().hidden;
        require_shape("x", x, x.shape(0), hidden);
        require_shape("out", out, rows.size(), hidden);
        for (size_t i = 0; i < rows.size(); ++i) {
            const int64_t row = rows.data()[i];
            require(row >= 0 && size_t(row) < x.shape(0), "rows: beyond those of x");
            engine_.kernels().norm(x.data() + size_t(row) * hidden, norm_, engine_.shape().norm_eps, hidden,
                                   out.data() + i * hidden);
        }
    }

    // Reaches as (best, margin) of each state; a best of 0 is all.
    void head(Array<const float, 2> states, Array<const double, 2> reaches, Array<float, 2> logits) {
        const std::lock_guard<std::mutex> lock(mutex_);
        check_ready();
        const size_t tokens = states.shape(0);
        require_shape("states", states, tokens, engine_.shape().hidden);
        require_shape("reaches", reaches, tokens, 2);
        require_shape("logits", logits, tokens, head_.extent.rows);
        std::vector<Reach> wanted(tokens);
        for (size_t i = 0; i < tokens; ++i) {
            const double best = reaches.data()[2 * i];
            wanted[i] = {best >= 1 && best <= double(head_.extent.rows) ? size_t(best) : 0, reaches.data()[2 * i + 1]};
        }
        engine_.head(head_, states.data(), wanted, logits.data());
    }

    std::vector<size_t> rows_read() {
        const std::lock_guard<std::mutex> lock(mutex_);
        const Head::Counts counts = engine_.last_head().counts();
        return {counts.begin(), counts.end()};
    }

    // Whether int8 rows of so many columns lie in planes.
    bool splits(size_t columns) const { return engine_.kernels().planes && columns <= kMostPlaneColumns; }

    bool pack(Bytes from, const std::string& wire, Array<uint8_t, 1> out, size_t rows, size_t columns,
              size_t segments) {
        const Extent extent = extent_of(rows, columns, segments, engine_.kernels().order);
        Wire found;
        require(wire_of(wire, found), "no layout '" + wire + "' in the kernels");
        require(from.shape(1) < 2 || from.stride(1) == 1, "from: the bytes of a run must follow each other");
        const size_t bytes = found == Wire::tq1_0 ? rows * columns / 256 * 52 : rows * columns / 4;
        const bool fits = found == Wire::hf_rows ? from.shape(0) == (rows + 3) / 4 && from.shape(1) == columns
                                                 : from.shape(0) * from.shape(1) == bytes;
        require(fits, "from: its shape does not fit the matrix");
        require_size("out", out.size(), extent.groups() * extent.group_bytes());
        const std::lock_guard<std::mutex> lock(mutex_);
        return pack_ternary(crew(), engine_.kernels(), found,
                            {from.data(), from.shape(0), from.shape(1), from.stride(0)}, extent, out.data());
    }

    // Of a matrix of so many rows and columns, those from `first` on.
    void pack_rows(Array<const uint8_t, 1> from, const std::string& kind, Array<uint8_t, 1> out, Array<float, 1> scale,
                   size_t first, size_t rows, size_t columns) {
        const Extent extent = extent_of(rows, columns, 1);
        const Run run = run_of(from, kind, first, extent);
        require_size("out", out.size(), extent.groups() * kRows * extent.padded());
        require_size("scale", scale.size(), extent.groups() * kRows);
        const std::lock_guard<std::mutex> lock(mutex_);
        pack_bytes(crew(), engine_.kernels(), run, extent, reinterpret_cast<int8_t*>(out.data()), scale.data());
    }

    void pack_in_planes(Array<const uint8_t, 1> from, const std::string& kind, Array<uint8_t, 1> out,
                        Array<float, 1> scale, Array<float, 2> rest, size_t first, size_t rows, size_t columns) {
        const Extent extent = extent_of(rows, columns, 1, Order::planes);
        const Run run = run_of(from, kind, first, extent);
        require_size("out", out.size(), extent.groups() * extent.group_bytes());
        require_size("scale", scale.size(), extent.groups() * kRows);
        require_shape("rest", rest, kRests, extent.groups() * kRows);
        const std::lock_guard<std::mutex> lock(mutex_);
        pack_planes(crew(), engine_.kernels(), run, extent, out.data(), scale.data(), rest.data());
    }

    // What many hands move: a core alone is not given all of the memory's speed.
    void copy(Array<const uint8_t, 1> from, Array<uint8_t, 1> out) {
        require_size("out", out.size(), from.size());
        const std::lock_guard<std::mutex> lock(mutex_);
        crew().run([&](size_t thread) {
            const size_t begin = from.size() * thread / crew().threads();
            std::memcpy(out.data() + begin, from.data() + begin, from.size() * (thread + 1) / crew().threads() - begin);
        });
    }

private:
    static size_t counted(size_t threads) {
        require(threads >= 1 && threads <= 1024, "threads: expected 1 to 1024, got " + std::to_string(threads));
        return threads;
    }

    static const Kernels& checked(const std::string& isa, size_t threads, const Shape& shape) {
        counted(threads);
        require(shape.hidden && shape.ffn && shape.heads && shape.kv_heads && shape.heads % shape.kv_heads == 0,
                "the sizes of a model are above 0, and its heads a multiple of those of keys");
        require(shape.head_size >= 1 && shape.head_size <= kHead, "head_size: expected 1 to 256");
        return kernels_of(isa);
    }

    template <typename T>
    void check_heads(const Array<T, 2>& queries, const Array<T, 2>& keys, const Array<T, 2>& values) {
        const Shape& shape = engine_.shape();
        require_shape("queries", queries, engine_.tokens(), shape.heads * shape.head_size);
        require_shape("keys", keys, engine_.tokens(), shape.kv_heads * shape.head_size);
        require_shape("values", values, engine_.tokens(), shape.kv_heads * shape.head_size);
    }

    void check_order(const Matrix& matrix) {
        require(matrix.kind != Matrix::Kind::ternary || matrix.extent.order == engine_.kernels().order,
                "a matrix was packed for another instruction set");
    }

    void check_complete() {
        for (size_t i = 0; i < engine_.shape().layers; ++i) {
            const Layer& layer = engine_.layer(i);
            for (const Matrix& matrix : layer.matrices)
                require(matrix.kind != Matrix::Kind::none,
                        "a projection of layer " + std::to_string(i) + " is not set");
            require(layer.vectors[kAttnNorm] && layer.vectors[kFfnNorm] && layer.rope < engine_.ropes(),
                    "a norm or the rope of layer " + std::to_string(i) + " is not set");
        }
        require(embedding_.data && head_.data && norm_, "the embedding, the head and the last norm are not set");
    }

    void check_ready() { require(ready_, "no scratch memory is set"); }

    void check_layer(size_t layer) {
        check_ready();
        require(layer < engine_.shape().layers, "no layer " + std::to_string(layer));
        require(engine_.keeps(), "no memory is set for what adapters multiply");
    }

    Pool& crew() { return crew_ ? *crew_ : engine_.pool(); }

    Engine engine_;
    std::unique_ptr<Pool> crew_;
    std::mutex mutex_;
    Matrix embedding_, head_;
    const float* norm_ = nullptr;
    bool ready_ = false;
    std::vector<nb::ndarray<>> owners_;
};

}  // namespace bitnet
