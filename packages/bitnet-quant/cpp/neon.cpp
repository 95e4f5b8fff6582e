// Sums of integers on Arm. neon_dotprod.cpp and neon_i8mm.cpp are the same with dot products of four bytes, and with
// products of matrices of two rows of eight. Only the table may leave this file: see kernels.h.
#include "neon.h"

#include <arm_neon.h>

namespace bitnet {
namespace {

constexpr size_t kAhead = 4096;  // bytes between what is multiplied and what is fetched

// What a block of 16 columns is: 256 bytes of four fields, or 1024 bytes of int8.
enum class Block { ternary, int8 };

template <Block B>
constexpr size_t block_bytes() {
    return B == Block::ternary ? 256 : 1024;
}

// Four rows at four columns, 4 * F to 4 * F + 3 of the block.
template <Block B, int F>
int8x16_t weights_at(const uint8_t* block) {
    if constexpr (B == Block::int8) {
        return vreinterpretq_s8_u8(vld1q_u8(block + 256 * F));
    } else {
        const uint8x16_t packed = vld1q_u8(block);
        if constexpr (F == 0)
            return vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(3)));
        else if constexpr (F == 3)
            return vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
        else
            return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 2 * F), vdupq_n_u8(3)));
    }
}

#if defined(__ARM_FEATURE_DOTPROD)

template <Block B, int F, size_t T>
void add_dots(const uint8_t* block, const int8x16_t (&inputs)[T], int32x4_t (&sums)[T]) {
    const int8x16_t weights = weights_at<B, F>(block);
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t) sums[t] = vdotq_laneq_s32(sums[t], weights, inputs[t], F);
}

// P vectors of 4 rows times T tokens. The 16 inputs of a token stay in one register, of which each field takes a lane.
template <Block B, size_t P, size_t T>
void tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start, int32_t* out) {
    int32x4_t sums[P][T];
#pragma GCC unroll 16
    for (size_t p = 0; p < P; ++p)
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) sums[p][t] = vdupq_n_s32(B == Block::ternary ? start[t] : 0);
    for (size_t block = 0; block < blocks; ++block, group += block_bytes<B>(), x += 16) {
        int8x16_t inputs[T];
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) inputs[t] = vld1q_s8(x + t * stride);
#pragma GCC unroll 16
        for (size_t p = 0; p < P; ++p) {
            const uint8_t* from = group + 16 * p;
            if (p % 4 == 0) __builtin_prefetch(from + kAhead);
            add_dots<B, 0>(from, inputs, sums[p]);
            add_dots<B, 1>(from, inputs, sums[p]);
            add_dots<B, 2>(from, inputs, sums[p]);
            add_dots<B, 3>(from, inputs, sums[p]);
        }
    }
    for (size_t p = 0; p < P; ++p)
        for (size_t t = 0; t < T; ++t) vst1q_s32(out + t * kRows + 4 * p, sums[p][t]);
}

#else

// Sums of products of a digit are at most 2 * 128 in size each: sixteen bits hold 127 of them. Two products of int8
// may be as large as that already.
template <Block B>
constexpr size_t run_of() {
    return B == Block::ternary ? 31 : 1;
}

struct Halves {
    int16x8_t low, high;  // of two rows each: four sums of a row, side by side
};

template <Block B, int F>
void add_products(const uint8_t* block, int8x16_t inputs, Halves& partial, int32x4_t& low, int32x4_t& high) {
    const int8x16_t weights = weights_at<B, F>(block);
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(inputs), F));
    if constexpr (B == Block::ternary) {
        partial.low = vmlal_s8(partial.low, vget_low_s8(weights), vget_low_s8(four));
        partial.high = vmlal_high_s8(partial.high, weights, four);
    } else {
        low = vpadalq_s16(low, vmull_s8(vget_low_s8(weights), vget_low_s8(four)));
        high = vpadalq_s16(high, vmull_high_s8(weights, four));
    }
}

// P vectors of 4 rows times one token; a row's sum stands in two halves until the end.
template <Block B, size_t P>
void rows_tile(const uint8_t* group, size_t blocks, const int8_t* x, int32_t start, int32_t* out) {
    int32x4_t low[P], high[P];
#pragma GCC unroll 4
    for (size_t p = 0; p < P; ++p) low[p] = high[p] = vdupq_n_s32(0);
    while (blocks) {
        const size_t run = blocks < run_of<B>() ? blocks : run_of<B>();
        Halves partial[P];
#pragma GCC unroll 4
        for (size_t p = 0; p < P; ++p) partial[p] = {vdupq_n_s16(0), vdupq_n_s16(0)};
        for (size_t block = 0; block < run; ++block, group += block_bytes<B>(), x += 16) {
            const int8x16_t inputs = vld1q_s8(x);
#pragma GCC unroll 4
            for (size_t p = 0; p < P; ++p) {
                const uint8_t* from = group + 16 * p;
                if (p == 0) __builtin_prefetch(from + kAhead);
                add_products<B, 0>(from, inputs, partial[p], low[p], high[p]);
                add_products<B, 1>(from, inputs, partial[p], low[p], high[p]);
                add_products<B, 2>(from, inputs, partial[p], low[p], high[p]);
                add_products<B, 3>(from, inputs, partial[p], low[p], high[p]);
            }
        }
#pragma GCC unroll 4
        for (size_t p = 0; p < P; ++p) {
            low[p] = vpadalq_s16(low[p], partial[p].low);
            high[p] = vpadalq_s16(high[p], partial[p].high);
        }
        blocks -= run;
    }
    for (size_t p = 0; p < P; ++p) vst1q_s32(out + 4 * p, vaddq_s32(vpaddq_s32(low[p], high[p]), vdupq_n_s32(start)));
}

template <Block B, size_t P, size_t T>
void tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start, int32_t* out) {
    constexpr size_t width = P < 4 ? P : 4;
    for (size_t p = 0; p < P; p += width)
        for (size_t t = 0; t < T; ++t)
            rows_tile<B, width>(group + 16 * p, blocks, x + t * stride, B == Block::ternary ? start[t] : 0,
                                out + t * kRows + 4 * p);
}

#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)

// Two rows and two tokens at eight columns, 8 * H to 8 * H + 7 of the block, in each product. Two fields of four rows
// make two matrices of two rows.
template <Block B, int H, size_t N>
void add_matrices(const uint8_t* block, const int8x16_t (&inputs)[N], int32x4_t (&low)[N], int32x4_t (&high)[N]) {
    const int32x4_t left = vreinterpretq_s32_s8(weights_at<B, 2 * H>(block));
    const int32x4_t right = vreinterpretq_s32_s8(weights_at<B, 2 * H + 1>(block));
    const int8x16_t first = vreinterpretq_s8_s32(vzip1q_s32(left, right));
    const int8x16_t second = vreinterpretq_s8_s32(vzip2q_s32(left, right));
#pragma GCC unroll 3
    for (size_t n = 0; n < N; ++n) {
        low[n] = vmmlaq_s32(low[n], first, inputs[n]);
        high[n] = vmmlaq_s32(high[n], second, inputs[n]);
    }
}

// P vectors of 4 rows times T tokens, two by two; an odd last one is multiplied twice and stored once.
template <Block B, size_t P, size_t T>
void matrix_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                 int32_t* out) {
    constexpr size_t pairs = (T + 1) / 2;
    const auto other = [](size_t n) { return 2 * n + 1 < T ? 2 * n + 1 : 2 * n; };
    int32x4_t low[P][pairs], high[P][pairs];
#pragma GCC unroll 4
    for (size_t p = 0; p < P; ++p)
#pragma GCC unroll 3
        for (size_t n = 0; n < pairs; ++n) {
            const int32_t both[2] = {B == Block::ternary ? start[2 * n] : 0, B == Block::ternary ? start[other(n)] : 0};
            low[p][n] = high[p][n] = vcombine_s32(vld1_s32(both), vld1_s32(both));
        }
    for (size_t block = 0; block < blocks; ++block, group += block_bytes<B>(), x += 16) {
        int8x16_t inputs[2][pairs];
#pragma GCC unroll 3
        for (size_t n = 0; n < pairs; ++n) {
            const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x + 2 * n * stride));
            const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(x + other(n) * stride));
            inputs[0][n] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            inputs[1][n] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
#pragma GCC unroll 4
        for (size_t p = 0; p < P; ++p) {
            add_matrices<B, 0>(group + 16 * p, inputs[0], low[p], high[p]);
            add_matrices<B, 1>(group + 16 * p, inputs[1], low[p], high[p]);
        }
    }
    for (size_t p = 0; p < P; ++p)
        for (size_t n = 0; n < pairs; ++n) {
            int32_t* to = out + 2 * n * kRows + 4 * p;
            vst1q_s32(to, vuzp1q_s32(low[p][n], high[p][n]));
            if (2 * n + 1 < T) vst1q_s32(to + kRows, vuzp2q_s32(low[p][n], high[p][n]));
        }
}

#endif

// Vectors of 4 rows that a pass takes with three or four tokens; a product of matrices needs its operands side by side.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr size_t kMiddle = 2;
#else
constexpr size_t kMiddle = 4;
#endif

// Passes over the group, each as wide as the registers hold sums for.
template <Block B, size_t P, size_t T>
void passes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start, int32_t* out) {
    for (size_t p = 0; p < kRows / 4; p += P) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
        if constexpr (T > 1)
            matrix_tile<B, P, T>(group + 16 * p, blocks, x, stride, start, out + 4 * p);
        else
#endif
            tile<B, P, T>(group + 16 * p, blocks, x, stride, start, out + 4 * p);
    }
}

template <Block B>
void multiply(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
              int32_t* out) {
    switch (tokens) {
        case 1: return passes<B, 16, 1>(group, blocks, x, stride, start, out);
        case 2: return passes<B, 4, 2>(group, blocks, x, stride, start, out);
        case 3: return passes<B, kMiddle, 3>(group, blocks, x, stride, start, out);
        case 4: return passes<B, kMiddle, 4>(group, blocks, x, stride, start, out);
        case 5: return passes<B, 2, 5>(group, blocks, x, stride, start, out);
        case 6: return passes<B, 2, 6>(group, blocks, x, stride, start, out);
    }
}

}  // namespace

#if defined(__ARM_FEATURE_MATMUL_INT8)
const Kernels kI8mm = {"i8mm",
#elif defined(__ARM_FEATURE_DOTPROD)
const Kernels kDotprod = {"dotprod",
#else
const Kernels kNeon = {"neon",
#endif
                       Order::two_bits, kTokens,        multiply<Block::ternary>,
                       nullptr,         nullptr,        multiply<Block::int8>,
                       neon::dense,     neon::spread,   neon::finish,
                       neon::norm,      neon::largest,  neon::quantize,
                       neon::split,     neon::activate, neon::widen,
                       neon::narrow,    neon::attend,   neon::unpack,
                       neon::place};

}  // namespace bitnet
