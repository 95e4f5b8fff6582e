// What Python sees: typed arrays in, everything checked before a pointer is used, and the work without the lock.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>

#include "arrays.h"
#include "matrices.h"

using namespace nb::literals;

namespace bitnet {

void define_kernels(nb::module_& module);  // in kernel_table.cpp

namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;

// The engine with all that it points into. Calls exclude each other: one that waits for another is slow, not wrong.
class Runner {
public:
    Runner(const std::string& isa, size_t threads, const Shape& shape)
        : engine_(checked(isa, threads, shape), threads, shape) {}

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
        const size_t q = shape.heads * shape.head_size, kv = shape.kv_heads * shape.head_size;
        const size_t rows[] = {q, kv, kv, shape.hidden, shape.ffn, shape.ffn, shape.hidden};
        const size_t columns[] = {shape.hidden, shape.hidden, shape.hidden, q, shape.hidden, shape.hidden, shape.ffn};
        require(layer < shape.layers && which < kProjections, "no such layer or projection");
        require_size("rows", placed.matrix.extent.rows, rows[which]);
        require_size("columns", placed.matrix.extent.columns, columns[which]);
        Matrix matrix = placed.matrix;
        check_order(matrix);
        if (norm) {
            require_size("norm", norm->size(), columns[which]);
            matrix.norm = norm->data();
            keep(nb::ndarray<>(*norm));
        }
        if (bias) {
            require_size("bias", bias->size(), rows[which]);
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
        return pack_ternary(engine_.pool(), found, {from.data(), from.shape(0), from.shape(1), from.stride(0)}, extent,
                            out.data());
    }

    void pack_rows(Array<const uint8_t, 1> from, const std::string& kind, Array<uint8_t, 1> out, Array<float, 1> scale,
                   size_t rows, size_t columns) {
        const Float stored = float_of(kind);
        const Extent extent = extent_of(rows, columns, 1);
        require_size("from", from.size(), rows * columns * width_of(stored));
        require_size("out", out.size(), extent.groups() * kRows * extent.padded());
        require_size("scale", scale.size(), extent.groups() * kRows);
        const std::lock_guard<std::mutex> lock(mutex_);
        pack_bytes(engine_.pool(), engine_.kernels(), from.data(), stored, rows, columns,
                   reinterpret_cast<int8_t*>(out.data()), scale.data());
    }

    void pack_in_planes(Array<const uint8_t, 1> from, const std::string& kind, Array<uint8_t, 1> out,
                        Array<float, 1> scale, Array<float, 2> rest, size_t rows, size_t columns) {
        const Float stored = float_of(kind);
        const Extent extent = extent_of(rows, columns, 1, Order::planes);
        require_size("from", from.size(), rows * columns * width_of(stored));
        require_size("out", out.size(), extent.groups() * extent.group_bytes());
        require_size("scale", scale.size(), extent.groups() * kRows);
        require_shape("rest", rest, kRests, extent.groups() * kRows);
        const std::lock_guard<std::mutex> lock(mutex_);
        pack_planes(engine_.pool(), engine_.kernels(), from.data(), stored, extent, out.data(), scale.data(),
                    rest.data());
    }

private:
    static const Kernels& checked(const std::string& isa, size_t threads, const Shape& shape) {
        require(threads >= 1 && threads <= 1024, "threads: expected 1 to 1024, got " + std::to_string(threads));
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
    }

    Engine engine_;
    std::mutex mutex_;
    Matrix embedding_, head_;
    const float* norm_ = nullptr;
    bool ready_ = false;
    std::vector<nb::ndarray<>> owners_;
};

void define_runner(nb::module_& module) {
    nb::class_<Shape>(module, "Shape")
        .def(
            "__init__",
            [](Shape* self, size_t hidden, size_t ffn, size_t layers, size_t heads, size_t kv_heads, size_t head_size,
               const std::string& gate, bool wide_pages, double norm_eps, double sub_norm_eps, float query_scale,
               float embedding_scale, float residual_scale) {
                new (self) Shape{hidden,        ffn,        layers,   heads,        kv_heads,    head_size,
                                 gate_of(gate), wide_pages, norm_eps, sub_norm_eps, query_scale, embedding_scale,
                                 residual_scale};
            },
            nb::kw_only(), "hidden"_a, "ffn"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_size"_a, "gate"_a,
            "wide_pages"_a, "norm_eps"_a, "sub_norm_eps"_a, "query_scale"_a, "embedding_scale"_a, "residual_scale"_a);
    nb::class_<Placed>(module, "Matrix")
        .def_static("bytes", bytes_matrix, "data"_a.noconvert(), "scale"_a.noconvert(), nb::kw_only(), "rows"_a,
                    "columns"_a)
        .def_static("planes", planes_matrix, "data"_a.noconvert(), "scale"_a.noconvert(), "rest"_a.noconvert(),
                    nb::kw_only(), "rows"_a, "columns"_a)
        .def_static("dense", dense_matrix, "data"_a.noconvert(), nb::kw_only(), "kind"_a, "rows"_a, "columns"_a);
    nb::class_<Runner>(module, "Engine")
        .def(nb::init<const std::string&, size_t, const Shape&>(), "isa"_a, "threads"_a, "shape"_a)
        .def("ternary_bytes", &Runner::ternary_bytes, nb::kw_only(), "rows"_a, "columns"_a, "segments"_a)
        .def("ternary", &Runner::ternary_matrix, "data"_a.noconvert(), "scale"_a.noconvert(), nb::kw_only(), "rows"_a,
             "columns"_a, "segments"_a, "each"_a, "floats"_a)
        .def("set_matrix", &Runner::set_matrix, "layer"_a, "which"_a, "matrix"_a, "norm"_a.noconvert().none(),
             "bias"_a.noconvert().none())
        .def("set_vector", &Runner::set_vector, "layer"_a, "which"_a, "values"_a.noconvert())
        .def("set_ends", &Runner::set_ends, "embedding"_a, "head"_a, "norm"_a.noconvert())
        .def("set_rope", &Runner::set_rope, "layer"_a, "rope"_a, "window"_a)
        .def("add_rope", &Runner::add_rope, "frequencies"_a.noconvert(), "magnitude"_a)
        .def("scratch_bytes", &Runner::scratch_bytes)
        .def("use_scratch", &Runner::use_scratch, "memory"_a.noconvert())
        .def("pack", &Runner::pack, Released(), "data"_a.noconvert(), "layout"_a, "out"_a.noconvert(), nb::kw_only(),
             "rows"_a, "columns"_a, "segments"_a)
        .def("pack_rows", &Runner::pack_rows, Released(), "data"_a.noconvert(), "kind"_a, "out"_a.noconvert(),
             "scale"_a.noconvert(), nb::kw_only(), "rows"_a, "columns"_a)
        .def("splits", &Runner::splits, "columns"_a)
        .def("pack_planes", &Runner::pack_in_planes, Released(), "data"_a.noconvert(), "kind"_a, "out"_a.noconvert(),
             "scale"_a.noconvert(), "rest"_a.noconvert(), nb::kw_only(), "rows"_a, "columns"_a)
        .def("begin", &Runner::begin, Released(), "sequences"_a.noconvert(), "pages"_a.noconvert())
        .def("embed", &Runner::embed, Released(), "ids"_a.noconvert(), "x"_a.noconvert())
        .def("project", &Runner::project, Released(), "layer"_a, "x"_a.noconvert(), "queries"_a.noconvert(),
             "keys"_a.noconvert(), "values"_a.noconvert())
        .def("attend", &Runner::attend, Released(), "layer"_a, "queries"_a.noconvert(), "keys"_a.noconvert(),
             "values"_a.noconvert(), "attended"_a.noconvert())
        .def("merge", &Runner::merge, Released(), "layer"_a, "x"_a.noconvert(), "attended"_a.noconvert())
        .def("feed", &Runner::feed, Released(), "layer"_a, "x"_a.noconvert())
        .def("states", &Runner::states, Released(), "x"_a.noconvert(), "rows"_a.noconvert(), "out"_a.noconvert())
        .def("head", &Runner::head, Released(), "states"_a.noconvert(), "reaches"_a.noconvert(), "logits"_a.noconvert())
        .def("rows_read", &Runner::rows_read);
}

}  // namespace
}  // namespace bitnet

NB_MODULE(_native, module) {
    using namespace bitnet;
    module.doc() = "The compiled half of bitnet_quant.cpu.";
    module.attr("POSITIONS") = kPositions;
    module.attr("ROWS") = kRows;
    module.attr("COLUMNS") = kColumns;
    module.attr("PLANE_COLUMNS") = kPlaneColumns;
    module.attr("RESTS") = kRests;
    module.def("usable", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable()) names.emplace_back(kernels->name);
        return names;
    });
    module.def("built", [] {
        const std::vector<const char*> names = built();
        return std::vector<std::string>(names.begin(), names.end());
    });
    module.def("head_bytes", &head_bytes, "head_size"_a, "wide"_a);
    define_runner(module);
    define_kernels(module);
}
