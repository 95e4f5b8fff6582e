// Adapters from Python: arrays are checked against the shape of the model, and live as long as the adapter.
#include <nanobind/stl/string.h>

#include "arrays.h"
#include "engine.h"

using namespace nb::literals;

namespace bitnet {
namespace {

// `down` and `up` as bytes: their sizes say whether they are float16 or float32.
void set_change(Adapter& adapter, size_t layer, size_t which, const Array<const uint8_t, 1>& down,
                const Array<const uint8_t, 1>& up, const Array<const float, 1>& scale) {
    require(layer < adapter.layers.size() && which < kProjections, "no such layer or projection");
    const auto [rows, columns] = adapter.extents[which];
    const size_t rank = scale.size(), whole = padded_to(rows, kRows);
    const Float down_kind = down.size() == 2 * rank * columns ? Float::f16 : Float::f32;
    const Float up_kind = up.size() == 2 * rank * whole ? Float::f16 : Float::f32;
    require_size("down", down.size(), rank * columns * width_of(down_kind));
    require_size("up", up.size(), rank * whole * width_of(up_kind));
    adapter.layers[layer][which] = {rank, down_kind, up_kind, down.data(), up.data(), scale.data()};
}

}  // namespace

void define_adapters(nb::module_& module) {
    nb::class_<Adapter>(module, "Adapter")
        .def(
            "__init__",
            [](Adapter* self, const Shape& shape) {
                new (self) Adapter{extents_of(shape), {shape.layers, std::array<Change, kProjections>{}}};
            },
            "shape"_a)
        .def("set", &set_change, "layer"_a, "which"_a, "down"_a.noconvert(), "up"_a.noconvert(), "scale"_a.noconvert(),
             nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>());
}

}  // namespace bitnet
