// Arm with dot products (Armv8.2). Only this file's table may leave it: see kernels.h.
#include <arm_neon.h>

#include "kernels.h"

namespace bitnet {
namespace {

float32x4_t load_first(const float* from, size_t count) {
    if (count >= 4) return vld1q_f32(from);
    float last[4] = {};
    __builtin_memcpy(last, from, count * sizeof(float));
    return vld1q_f32(last);
}

void store_first(float* to, size_t count, float32x4_t values) {
    if (count >= 4) {
        vst1q_f32(to, values);
        return;
    }
    float last[4];
    vst1q_f32(last, values);
    __builtin_memcpy(to, last, count * sizeof(float));
}

int32x4_t only_first(int32x4_t values, size_t count) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    const uint32x4_t kept = vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(count < 4 ? int32_t(count) : 4));
    return vandq_s32(values, vreinterpretq_s32_u32(kept));
}

// P vectors of 4 rows times T tokens. A vector holds 4 rows at 16 columns, and so does one of a token's inputs:
// each of its lanes meets the field of its number.
template <size_t P, size_t T>
void ternary_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                  int32_t* out) {
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t sums[P][T];
#pragma GCC unroll 16
    for (size_t p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (size_t t = 0; t < T; ++t) sums[p][t] = vdupq_n_s32(start[t]);
    for (size_t block = 0; block < blocks; ++block, group += 256, x += 16) {
        int8x16_t inputs[T];
#pragma GCC unroll 4
        for (size_t t = 0; t < T; ++t) inputs[t] = vld1q_s8(x + t * stride);
#pragma GCC unroll 16
        for (size_t p = 0; p < P; ++p) {
            const uint8x16_t bytes = vld1q_u8(group + 16 * p);
            const int8x16_t a = vreinterpretq_s8_u8(vandq_u8(bytes, three));
            const int8x16_t b = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 2), three));
            const int8x16_t c = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 4), three));
            const int8x16_t d = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6));
#pragma GCC unroll 4
            for (size_t t = 0; t < T; ++t) {
                sums[p][t] = vdotq_laneq_s32(sums[p][t], a, inputs[t], 0);
                sums[p][t] = vdotq_laneq_s32(sums[p][t], b, inputs[t], 1);
                sums[p][t] = vdotq_laneq_s32(sums[p][t], c, inputs[t], 2);
                sums[p][t] = vdotq_laneq_s32(sums[p][t], d, inputs[t], 3);
            }
        }
    }
    for (size_t p = 0; p < P; ++p)
        for (size_t t = 0; t < T; ++t) vst1q_s32(out + t * kRows + 4 * p, sums[p][t]);
}

// Passes over the group, each as wide as the registers hold sums for.
template <size_t P, size_t T>
void ternary_passes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                    int32_t* out) {
    for (size_t p = 0; p < 16; p += P) ternary_tile<P, T>(group + 16 * p, blocks, x, stride, start, out + 4 * p);
}

void ternary(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
             int32_t* out) {
    switch (tokens) {
        case 1: return ternary_passes<16, 1>(group, blocks, x, stride, start, out);
        case 2: return ternary_passes<8, 2>(group, blocks, x, stride, start, out);
        case 3: return ternary_passes<4, 3>(group, blocks, x, stride, start, out);
        case 4: return ternary_passes<4, 4>(group, blocks, x, stride, start, out);
    }
}

// P vectors of 4 rows at 4 columns, four times for 16 columns; one token.
template <size_t P>
void bytes_tile(const uint8_t* group, size_t blocks, const int8_t* x, int32_t* out) {
    int32x4_t sums[P];
#pragma GCC unroll 16
    for (size_t p = 0; p < P; ++p) sums[p] = vdupq_n_s32(0);
    for (size_t block = 0; block < blocks; ++block, group += 1024, x += kColumns) {
        const int8x16_t inputs = vld1q_s8(x);
#pragma GCC unroll 16
        for (size_t p = 0; p < P; ++p) {
            const int8_t* weights = reinterpret_cast<const int8_t*>(group) + 16 * p;
            sums[p] = vdotq_laneq_s32(sums[p], vld1q_s8(weights), inputs, 0);
            sums[p] = vdotq_laneq_s32(sums[p], vld1q_s8(weights + 256), inputs, 1);
            sums[p] = vdotq_laneq_s32(sums[p], vld1q_s8(weights + 512), inputs, 2);
            sums[p] = vdotq_laneq_s32(sums[p], vld1q_s8(weights + 768), inputs, 3);
        }
    }
    for (size_t p = 0; p < P; ++p) vst1q_s32(out + 4 * p, sums[p]);
}

void bytes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t*,
           int32_t* out) {
    for (size_t token = 0; token < tokens; ++token)
        bytes_tile<16>(group, blocks, x + token * stride, out + token * kRows);
}

template <Float kind>
float32x4_t stored(const uint8_t* data, size_t count) {
    if constexpr (kind == Float::f32) {
        return load_first(reinterpret_cast<const float*>(data), count);
    } else {
        uint16_t last[4] = {};
        __builtin_memcpy(last, data, 2 * (count < 4 ? count : 4));
        const uint16x4_t halves = vld1_u16(last);
        if constexpr (kind == Float::f16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
        return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
    }
}

// R rows times T tokens: 4 columns side by side in each sum.
template <Float kind, size_t R, size_t T>
void dense_tile(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    float32x4_t sums[R][T];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t t = 0; t < T; ++t) sums[r][t] = vdupq_n_f32(0);
    for (size_t column = 0; column < columns; column += 4) {
        float32x4_t weights[R];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r)
            weights[r] = stored<kind>(data + r * row_bytes + column * width, columns - column);
#pragma GCC unroll 4
        for (size_t t = 0; t < T; ++t) {
            const float32x4_t inputs = load_first(x + t * stride + column, columns - column);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) sums[r][t] = vfmaq_f32(sums[r][t], weights[r], inputs);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t t = 0; t < T; ++t) out[t * kRows + r] = vaddvq_f32(sums[r][t]);
}

template <Float kind, size_t R>
void dense_rows(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, size_t tokens,
                float* out) {
    for (; tokens >= 4; tokens -= 4, x += 4 * stride, out += 4 * kRows)
        dense_tile<kind, R, 4>(data, row_bytes, columns, x, stride, out);
    for (; tokens; --tokens, x += stride, out += kRows)
        dense_tile<kind, R, 1>(data, row_bytes, columns, x, stride, out);
}

template <Float kind>
void dense_of(const uint8_t* data, size_t row_bytes, size_t rows, size_t columns, const float* x, size_t stride,
              size_t tokens, float* out) {
    size_t row = 0;
    for (; row + 4 <= rows; row += 4)
        dense_rows<kind, 4>(data + row * row_bytes, row_bytes, columns, x, stride, tokens, out + row);
    for (; row < rows; ++row)
        dense_rows<kind, 1>(data + row * row_bytes, row_bytes, columns, x, stride, tokens, out + row);
}

void dense(const uint8_t* data, Float kind, size_t row_bytes, size_t rows, size_t columns, const float* x,
           size_t stride, size_t tokens, float* out) {
    switch (kind) {
        case Float::f16: return dense_of<Float::f16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::bf16: return dense_of<Float::bf16>(data, row_bytes, rows, columns, x, stride, tokens, out);
        case Float::f32: return dense_of<Float::f32>(data, row_bytes, rows, columns, x, stride, tokens, out);
    }
}

void finish(const int32_t* sums, size_t planes, const float* scale, size_t step, float divisor, bool add, float* out) {
    const float32x4_t shared = vdupq_n_f32(scale[0] / divisor);
    for (size_t row = 0; row < kRows; row += 4) {
        float32x4_t sum = vcvtq_f32_s32(vld1q_s32(sums + row));
        for (size_t plane = 1; plane < planes; ++plane)
            sum = vfmaq_f32(vcvtq_f32_s32(vld1q_s32(sums + plane * kRows + row)), sum, vdupq_n_f32(256.0f));
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
    const float64x1_t mean = vdup_n_f64(vaddvq_f64(vaddq_f64(low, high)) / double(count) + eps);
    const float inverse = float(1.0 / vget_lane_f64(vsqrt_f64(mean), 0));
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t values = vmulq_n_f32(load_first(x + i, count - i), inverse);
        store_first(out + i, count - i, vmulq_f32(values, load_first(weight + i, count - i)));
    }
}

float largest(const float* x, size_t count) {
    uint32x4_t most = vdupq_n_u32(0);  // as bits, magnitudes are in order, and a NaN is above them all
    for (size_t i = 0; i < count; i += 4) {
        const uint32x4_t bits = vreinterpretq_u32_f32(load_first(x + i, count - i));
        most = vmaxq_u32(most, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
    }
    const uint32_t bits = vmaxvq_u32(most);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest integers within ±limit; a NaN as -limit: the comparisons prefer a number.
int32x4_t rounded(float32x4_t values, float scale, float limit) {
    values = vmaxnmq_f32(vmulq_n_f32(values, scale), vdupq_n_f32(-limit));
    return vcvtnq_s32_f32(vminnmq_f32(values, vdupq_n_f32(limit)));
}

void store_bytes(int8_t* to, size_t count, int32x4_t values) {
    const int16x4_t pairs = vmovn_s32(values);
    int8_t last[8];
    vst1_s8(last, vmovn_s16(vcombine_s16(pairs, pairs)));
    __builtin_memcpy(to, last, count < 4 ? count : 4);
}

int32_t quantize(const float* x, float scale, size_t count, int8_t* out) {
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < count; i += 4) {
        const int32x4_t digits = only_first(rounded(load_first(x + i, count - i), scale, 127), count - i);
        sum = vaddq_s32(sum, digits);
        store_bytes(out + i, count - i, digits);
    }
    return vaddvq_s32(sum);
}

void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums) {
    int32x4_t total[3] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (size_t i = 0; i < count; i += 4) {
        int32x4_t rest = only_first(rounded(load_first(x + i, count - i), scale, largest_of(planes)), count - i);
        for (size_t plane = planes; plane-- > 0;) {
            const int32x4_t digits = vshrq_n_s32(vshlq_n_s32(rest, 24), 24);
            rest = vshrq_n_s32(vsubq_s32(rest, digits), 8);
            store_bytes(out + plane * stride + i, count - i, digits);
            total[plane] = vaddq_s32(total[plane], digits);
        }
    }
    for (size_t plane = 0; plane < planes; ++plane) sums[plane] = vaddvq_s32(total[plane]);
}

// 2 ** n in two steps, since the exponent of one float reaches only half as far.
float32x4_t times_power(float32x4_t x, int32x4_t n) {
    const int32x4_t half = vshrq_n_s32(n, 1), rest = vsubq_s32(n, half), bias = vdupq_n_s32(127);
    x = vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}

// To about an ulp and a half: 2 ** n times a polynomial in what is left. Comparisons let a NaN through.
float32x4_t exponential(float32x4_t x) {
    x = vminq_f32(vdupq_n_f32(100.0f), vmaxq_f32(vdupq_n_f32(-110.0f), x));
    const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
    r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
    float32x4_t p = vdupq_n_f32(1.0f / 720);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    return times_power(p, vcvtnq_s32_f32(n));
}

float32x4_t activated(Gate kind, float32x4_t x) {
    if (kind == Gate::relu2) {
        const float32x4_t positive = vmaxq_f32(vdupq_n_f32(0), x);
        return vmulq_f32(positive, positive);
    }
    float32x4_t inner = x;
    if (kind == Gate::gelu) {  // its tanh is a logistic of twice the argument
        const float32x4_t cube = vmulq_f32(vmulq_f32(x, x), x);
        inner = vmulq_n_f32(vfmaq_f32(x, cube, vdupq_n_f32(0.044715f)), 1.5957691f);
    }
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exponential(vnegq_f32(inner))));
}

void activate(Gate kind, float* gate, const float* up, size_t count) {
    for (size_t i = 0; i < count; i += 4) {
        const float32x4_t value = activated(kind, load_first(gate + i, count - i));
        store_first(gate + i, count - i, vmulq_f32(value, load_first(up + i, count - i)));
    }
}

template <Float kind>
void widen_of(const uint8_t* data, float scale, size_t count, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    for (size_t i = 0; i < count; i += 4)
        store_first(out + i, count - i, vmulq_n_f32(stored<kind>(data + i * width, count - i), scale));
}

void widen(const uint8_t* data, Float kind, float scale, size_t count, float* out) {
    switch (kind) {
        case Float::f16: return widen_of<Float::f16>(data, scale, count, out);
        case Float::bf16: return widen_of<Float::bf16>(data, scale, count, out);
        case Float::f32: return widen_of<Float::f32>(data, scale, count, out);
    }
}

void narrow(const float* x, size_t count, uint16_t* out) {
    for (size_t i = 0; i < count; i += 4) {
        float32x4_t values = vminq_f32(vdupq_n_f32(65504.0f), load_first(x + i, count - i));
        values = vmaxq_f32(vdupq_n_f32(-65504.0f), values);
        const uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(values));
        __builtin_memcpy(out + i, &halves, 2 * (count - i < 4 ? count - i : 4));
    }
}

#include "neon_attention.h"

}  // namespace

const Kernels kNeon = {"neon", Order::two_bits, 4,        ternary, nullptr,  nullptr, bytes,  dense, finish,
                       norm,   largest,         quantize, split,   activate, widen,   narrow, attend};

}  // namespace bitnet
