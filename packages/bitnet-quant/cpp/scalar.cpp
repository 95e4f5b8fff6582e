// Every kernel in its obvious form: the measure of the others, and what runs where none of them does.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace bitnet {
namespace {

constexpr float kLargestHalf = 65504.0f;

float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = float(fraction) * 0x1p-24f;
    return sign ? -small : small;
}

uint16_t to_half(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    const float size = std::fabs(value);
    if (size != size) return uint16_t(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (size >= kLargestHalf) return uint16_t(sign | 0x7bff);
    if (size < 0x1p-14f) return uint16_t(sign | uint16_t(std::nearbyint(size * 0x1p24f)));
    const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
    return uint16_t(sign | ((rounded >> 13) - (112 << 10)));
}

float stored(const uint8_t* data, Float kind, size_t index) {
    if (kind == Float::f32) {
        float value;
        std::memcpy(&value, data + 4 * index, sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, data + 2 * index, sizeof half);
    return kind == Float::f16 ? from_half(half) : float_of_bits(uint32_t(half) << 16);
}

void ternary(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
             int32_t* out) {
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < kRows; ++row) {
            int32_t sum = start[token];
            for (size_t column = 0; column < blocks * 16; ++column) {
                const size_t field = column % 16 / 4, byte = column / 16 * 256 + 4 * row + column % 4;
                sum += (group[byte] >> 2 * field & 3) * x[token * stride + column];
            }
            out[token * kRows + row] = sum;
        }
}

void bytes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t*,
           int32_t* out) {
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < kRows; ++row) {
            int32_t sum = 0;
            for (size_t column = 0; column < blocks * kColumns; ++column)
                sum += int8_t(group[column / 4 * 256 + 4 * row + column % 4]) * x[token * stride + column];
            out[token * kRows + row] = sum;
        }
}

// Column `column` of a row of nibbles, and of a row of a plane.
unsigned nibble_at(const uint8_t* row, size_t column) {
    return row[column / 128 * 64 + column % 64] >> (column % 128 / 64 * 4) & 15;
}

unsigned bit_at(const uint8_t* row, size_t plane, size_t column) {
    const size_t b = column % 128 / 16;
    return row[column / 128 * 16 + column % 16] >> ((b + plane) % 4 + b / 4 * 4) & 1;
}

void coarse(const uint8_t* nibbles, const uint8_t* bits, size_t blocks, const int8_t* x, size_t stride, size_t tokens,
            int32_t* out) {
    const size_t columns = blocks * kPlaneColumns;
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < kRows; ++row) {
            int32_t sum = 0;
            for (size_t column = 0; column < columns; ++column) {
                unsigned number = nibble_at(nibbles + row * columns / 2, column);
                if (bits) number = 2 * number + bit_at(bits + row * columns / 8, 0, column);
                sum += int32_t(number) * x[token * stride + column];
            }
            out[token * kRows + row] = sum;
        }
}

void plane_bits(const uint8_t* const* rows, size_t count, size_t plane, size_t blocks, const int8_t* x, size_t stride,
                int32_t* out) {
    for (size_t row = 0; row < count; ++row)
        for (size_t token = 0; token < 2; ++token) {
            int32_t sum = 0;
            for (size_t column = 0; column < blocks * kPlaneColumns; ++column)
                sum += int32_t(bit_at(rows[row], plane, column)) * x[token * stride + column];
            out[2 * row + token] = sum;
        }
}

void whole(const uint8_t* nibbles, const uint8_t* bits, size_t next, size_t blocks, const int8_t* x, size_t stride,
           size_t tokens, const int32_t* start, int32_t* sums, uint8_t* scratch) {
    const size_t columns = blocks * kPlaneColumns;
    for (size_t row = 0; row < kRows; ++row) {
        for (size_t column = 0; column < columns; ++column) {
            unsigned number = nibble_at(nibbles + row * columns / 2, column);
            for (size_t plane = 0; plane < kPlanes; ++plane)
                number = 2 * number + bit_at(bits + plane * next + row * columns / 8, plane, column);
            scratch[column] = uint8_t(number);
        }
        for (size_t token = 0; token < tokens; ++token) {
            int32_t sum = start[token] * 128;
            for (size_t column = 0; column < columns; ++column) sum += scratch[column] * x[token * stride + column];
            sums[token * kRows + row] = sum;
        }
    }
}

#include "planes_packing.h"

constexpr PlaneKernels kPlaneKernels = {coarse, plane_bits, whole, place_planes};

void dense(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
           size_t stride, size_t tokens, float* out) {
    for (size_t token = 0; token < tokens; ++token)
        for (size_t row = 0; row < rows; ++row) {
            double sum = 0;
            for (size_t column = 0; column < columns; ++column)
                sum += double(stored(data + row * row_bytes, kind, column)) * x[token * stride + column];
            out[token * kRows + row] = float(sum);
        }
}

void spread(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
            float* out) {
    for (size_t token = 0; token < tokens; ++token)
        for (size_t i = 0; i < kRows; ++i) {
            double sum = 0;
            for (size_t r = 0; r < rank; ++r)
                sum += double(stored(rows, kind, r * kRows + i)) * weights[token * stride + r];
            out[token * kRows + i] = float(sum);
        }
}

void finish(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add, float* out) {
    for (size_t row = 0; row < kRows; ++row) {
        double sum = 0;
        for (size_t plane = 0; plane < planes; ++plane) sum = sum * 256 + sums[plane * kRows + row];
        const float value = float(sum) * (scale[row * step] / divisor);
        out[row] = add ? out[row] + value : value;
    }
}

void norm(const float* x, const float* weight, double eps, size_t count, float* out) {
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += double(x[i]) * x[i];
    const float inverse = float(1.0 / std::sqrt(sum / double(count) + eps));
    for (size_t i = 0; i < count; ++i) out[i] = x[i] * inverse * weight[i];
}

float largest(const float* x, size_t count) {
    uint32_t most = 0;  // as bits, magnitudes are in order, and a NaN is above them all
    for (size_t i = 0; i < count; ++i) {
        const uint32_t bits = bits_of_float(x[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return float_of_bits(most);
}

// The nearest integer within ±limit; a NaN, of which no integer is the nearest, as -limit.
int32_t rounded(float value, float limit) {
    if (!(value > -limit)) return int32_t(-limit);
    return value < limit ? int32_t(std::nearbyint(value)) : int32_t(limit);
}

int32_t quantize(const float* x, float scale, size_t count, int8_t* out) {
    int32_t sum = 0;
    for (size_t i = 0; i < count; ++i) {
        out[i] = int8_t(rounded(x[i] * scale, 127));
        sum += out[i];
    }
    return sum;
}

void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums) {
    for (size_t plane = 0; plane < planes; ++plane) sums[plane] = 0;
    for (size_t i = 0; i < count; ++i) {
        int32_t rest = rounded(x[i] * scale, largest_of(planes));
        for (size_t plane = planes; plane-- > 0;) {
            const int8_t digit = int8_t(rest & 255);
            rest = (rest - digit) / 256;
            out[plane * stride + i] = digit;
            sums[plane] += digit;
        }
    }
}

float activated(Gate kind, float value) {
    if (kind == Gate::relu2) return value > 0 || value != value ? value * value : 0.0f;
    const double wide = value;
    if (kind == Gate::silu) return float(wide / (1.0 + std::exp(-wide)));
    const double inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide);
    return float(0.5 * wide * (1.0 + std::tanh(inner)));
}

void activate(Gate kind, float* gate, const float* up, size_t count) {
    for (size_t i = 0; i < count; ++i) gate[i] = activated(kind, gate[i]) * up[i];
}

void widen(const uint8_t* data, Float kind, float scale, size_t count, float* out) {
    for (size_t i = 0; i < count; ++i) out[i] = stored(data, kind, i) * scale;
}

void narrow(const float* x, size_t count, uint16_t* out) {
    for (size_t i = 0; i < count; ++i) out[i] = to_half(x[i]);
}

// What a page holds, as it stands there.
float held(const uint8_t* data, Held kind, size_t index) {
    if (kind == Held::int8) return float(int8_t(data[index]));
    return stored(data, kind == Held::f32 ? Float::f32 : Float::f16, index);
}

// One page for one row: positions from `from` to before `to` of it.
void attend_page(const Attention& call, size_t row, const uint8_t* keys, size_t from, size_t to) {
    const float* query = call.queries + row * call.padded;
    const uint8_t* values = keys + width_of(call.held) * call.size * kPositions;
    const uint8_t* scales = values + width_of(call.held) * call.padded * kPositions;  // where there are any
    float *mixed = call.mixed + row * call.padded, *weights = call.weights + row * kPositions;
    float peak = call.peak[row];
    for (size_t at = from; at < to; ++at) {
        float score = 0;
        for (size_t i = 0; i < call.size; ++i) score += query[i] * held(keys, call.held, i * kPositions + at);
        if (call.held == Held::int8) score *= stored(scales, Float::f32, at);
        weights[at] = score;
        peak = score > peak ? score : peak;
    }
    const float fade = std::exp(call.peak[row] - peak);
    call.peak[row] = peak;
    call.total[row] *= fade;
    for (size_t i = 0; i < call.size; ++i) mixed[i] *= fade;
    for (size_t at = from; at < to; ++at) {
        const float weight = std::exp(weights[at] - peak);
        call.total[row] += weight;
        const float factor = call.held == Held::int8 ? weight * stored(scales, Float::f32, kPositions + at) : weight;
        for (size_t i = 0; i < call.size; ++i) mixed[i] += factor * held(values, call.held, at * call.padded + i);
    }
}

void attend(const Attention* call) {
    for (size_t row = 0; row < call->rows; ++row) {
        float* mixed = call->mixed + row * call->padded;
        for (size_t i = 0; i < call->size; ++i) mixed[i] = 0;
        call->peak[row] = -INFINITY;
        call->total[row] = 0;
        for (int64_t position = call->first[row]; position < call->last[row];) {
            const size_t from = size_t(position) % kPositions;
            const size_t left = size_t(call->last[row] - position);
            const size_t to = left < kPositions - from ? from + left : kPositions;
            attend_page(*call, row, call->pages[size_t(position) / kPositions] + call->offset, from, to);
            position += int64_t(to - from);
        }
        for (size_t i = 0; i < call->size; ++i) mixed[i] /= call->total[row];
    }
}

#include "packing.h"

uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out) {
    uint32_t all = 0;
    for (size_t column = 0; column < columns; column += 16, out += 256)
        for (size_t row = 0; row < 16; ++row) {
            uint32_t fields[4];
            std::memcpy(fields, digits + row * stride + column, sizeof fields);
            const uint32_t packed = fields[0] | fields[1] << 2 | fields[2] << 4 | fields[3] << 6;
            all |= packed & packed >> 1;
            std::memcpy(out + 4 * row, &packed, sizeof packed);
        }
    return all & 0x55555555;  // both bits of a digit
}

}  // namespace

const Kernels kScalar = {"scalar", Order::two_bits, kTokens, ternary, nullptr,       nullptr,  bytes,
                         dense,    spread,          finish,  norm,    largest,       quantize, split,
                         activate, widen,           narrow,  attend,  unpack_digits, place,    &kPlaneKernels};

}  // namespace bitnet
