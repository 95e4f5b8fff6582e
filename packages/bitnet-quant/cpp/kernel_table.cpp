#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "arrays.h"

using namespace nb::literals;

namespace bitnet {

// The kernels one by one, for the tests that compare them.
void define_kernels(nb::module_& module) {
    using Table = const Kernels*;
    struct Handle {
        Table table;
    };
    using Sums = void (*)(const uint8_t*, size_t, const int8_t*, size_t, size_t, const int32_t*, int32_t*);
    static constexpr auto sums = [](Sums kernel, size_t most, size_t unit, size_t bytes,
                                    const Array<const uint8_t, 1>& data, const Array<const int8_t, 2>& x,
                                    const Array<const int32_t, 1>& starts, const Array<int32_t, 2>& out) {
        const size_t tokens = x.shape(0), blocks = x.shape(1) / unit;
        require(tokens >= 1 && tokens <= most && x.shape(1) % unit == 0,
                "x: 1 to " + std::to_string(most) + " tokens of whole blocks");
        require_size("data", data.size(), blocks * bytes);
        require_size("starts", starts.size(), tokens);
        require_shape("out", out, tokens, kRows);
        kernel(data.data(), blocks, x.data(), x.shape(1), tokens, starts.data(), out.data());
    };
    nb::class_<Handle>(module, "Kernels")
        .def(
            "__init__", [](Handle* self, const std::string& isa) { new (self) Handle{&kernels_of(isa)}; }, "isa"_a)
        .def_prop_ro("few", [](Handle self) { return self.table->few; })
        .def_prop_ro("columns", [](Handle self) { return columns_of(self.table->order); })
        .def(
            "ternary",
            [](Handle self, Array<const uint8_t, 1> data, Array<const int8_t, 2> x, Array<const int32_t, 1> starts,
               Array<int32_t, 2> out) {
                const Order order = self.table->order;
                sums(self.table->ternary, self.table->few, columns_of(order), bytes_of(order), data, x, starts, out);
            },
            "data"_a.noconvert(), "x"_a.noconvert(), "starts"_a.noconvert(), "out"_a.noconvert())
        .def(
            "expand",
            [](Handle self, Array<const uint8_t, 1> data, Array<uint8_t, 1> out) {
                require(self.table->expand, "the order of these kernels is of two bits already");
                const size_t blocks = data.size() / bytes_of(self.table->order);
                const size_t wide = out.size() / bytes_of(Order::two_bits);
                require_size("data", data.size(), blocks * bytes_of(self.table->order));
                require_size("out", out.size(), wide * bytes_of(Order::two_bits));
                self.table->expand(data.data(), blocks, wide, out.data());
            },
            "data"_a.noconvert(), "out"_a.noconvert())
        .def(
            "bytes",
            [](Handle self, Array<const uint8_t, 1> data, Array<const int8_t, 2> x, Array<const int32_t, 1> starts,
               Array<int32_t, 2> out) {
                sums(self.table->bytes, kTokens, kColumns, kRows * kColumns, data, x, starts, out);
            },
            "data"_a.noconvert(), "x"_a.noconvert(), "starts"_a.noconvert(), "out"_a.noconvert())
        .def(
            "dense",
            [](Handle self, Array<const uint8_t, 2> data, const std::string& kind, Array<const float, 2> x,
               Array<float, 2> out) {
                const Float stored = float_of(kind);
                require(data.shape(0) <= kRows && x.shape(0) >= 1 && x.shape(0) <= kTokens,
                        "at most 64 rows, 6 tokens");
                require_size("columns", data.shape(1), x.shape(1) * width_of(stored));
                require_shape("out", out, x.shape(0), kRows);
                self.table->dense(data.data(), stored, data.shape(1), data.shape(0), x.shape(1), x.data(), x.shape(1),
                                  x.shape(0), out.data());
            },
            "data"_a.noconvert(), "kind"_a, "x"_a.noconvert(), "out"_a.noconvert())
        .def(
            "spread",
            [](Handle self, Array<const uint8_t, 2> rows, const std::string& kind, Array<const float, 2> weights,
               Array<float, 2> out) {
                const Float stored = float_of(kind);
                require(weights.shape(0) >= 1 && weights.shape(0) <= kTokens, "weights: 1 to 6 tokens");
                require(stored != Float::bf16, "rows are float16 or float32");
                require_shape("rows", rows, weights.shape(1), kRows * width_of(stored));
                require_shape("out", out, weights.shape(0), kRows);
                self.table->spread(rows.data(), stored, weights.shape(1), weights.data(), weights.shape(1),
                                   weights.shape(0), out.data());
            },
            "rows"_a.noconvert(), "kind"_a, "weights"_a.noconvert(), "out"_a.noconvert())
        .def(
            "finish",
            [](Handle self, Array<const int32_t, 2> values, Array<const float, 1> scale, float divisor, bool add,
               Array<float, 1> out) {
                require_shape("sums", values, values.shape(0), kRows);
                require(values.shape(0) >= 1 && (scale.size() == 1 || scale.size() == kRows), "one scale, or 64");
                require_size("out", out.size(), kRows);
                self.table->finish(values.data(), values.shape(0), scale.data(), scale.size() > 1, divisor, add,
                                   out.data());
            },
            "sums"_a.noconvert(), "scale"_a.noconvert(), "divisor"_a, "add"_a, "out"_a.noconvert())
        .def(
            "norm",
            [](Handle self, Array<const float, 1> x, Array<const float, 1> weight, double eps, Array<float, 1> out) {
                require_size("weight", weight.size(), x.size());
                require_size("out", out.size(), x.size());
                self.table->norm(x.data(), weight.data(), eps, x.size(), out.data());
            },
            "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a, "out"_a.noconvert())
        .def(
            "largest", [](Handle self, Array<const float, 1> x) { return self.table->largest(x.data(), x.size()); },
            "x"_a.noconvert())
        .def(
            "quantize",
            [](Handle self, Array<const float, 1> x, float scale, Array<int8_t, 1> out) {
                require_size("out", out.size(), x.size());
                return self.table->quantize(x.data(), scale, x.size(), out.data());
            },
            "x"_a.noconvert(), "scale"_a, "out"_a.noconvert())
        .def(
            "split",
            [](Handle self, Array<const float, 1> x, float scale, Array<int8_t, 2> out) {
                const size_t planes = out.shape(0) == 2 ? 2 : 3;
                require_shape("out", out, planes, x.size());
                std::vector<int32_t> found(planes);
                self.table->split(x.data(), scale, x.size(), planes, out.data(), x.size(), found.data());
                return found;
            },
            "x"_a.noconvert(), "scale"_a, "out"_a.noconvert())
        .def(
            "activate",
            [](Handle self, const std::string& kind, Array<float, 1> gate, Array<const float, 1> up) {
                require_size("up", up.size(), gate.size());
                self.table->activate(gate_of(kind), gate.data(), up.data(), gate.size());
            },
            "kind"_a, "gate"_a.noconvert(), "up"_a.noconvert())
        .def(
            "widen",
            [](Handle self, Array<const uint8_t, 1> data, const std::string& kind, float scale, Array<float, 1> out) {
                require_size("data", data.size(), out.size() * width_of(float_of(kind)));
                self.table->widen(data.data(), float_of(kind), scale, out.size(), out.data());
            },
            "data"_a.noconvert(), "kind"_a, "scale"_a, "out"_a.noconvert())
        .def(
            "narrow",
            [](Handle self, Array<const float, 1> x, Array<uint16_t, 1> out) {
                require_size("out", out.size(), x.size());
                self.table->narrow(x.data(), x.size(), out.data());
            },
            "x"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace bitnet
