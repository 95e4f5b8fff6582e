// Four floats at a time, for the files with NEON's kernels of floats. Each includes its own copy.
#pragma once

#include <arm_neon.h>

#include "kernels.h"

namespace bitnet::neon {
namespace {

inline float32x4_t load_first(const float* from, size_t count) {
    if (count >= 4) return vld1q_f32(from);
    float last[4] = {};
    __builtin_memcpy(last, from, count * sizeof(float));
    return vld1q_f32(last);
}

inline void store_first(float* to, size_t count, float32x4_t values) {
    if (count >= 4) return vst1q_f32(to, values);
    float last[4];
    vst1q_f32(last, values);
    __builtin_memcpy(to, last, count * sizeof(float));
}

inline uint16x4_t load_halves(const uint8_t* from, size_t count) {
    uint16_t halves[4] = {};
    if (count >= 4)
        __builtin_memcpy(halves, from, sizeof halves);
    else
        __builtin_memcpy(halves, from, count * sizeof(uint16_t));
    return vld1_u16(halves);
}

inline float32x4_t from_half(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }

// Up to four stored floats; zeros behind them.
template <Float kind>
float32x4_t stored(const uint8_t* data, size_t count) {
    if constexpr (kind == Float::f32) {
        float values[4] = {};
        __builtin_memcpy(values, data, (count < 4 ? count : 4) * sizeof(float));
        return vld1q_f32(values);
    } else {
        const uint16x4_t halves = load_halves(data, count);
        if constexpr (kind == Float::f16) return from_half(halves);
        return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
    }
}

inline float sum_of(float32x4_t values) {
    const float32x2_t pair = vadd_f32(vget_low_f32(values), vget_high_f32(values));
    return vget_lane_f32(vpadd_f32(pair, pair), 0);
}

// 2 ** n for n from -252 to 254, in two steps, since the exponent of one float reaches only half as far.
inline float32x4_t times_power(float32x4_t x, int32x4_t n) {
    const int32x4_t half = vshrq_n_s32(n, 1), rest = vsubq_s32(n, half), bias = vdupq_n_s32(127);
    x = vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}

// To about an ulp and a half: 2 ** n times a polynomial in what is left. Minimum and maximum let a NaN through.
inline float32x4_t exponential(float32x4_t x) {
    x = vminq_f32(vdupq_n_f32(100.0f), vmaxq_f32(vdupq_n_f32(-110.0f), x));
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
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

}  // namespace
}  // namespace bitnet::neon
