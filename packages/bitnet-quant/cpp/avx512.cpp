// AVX-512 with VNNI; avx512vbmi.cpp is the same with VBMI, which unpacks five bits for three digits as fast as two bits
// for one. Only the table may leave this file: see kernels.h.
#include <immintrin.h>

#include "kernels.h"

namespace bitnet {
namespace {

constexpr size_t kAhead = 8192;  // bytes between what is multiplied and what is fetched; measured

__m512i load(const void* from) { return _mm512_loadu_si512(from); }

__m512i broadcast4(const int8_t* from) {
    int32_t value;
    __builtin_memcpy(&value, from, sizeof value);
    return _mm512_set1_epi32(value);
}

__mmask16 first_lanes(size_t count) { return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1); }

// 64 rows times T tokens. One vector holds 16 rows at 16 columns; each of its four fields is unpacked once for all
// tokens. With few tokens the even and the odd fields have sums of their own, so that no sum waits for itself.
template <size_t T>
void two_bits_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                   int32_t* out) {
    constexpr size_t chains = T <= 2 ? 2 : 1;
    const __m512i three = _mm512_set1_epi8(3);
    __m512i sums[chains][T][4];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < 4; ++p) {
            sums[0][t][p] = _mm512_set1_epi32(start[t]);
            if (chains == 2) sums[chains - 1][t][p] = _mm512_setzero_si512();
        }
    for (size_t block = 0; block < blocks; ++block, group += 256, x += 16) {
        if (T <= 2)
#pragma GCC unroll 4
            for (size_t p = 0; p < 4; ++p)
                _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 64 * p, _MM_HINT_T0);
#pragma GCC unroll 4
        for (size_t f = 0; f < 4; ++f) {
            __m512i digits[4];
#pragma GCC unroll 4
            for (size_t p = 0; p < 4; ++p)
                digits[p] = _mm512_and_si512(_mm512_srli_epi32(load(group + 64 * p), unsigned(2 * f)), three);
#pragma GCC unroll 6
            for (size_t t = 0; t < T; ++t) {
                const __m512i inputs = broadcast4(x + t * stride + 4 * f);
#pragma GCC unroll 4
                for (size_t p = 0; p < 4; ++p) {
                    __m512i& sum = sums[f % chains][t][p];
                    sum = _mm512_dpbusd_epi32(sum, digits[p], inputs);
                }
            }
        }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < 4; ++p) {
            __m512i sum = sums[0][t][p];
            if (chains == 2) sum = _mm512_add_epi32(sum, sums[chains - 1][t][p]);
            _mm512_storeu_si512(out + t * kRows + 16 * p, sum);
        }
}

void two_bits(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
              int32_t* out) {
    switch (tokens) {
        case 1: return two_bits_tile<1>(group, blocks, x, stride, start, out);
        case 2: return two_bits_tile<2>(group, blocks, x, stride, start, out);
        case 3: return two_bits_tile<3>(group, blocks, x, stride, start, out);
        case 4: return two_bits_tile<4>(group, blocks, x, stride, start, out);
        case 5: return two_bits_tile<5>(group, blocks, x, stride, start, out);
        case 6: return two_bits_tile<6>(group, blocks, x, stride, start, out);
    }
}

#if defined(__AVX512VBMI__)
#include "avx512_five_bits.h"
#endif

// Int8 weights become unsigned by adding 128; 128 times the sum of the inputs is taken off at the start.
template <size_t T>
void bytes_tile(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, const int32_t* start,
                int32_t* out) {
    const __m512i flip = _mm512_set1_epi8(int8_t(-128));
    __m512i sums[T][4];
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < 4; ++p) sums[t][p] = _mm512_set1_epi32(start[t] * 128);
    for (size_t block = 0; block < 4 * blocks; ++block, group += 256, x += 4) {
        __m512i weights[4];
#pragma GCC unroll 4
        for (size_t p = 0; p < 4; ++p) {
            _mm_prefetch(reinterpret_cast<const char*>(group) + kAhead + 64 * p, _MM_HINT_T0);
            weights[p] = _mm512_xor_si512(load(group + 64 * p), flip);
        }
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
            const __m512i inputs = broadcast4(x + t * stride);
#pragma GCC unroll 4
            for (size_t p = 0; p < 4; ++p) sums[t][p] = _mm512_dpbusd_epi32(sums[t][p], weights[p], inputs);
        }
    }
#pragma GCC unroll 6
    for (size_t t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (size_t p = 0; p < 4; ++p) _mm512_storeu_si512(out + t * kRows + 16 * p, sums[t][p]);
}

void bytes(const uint8_t* group, size_t blocks, const int8_t* x, size_t stride, size_t tokens, const int32_t* start,
           int32_t* out) {
    switch (tokens) {
        case 1: return bytes_tile<1>(group, blocks, x, stride, start, out);
        case 2: return bytes_tile<2>(group, blocks, x, stride, start, out);
        case 3: return bytes_tile<3>(group, blocks, x, stride, start, out);
        case 4: return bytes_tile<4>(group, blocks, x, stride, start, out);
        case 5: return bytes_tile<5>(group, blocks, x, stride, start, out);
        case 6: return bytes_tile<6>(group, blocks, x, stride, start, out);
    }
}

template <Float kind>
__m512 stored(const uint8_t* data, __mmask16 lanes) {
    if (kind == Float::f32) return _mm512_maskz_loadu_ps(lanes, data);
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, data);
    if (kind == Float::f16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// R rows times T tokens: 16 columns side by side in each sum.
template <Float kind, size_t R, size_t T>
void dense_tile(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    __m512 sums[R][T];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) sums[r][t] = _mm512_setzero_ps();
    for (size_t column = 0; column < columns; column += 16) {
        const __mmask16 lanes = first_lanes(columns - column);
        __m512 weights[R];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; ++r) {
            const uint8_t* from = data + r * row_bytes + column * width;
            if (T == 1) _mm_prefetch(reinterpret_cast<const char*>(from) + R * row_bytes, _MM_HINT_T0);
            weights[r] = stored<kind>(from, lanes);
        }
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) {
            const __m512 inputs = _mm512_maskz_loadu_ps(lanes, x + t * stride + column);
#pragma GCC unroll 4
            for (size_t r = 0; r < R; ++r) sums[r][t] = _mm512_fmadd_ps(weights[r], inputs, sums[r][t]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 6
        for (size_t t = 0; t < T; ++t) out[t * kRows + r] = _mm512_reduce_add_ps(sums[r][t]);
}

template <Float kind, size_t R>
void dense_rows(const uint8_t* data, size_t row_bytes, size_t columns, const float* x, size_t stride, size_t tokens,
                float* out) {
    for (; tokens >= 6; tokens -= 6, x += 6 * stride, out += 6 * kRows)
        dense_tile<kind, R, 6>(data, row_bytes, columns, x, stride, out);
    for (; tokens >= 2; tokens -= 2, x += 2 * stride, out += 2 * kRows)
        dense_tile<kind, R, 2>(data, row_bytes, columns, x, stride, out);
    if (tokens) dense_tile<kind, R, 1>(data, row_bytes, columns, x, stride, out);
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
    const __m512 shared = _mm512_set1_ps(scale[0] / divisor), base = _mm512_set1_ps(256.0f);
    for (size_t row = 0; row < kRows; row += 16) {
        __m512 sum = _mm512_cvtepi32_ps(load(sums + row));
        for (size_t plane = 1; plane < planes; ++plane)
            sum = _mm512_fmadd_ps(sum, base, _mm512_cvtepi32_ps(load(sums + plane * kRows + row)));
        const __m512 factor = step ? _mm512_div_ps(_mm512_loadu_ps(scale + row), _mm512_set1_ps(divisor)) : shared;
        __m512 value = _mm512_mul_ps(sum, factor);
        if (add) value = _mm512_add_ps(_mm512_loadu_ps(out + row), value);
        _mm512_storeu_ps(out + row, value);
    }
}

void norm(const float* x, const float* weight, double eps, size_t count, float* out) {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    for (size_t i = 0; i < count; i += 16) {
        const __m512 values = _mm512_maskz_loadu_ps(first_lanes(count - i), x + i);
        const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
        const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
        low = _mm512_fmadd_pd(a, a, low);
        high = _mm512_fmadd_pd(b, b, high);
    }
    const double mean = _mm512_reduce_add_pd(_mm512_add_pd(low, high)) / double(count) + eps;
    const double root = _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(mean)));
    const __m512 inverse = _mm512_set1_ps(float(1.0 / root));
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse);
        _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(values, _mm512_maskz_loadu_ps(lanes, weight + i)));
    }
}

float largest(const float* x, size_t count) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();  // as bits, magnitudes are in order, and a NaN is above them all
    for (size_t i = 0; i < count; i += 16) {
        const __m512i bits = _mm512_maskz_loadu_epi32(first_lanes(count - i), x + i);
        most = _mm512_max_epu32(most, _mm512_and_si512(bits, magnitude));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(most);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest integers within ±limit; a NaN as -limit.
__m512i rounded(__m512 values, __m512 scale, float limit) {
    const __m512 most = _mm512_set1_ps(limit);
    values = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(values, scale), _mm512_set1_ps(-limit)), most);
    return _mm512_cvtps_epi32(values);
}

int32_t quantize(const float* x, float scale, size_t count, int8_t* out) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512i digits = _mm512_maskz_mov_epi32(lanes, rounded(_mm512_maskz_loadu_ps(lanes, x + i), factor, 127));
        sum = _mm512_add_epi32(sum, digits);
        _mm512_mask_cvtepi32_storeu_epi8(out + i, lanes, digits);
    }
    return _mm512_reduce_add_epi32(sum);
}

void split(const float* x, float scale, size_t count, size_t planes, int8_t* out, size_t stride, int32_t* sums) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512i total[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        __m512i rest =
            _mm512_maskz_mov_epi32(lanes, rounded(_mm512_maskz_loadu_ps(lanes, x + i), factor, largest_of(planes)));
        for (size_t plane = planes; plane-- > 0;) {
            const __m512i digits = _mm512_srai_epi32(_mm512_slli_epi32(rest, 24), 24);
            rest = _mm512_srai_epi32(_mm512_sub_epi32(rest, digits), 8);
            _mm512_mask_cvtepi32_storeu_epi8(out + plane * stride + i, lanes, digits);
            total[plane] = _mm512_add_epi32(total[plane], digits);
        }
    }
    for (size_t plane = 0; plane < planes; ++plane) sums[plane] = _mm512_reduce_add_epi32(total[plane]);
}

// To about an ulp and a half: 2 ** n times a polynomial in what is left. Comparisons let a NaN through.
__m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

__m512 activated(Gate kind, __m512 x) {
    if (kind == Gate::relu2) {
        const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x);  // the second operand where it is a NaN
        return _mm512_mul_ps(positive, positive);
    }
    __m512 inner = x;
    if (kind == Gate::gelu) {  // its tanh is a logistic of twice the argument
        const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        inner = _mm512_mul_ps(_mm512_set1_ps(1.5957691f), _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x));
    }
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), inner))));
}

void activate(Gate kind, float* gate, const float* up, size_t count) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 value = activated(kind, _mm512_maskz_loadu_ps(lanes, gate + i));
        _mm512_mask_storeu_ps(gate + i, lanes, _mm512_mul_ps(value, _mm512_maskz_loadu_ps(lanes, up + i)));
    }
}

template <Float kind>
void widen_of(const uint8_t* data, float scale, size_t count, float* out) {
    constexpr size_t width = kind == Float::f32 ? 4 : 2;
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        _mm512_mask_storeu_ps(out + i, lanes,
                              _mm512_mul_ps(stored<kind>(data + i * width, lanes), _mm512_set1_ps(scale)));
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
    const __m512 most = _mm512_set1_ps(65504.0f), least = _mm512_set1_ps(-65504.0f);
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 values = _mm512_max_ps(least, _mm512_min_ps(most, _mm512_maskz_loadu_ps(lanes, x + i)));
        _mm256_mask_storeu_epi16(out + i, lanes,
                                 _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

#include "avx512_attention.h"
#include "avx512_packing.h"
#include "avx512_planes.h"
#include "avx512_spread.h"

}  // namespace

#if defined(__AVX512VBMI__)
const Kernels kAvx512Vbmi = {"avx512vbmi",
                             Order::five_bits,
                             12,
                             five_bits,
                             expand,
                             two_bits,
#else
const Kernels kAvx512 = {"avx512", Order::two_bits, kTokens, two_bits, nullptr,       nullptr,
#endif
                             bytes,
                             dense,
                             spread,
                             finish,
                             norm,
                             largest,
                             quantize,
                             split,
                             activate,
                             widen,
                             narrow,
                             attend,
                             unpack_digits,
                             place,
                             &kPlaneKernels};

}  // namespace bitnet
