// The adapters' product of avx512.cpp.
constexpr size_t kWide = 16, kAcross = 4;  // `held` is attention's

__m512 all(float value) { return _mm512_set1_ps(value); }
__m512 fused(__m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }
void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }

#include "spread_tiles.h"

void spread(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
            float* out) {
    if (kind == Float::f16) return spread_over<Held::f16>(rows, rank, weights, stride, tokens, out);
    spread_over<Held::f32>(rows, rank, weights, stride, tokens, out);
}
