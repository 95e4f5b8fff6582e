// Kernels of floats on Arm, four side by side; the order of every sum is the one written here.
#include "neon.h"
#include "neon_lanes.h"

namespace bitnet::neon {
namespace {

// R rows times T tokens: 4 columns side by side in each sum.
template <Float kind, size_t R, size_t T>
void dense_tile(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    float32x4_t sums[R][T];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (size_t t = 0; t < T; ++t) sums[r][t] = vdupq_n_f32(0);
    for (size_t column = 0; column < columns; column += 4) {
        float32x4_t weights[R];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r)
            weights[r] = stored<kind>(data + r * row_bytes + column * width, columns - column);
#pragma GCC unroll 2
        for (size_t t = 0; t < T; ++t) {
            const float32x4_t inputs = load_first(x + t * stride + column, columns - column);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) sums[r][t] = vfmaq_f32(sums[r][t], weights[r], inputs);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t t = 0; t < T; ++t) out[t * kRows + r] = sum_of(sums[r][t]);
}

template <Float kind>
void dense_of(const uint8_t* data, size_t row_bytes, size_t rows, size_t columns, const float* x, size_t stride,
              size_t tokens, float* out) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        size_t token = 0;
        const uint8_t* from = data + row * row_bytes;
        for (; token + 2 <= tokens; token += 2)
            dense_tile<kind, 4, 2>(from, row_bytes, columns, x + token * stride, stride, out + token * kRows + row);
        if (token < tokens)
            dense_tile<kind, 4, 1>(from, row_bytes, columns, x + token * stride, stride, out + token * kRows + row);
    }
    for (; row < rows; ++row)
        for (size_t token = 0; token < tokens; ++token)
            dense_tile<kind, 1, 1>(data + row * row_bytes, row_bytes, columns, x + token * stride, stride,
                                   out + token * kRows + row);
}

// The nearest integers within ±limit; a NaN, which is no number to a "maximum of numbers", as -limit.
int32x4_t rounded(float32x4_t values, float scale, float limit) {
    values = vmaxnmq_f32(vmulq_f32(values, vdupq_n_f32(scale)), vdupq_n_f32(-limit));
    return vcvtnq_s32_f32(vminq_f32(values, vdupq_n_f32(limit)));
}

int32x4_t first_lanes(int32x4_t values, size_t count) {
    if (count >= 4) return values;
    static constexpr int32_t lanes[4] = {0, 1, 2, 3};
    return vandq_s32(values, vreinterpretq_s32_u32(vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(int32_t(count)))));
}

void store_bytes(int8_t* to, size_t count, int32x4_t values) {
    const int16x4_t pairs = vmovn_s32(values);
    int8_t bytes[8];
    vst1_s8(bytes, vmovn_s16(vcombine_s16(pairs, pairs)));
    __builtin_memcpy(to, bytes, count < 4 ? count : 4);
}

float32x4_t activated(Gate kind, float32x4_t x) {
    if (kind == Gate::relu2) {
        const float32x4_t positive = vmaxq_f32(vdupq_n_f32(0), x);  // a NaN stays one
        return vmulq_f32(positive, positive);
    }
    float32x4_t inner = x;
    if (kind == Gate::gelu) {  // its tanh is a logistic of twice the argument
        const float32x4_t cube = vmulq_f32(vmulq_f32(x, x), x);
        inner = vmulq_f32(vdupq_n_f32(1.5957691f), vfmaq_f32(x, cube, vdupq_n_f32(0.044715f)));
    }
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exponential(vnegq_f32(inner))));
}

template <Float kind>
void widen_of(const uint8_t* data, float scale, size_t count, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    for (size_t i = 0; i < count; i += 4)
        store_first(out + i, count - i, vmulq_f32(stored<kind>(data + i * width, count - i), vdupq_n_f32(scale)));
}

}  // namespace

void dense(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
           size_t stride, size_t tokens, float* out) {
    switch (kind) {
        case Float::f16: return dense_of<Float::f16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::bf16: return dense_of<Float::bf16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::f32: return dense_of<Float::f32>(data, row_bytes, rows, columns, x, stride, tokens, out);
    }
}

void finish(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add, float* out) {
    const float32x4_t shared = vdupq_n_f32(scale[0] / divisor), base = vdupq_n_f32(256.0f);
    for (size_t row = 0; row < kRows; row += 4) {
        float32x4_t sum = vcvtq_f32_s32(vld1q_s32(sums + row));
        for (size_t plane = 1; plane < planes; ++plane)
            sum = vfmaq_f32(vcvtq_f32_s32(vld1q_s32(sums + plane * kRows + row)), sum, base);
        const float32x4_t factor = step ? vdivq_f32(vld1q_f32(scale + row), vdupq_n_f32(divisor)) : shared;
        float32x4_t value = vmulq_f32(sum, factor);
        if (add) value = vaddq_f32(vld1q_f32(out + row), value);
        vst1q_f32(out + row, value);
    }
}

void norm(const float* x, const float* weight, double eps, size_t count, float* out) {
    float64x2_t low = vdupq_n_f64(0), high = vdupq_n_f64(0);
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t values = load_first(x + i, count - i);
        const float64x2_t a = vcvt_f64_f32(vget_low_f32(values)), b = vcvt_high_f64_f32(values);
        low = vfmaq_f64(low, a, a);
        high = vfmaq_f64(high, b, b);
    }
    const double sum = vaddvq_f64(vaddq_f64(low, high));
    const float64x1_t root = vsqrt_f64(vdup_n_f64(sum / double(count) + eps));
    const float32x4_t inverse = vdupq_n_f32(float(1.0 / vget_lane_f64(root, 0)));
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t values = vmulq_f32(load_first(x + i, count - i), inverse);
        store_first(out + i, count - i, vmulq_f32(values, load_first(weight + i, count - i)));
    }
}

float largest(const float* x, size_t count) {
    uint32x4_t most = vdupq_n_u32(0);  // as bits, magnitudes are in order, and a NaN is above them all
    for (size_t i = 0; i < count; i += 4) {
        const uint32x4_t bits = vreinterpretq_u32_f32(load_first(x + i, count - i));
        most = vmaxq_u32(most, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
    }
    const uint32_t best = vmaxvq_u32(most);
    float value;
    __builtin_memcpy(&value, &best, sizeof value);
    return value;
}

int32_t quantize(const float* x, float scale, size_t count, int8_t* out) {
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < count; i += 4) {
        const int32x4_t digits = first_lanes(rounded(load_first(x + i, count - i), scale, 127), count - i);
        sum = vaddq_s32(sum, digits);
        store_bytes(out + i, count - i, digits);
    }
    return vaddvq_s32(sum);
}

void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums) {
    int32x4_t total[3] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t i = 0; i < count; i += 4) {
        int32x4_t rest = first_lanes(rounded(load_first(x + i, count - i), scale, largest_of(planes)), count - i);
        for (size_t plane = planes; plane-- > 0;) {
            const int32x4_t digits = vshrq_n_s32(vshlq_n_s32(rest, 24), 24);
            rest = vshrq_n_s32(vsubq_s32(rest, digits), 8);
            store_bytes(out + plane * stride + i, count - i, digits);
            total[plane] = vaddq_s32(total[plane], digits);
        }
    }
    for (size_t plane = 0; plane < planes; ++plane) sums[plane] = vaddvq_s32(total[plane]);
}

void activate(Gate kind, float* gate, const float* up, size_t count) {
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t value = activated(kind, load_first(gate + i, count - i));
        store_first(gate + i, count - i, vmulq_f32(value, load_first(up + i, count - i)));
    }
}

void widen(const uint8_t* data, Float kind, float scale, size_t count, float* out) {
    switch (kind) {
        case Float::f16: return widen_of<Float::f16>(data, scale, count, out);
        case Float::bf16: return widen_of<Float::bf16>(data, scale, count, out);
        case Float::f32: return widen_of<Float::f32>(data, scale, count, out);
    }
}

void narrow(const float* x, size_t count, uint16_t* out) {
    const float32x4_t most = vdupq_n_f32(65504.0f), least = vdupq_n_f32(-65504.0f);
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t values = vmaxq_f32(least, vminq_f32(most, load_first(x + i, count - i)));
        const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(values));
        __builtin_memcpy(out + i, &halves, 2 * (count - i < 4 ? count - i : 4));
    }
}

}  // namespace bitnet::neon
