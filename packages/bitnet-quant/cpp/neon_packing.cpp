// Digits into the order of the kernels on Arm.
#include <arm_neon.h>

#include "neon.h"

namespace bitnet::neon {
namespace {

#include "packing.h"

// Four rows at sixteen columns; gives what is not zero if a digit is 3.
uint32x4_t place_four(const uint8_t* digits, size_t stride, uint8_t* out) {
    const auto row = [&](size_t i) { return vreinterpretq_u32_u8(vld1q_u8(digits + i * stride)); };
    const auto pair = [](uint32x4_t a, uint32x4_t b) { return vreinterpretq_u64_u32(vzip1q_u32(a, b)); };
    const auto other = [](uint32x4_t a, uint32x4_t b) { return vreinterpretq_u64_u32(vzip2q_u32(a, b)); };
    const uint64x2_t a = pair(row(0), row(1)), b = other(row(0), row(1));
    const uint64x2_t c = pair(row(2), row(3)), d = other(row(2), row(3));
    uint32x4_t packed = vreinterpretq_u32_u64(vzip1q_u64(a, c));
    packed = vorrq_u32(packed, vshlq_n_u32(vreinterpretq_u32_u64(vzip2q_u64(a, c)), 2));
    packed = vorrq_u32(packed, vshlq_n_u32(vreinterpretq_u32_u64(vzip1q_u64(b, d)), 4));
    packed = vorrq_u32(packed, vshlq_n_u32(vreinterpretq_u32_u64(vzip2q_u64(b, d)), 6));
    vst1q_u8(out, vreinterpretq_u8_u32(packed));
    return vandq_u32(packed, vshrq_n_u32(packed, 1));
}

}  // namespace

void unpack(Wire wire, const uint8_t* from, ptrdiff_t stride, size_t count, size_t field, uint8_t* out) {
    unpack_digits(wire, from, stride, count, field, out);
}

uint32_t place(const uint8_t* digits, size_t stride, size_t columns, uint8_t* out) {
    uint32x4_t all = vdupq_n_u32(0);
    for (size_t column = 0; column < columns; column += 16, out += 256)
        for (size_t part = 0; part < 4; ++part)
            all = vorrq_u32(all, place_four(digits + column + 4 * part * stride, stride, out + 16 * part));
    return vmaxvq_u32(vandq_u32(all, vdupq_n_u32(0x55555555)));
}

}  // namespace bitnet::neon
