// Attention on Arm: see `Attention` in kernels.h for what it reads and writes.
#include "neon.h"
#include "neon_lanes.h"

namespace bitnet::neon {
namespace {

constexpr size_t kLanes = 4;

// Elements from the `index`-th on of what a page holds, as they stand there.
template <Held H>
float32x4_t held(const uint8_t* data, size_t index) {
    if constexpr (H == Held::f32) return vld1q_f32(reinterpret_cast<const float*>(data) + index);
    if constexpr (H == Held::int8) {
        uint64_t four = 0;
        __builtin_memcpy(&four, data + index, 4);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
    }
    return from_half(vld1_u16(reinterpret_cast<const uint16_t*>(data) + index));
}

// Scores of R rows at a page's 32 positions, which stand side by side.
template <Held H, size_t R>
void scores(const Attention& call, size_t row, const uint8_t* keys) {
    float32x4_t sums[R][8];
#pragma GCC unroll 2
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (size_t v = 0; v < 8; ++v) sums[r][v] = vdupq_n_f32(0);
    const float* queries = call.queries + row * call.padded;
    for (size_t i = 0; i < call.size; ++i) {
        float32x4_t query[R];
#pragma GCC unroll 2
        for (size_t r = 0; r < R; ++r) query[r] = vdupq_n_f32(queries[r * call.padded + i]);
#pragma GCC unroll 8
        for (size_t v = 0; v < 8; ++v) {
            const float32x4_t key = held<H>(keys, i * kPositions + 4 * v);
#pragma GCC unroll 2
            for (size_t r = 0; r < R; ++r) sums[r][v] = vfmaq_f32(sums[r][v], query[r], key);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t v = 0; v < 8; ++v) vst1q_f32(call.weights + (row + r) * kPositions + 4 * v, sums[r][v]);
}

// Scores of one row as weights; what was mixed so far fades when a higher peak appears. Gives the fading.
float soften(const Attention& call, size_t row, size_t from, size_t to) {
    float* weights = call.weights + row * kPositions;
    float peak = call.peak[row];
    for (size_t i = from; i < to; ++i) peak = weights[i] > peak ? weights[i] : peak;
    for (size_t i = 0; i < from; ++i) weights[i] = -__builtin_inff();
    for (size_t i = to; i < kPositions; ++i) weights[i] = -__builtin_inff();
    float32x4_t sum = vdupq_n_f32(0);
    for (size_t i = 0; i < kPositions; i += 4) {
        const float32x4_t score = vld1q_f32(weights + i);
        const uint32x4_t seen = vmvnq_u32(vceqq_f32(score, vdupq_n_f32(-__builtin_inff())));
        const uint32x4_t bits = vreinterpretq_u32_f32(exponential(vsubq_f32(score, vdupq_n_f32(peak))));
        const float32x4_t weight = vreinterpretq_f32_u32(vandq_u32(bits, seen));
        sum = vaddq_f32(sum, weight);
        vst1q_f32(weights + i, weight);
    }
    const float fade = vgetq_lane_f32(exponential(vdupq_n_f32(call.peak[row] - peak)), 0);
    call.peak[row] = peak;
    call.total[row] = call.total[row] * fade + sum_of(sum);
    return fade;
}

// Values of positions `from` to before `to`, weighted, onto V times 4 elements of what R rows have mixed.
template <Held H, size_t R, size_t V>
void mix_part(const Attention& call, size_t row, const uint8_t* values, size_t at, const float* fades, size_t from,
              size_t to) {
    float32x4_t sums[R][V];
    float* mixed = call.mixed + row * call.padded + at;
    const float* weights = call.weights + row * kPositions;
#pragma GCC unroll 2
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (size_t v = 0; v < V; ++v)
            sums[r][v] = vmulq_f32(vld1q_f32(mixed + r * call.padded + 4 * v), vdupq_n_f32(fades[r]));
    for (size_t position = from; position < to; ++position) {
        float32x4_t weight[R];
#pragma GCC unroll 2
        for (size_t r = 0; r < R; ++r) weight[r] = vdupq_n_f32(weights[r * kPositions + position]);
#pragma GCC unroll 8
        for (size_t v = 0; v < V; ++v) {
            const float32x4_t value = held<H>(values, position * call.padded + at + 4 * v);
#pragma GCC unroll 2
            for (size_t r = 0; r < R; ++r) sums[r][v] = vfmaq_f32(sums[r][v], weight[r], value);
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t v = 0; v < V; ++v) vst1q_f32(mixed + r * call.padded + 4 * v, sums[r][v]);
}

void divide(float* values, size_t count, float by) {
    const float32x4_t divisor = vdupq_n_f32(by);
    for (size_t i = 0; i < count; i += kLanes) vst1q_f32(values + i, vdivq_f32(vld1q_f32(values + i), divisor));
}

constexpr size_t kTall = 2, kLow = 2;

#include "attention_pages.h"

}  // namespace

void attend(const Attention* call) {
    switch (call->held) {
        case Held::f16: return attend_over<Held::f16>(*call);
        case Held::f32: return attend_over<Held::f32>(*call);
        case Held::int8: return attend_over<Held::int8>(*call);
    }
}

}  // namespace bitnet::neon
