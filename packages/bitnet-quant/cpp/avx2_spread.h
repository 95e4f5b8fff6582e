// The adapters' product of avx2.cpp.
constexpr size_t kWide = 8, kAcross = 2;  // `held` is attention's

__m256 all(float value) { return _mm256_set1_ps(value); }
__m256 fused(__m256 a, __m256 b, __m256 sum) { return _mm256_fmadd_ps(a, b, sum); }
void store(float* to, __m256 values) { _mm256_storeu_ps(to, values); }

#include "spread_tiles.h"

void spread(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
            float* out) {
    if (kind == Float::f16) return spread_over<Held::f16>(rows, rank, weights, stride, tokens, out);
    spread_over<Held::f32>(rows, rank, weights, stride, tokens, out);
}
