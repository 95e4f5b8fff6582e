// The adapters' product on Arm.
#include "neon.h"
#include "neon_lanes.h"

namespace bitnet::neon {
namespace {

constexpr size_t kWide = 4, kAcross = 4;

template <Held H>
float32x4_t held(const uint8_t* data, size_t index) {
    return stored<H == Held::f32 ? Float::f32 : Float::f16>(data + width_of(H) * index, kWide);
}
float32x4_t all(float value) { return vdupq_n_f32(value); }
float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t sum) { return vfmaq_f32(sum, a, b); }
void store(float* to, float32x4_t values) { vst1q_f32(to, values); }

#include "spread_tiles.h"

}  // namespace

void spread(const uint8_t* rows, Float kind, size_t rank, const float* weights, size_t stride, size_t tokens,
            float* out) {
    if (kind == Float::f16) return spread_over<Held::f16>(rows, rank, weights, stride, tokens, out);
    spread_over<Held::f32>(rows, rank, weights, stride, tokens, out);
}

}  // namespace bitnet::neon
