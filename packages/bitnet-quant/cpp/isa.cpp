#include "isa.h"

#include <cstdint>
#include <initializer_list>

#if defined(BITNET_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(BITNET_ARM)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace bitnet {
namespace {

#if defined(BITNET_X86)
struct Registers {
    uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers ask(uint32_t leaf, uint32_t part) {
    Registers found;
#if defined(_MSC_VER)
    int registers[4];
    __cpuidex(registers, int(leaf), int(part));
    found = {uint32_t(registers[0]), uint32_t(registers[1]), uint32_t(registers[2]), uint32_t(registers[3])};
#else
    __get_cpuid_count(leaf, part, &found.a, &found.b, &found.c, &found.d);
#endif
    return found;
}

// Which registers the system saves: the processor's word alone is not enough.
uint64_t saved() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
#endif
}

bool has(uint32_t word, std::initializer_list<int> bits) {
    for (int bit : bits)
        if (!(word >> bit & 1)) return false;
    return true;
}

std::vector<const Kernels*> examine() {
    std::vector<const Kernels*> found;
    const Registers basic = ask(1, 0), wide = ask(7, 0), more = ask(7, 1);
    const uint64_t states = has(basic.c, {27}) ? saved() : 0;
    const bool avx2 = has(basic.c, {12, 28, 29}) && has(wide.b, {5}) && (states & 6) == 6;  // FMA, AVX, F16C, AVX2
    // F, DQ, BW, VL, VNNI
    const bool avx512 = avx2 && has(wide.b, {16, 17, 30, 31}) && has(wide.c, {11}) && (states & 0xe6) == 0xe6;
    if (avx512 && has(wide.c, {1})) found.push_back(&kAvx512Vbmi);
    if (avx512) found.push_back(&kAvx512);
    if (avx2 && has(more.a, {4})) found.push_back(&kAvxVnni);
    if (avx2) found.push_back(&kAvx2);
    found.push_back(&kScalar);
    return found;
}
#elif defined(BITNET_ARM)
// What the system says of the processor; every 64-bit one has NEON.
#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
bool has(const char* feature) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

std::vector<const Kernels*> examine() {
    std::vector<const Kernels*> found;
    if (has_dotprod() && has_i8mm()) found.push_back(&kI8mm);
    if (has_dotprod()) found.push_back(&kDotprod);
    found.push_back(&kNeon);
    found.push_back(&kScalar);
    return found;
}
#else
std::vector<const Kernels*> examine() { return {&kScalar}; }
#endif

}  // namespace

const std::vector<const Kernels*>& usable() {
    static const std::vector<const Kernels*> found = examine();
    return found;
}

std::vector<const char*> built() {
#if defined(BITNET_X86)
    return {kAvx512Vbmi.name, kAvx512.name, kAvxVnni.name, kAvx2.name, kScalar.name};
#elif defined(BITNET_ARM)
    return {kI8mm.name, kDotprod.name, kNeon.name, kScalar.name};
#else
    return {kScalar.name};
#endif
}

}  // namespace bitnet
