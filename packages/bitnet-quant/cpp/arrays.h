// Arrays from Python, and the checks of them that both halves of the module make.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <string>

#include "isa.h"

namespace nb = nanobind;

namespace bitnet {

template <typename T, size_t Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;

inline void require(bool fits, const std::string& message) {
    if (!fits) throw nb::value_error(message.c_str());
}

// A size that an array must have; the message names the array.
inline void require_size(const char* name, size_t size, size_t expected) {
    require(size == expected,
            std::string(name) + ": expected " + std::to_string(expected) + " elements, got " + std::to_string(size));
}

template <typename T>
void require_shape(const char* name, const Array<T, 2>& array, size_t rows, size_t columns) {
    require(array.shape(0) == rows && array.shape(1) == columns,
            std::string(name) + ": expected shape (" + std::to_string(rows) + ", " + std::to_string(columns) +
                "), got (" + std::to_string(array.shape(0)) + ", " + std::to_string(array.shape(1)) + ")");
}

inline const Kernels& kernels_of(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : usable()) {
        if (name == kernels->name) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw nb::value_error(("no instruction set '" + name + "' here; there are " + names).c_str());
}

template <typename T>
T choice(const std::string& name, std::initializer_list<const char*> names) {
    size_t index = 0;
    for (const char* known : names) {
        if (name == known) return T(index);
        ++index;
    }
    throw nb::value_error(("unknown name '" + name + "'").c_str());
}

inline Float float_of(const std::string& name) { return choice<Float>(name, {"float16", "bfloat16", "float32"}); }
inline Held held_of(const std::string& name) { return choice<Held>(name, {"f16", "f32", "int8"}); }
inline Gate gate_of(const std::string& name) { return choice<Gate>(name, {"relu2", "silu", "gelu"}); }

}  // namespace bitnet
