// What Python sees.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "arrays.h"
#include "matrices.h"
#include "runner.h"

using namespace nb::literals;

namespace bitnet {

void define_kernels(nb::module_& module);   // in kernel_table.cpp
void define_adapters(nb::module_& module);  // in adapter_changes.cpp

namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

void define_runner(nb::module_& module) {
    nb::class_<Shape>(module, "Shape")
        .def(
            "__init__",
            [](Shape* self, size_t hidden, size_t ffn, size_t layers, size_t heads, size_t kv_heads, size_t head_size,
               const std::string& gate, const std::string& held, double norm_eps, double sub_norm_eps,
               float query_scale, float embedding_scale, float residual_scale) {
                new (self) Shape{hidden,        ffn,           layers,   heads,        kv_heads,    head_size,
                                 gate_of(gate), held_of(held), norm_eps, sub_norm_eps, query_scale, embedding_scale,
                                 residual_scale};
            },
            nb::kw_only(), "hidden"_a, "ffn"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_size"_a, "gate"_a, "held"_a,
            "norm_eps"_a, "sub_norm_eps"_a, "query_scale"_a, "embedding_scale"_a, "residual_scale"_a);
    nb::class_<Placed>(module, "Matrix")
        .def_static("bytes", bytes_matrix, "data"_a.noconvert(), "scale"_a.noconvert(), nb::kw_only(), "rows"_a,
                    "columns"_a)
        .def_static("planes", planes_matrix, "data"_a.noconvert(), "scale"_a.noconvert(), "rest"_a.noconvert(),
                    nb::kw_only(), "rows"_a, "columns"_a)
        .def_static("dense", dense_matrix, "data"_a.noconvert(), nb::kw_only(), "kind"_a, "rows"_a, "columns"_a);
    nb::class_<Runner>(module, "Engine")
        .def(nb::init<const std::string&, size_t, const Shape&, size_t>(), "isa"_a, "threads"_a, "shape"_a, "crew"_a)
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
             "scale"_a.noconvert(), nb::kw_only(), "first"_a = 0, "rows"_a, "columns"_a)
        .def("copy", &Runner::copy, Released(), "data"_a.noconvert(), "out"_a.noconvert())
        .def("splits", &Runner::splits, "columns"_a)
        .def("pack_planes", &Runner::pack_in_planes, Released(), "data"_a.noconvert(), "kind"_a, "out"_a.noconvert(),
             "scale"_a.noconvert(), "rest"_a.noconvert(), nb::kw_only(), "first"_a = 0, "rows"_a, "columns"_a)
        .def("begin", &Runner::begin, Released(), "sequences"_a.noconvert(), "pages"_a.noconvert())
        .def("adapt", &Runner::adapt, "adapters"_a)
        .def("keep_in", &Runner::keep_in, "memory"_a.noconvert())
        .def_prop_ro("kept_columns", [](Runner& self) { return self.engine().kept_columns(); })
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
    module.def(
        "head_bytes", [](size_t size, const std::string& held) { return head_bytes(size, held_of(held)); },
        "head_size"_a, "held"_a);
    define_runner(module);
    define_kernels(module);
    define_adapters(module);
}
