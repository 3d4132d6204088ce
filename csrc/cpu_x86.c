#include "cpu_x86.h"

#include <cpuid.h>
#include <stdint.h>

/* Bits of XCR0: the register state that the operating system saves and restores. */
enum { XCR0_AVX = 0x06, XCR0_AVX512 = 0xE6 };

enum {
    ECX_FMA = 1u << 12,
    ECX_OSXSAVE = 1u << 27,
    EBX_AVX2 = 1u << 5,
    EBX_AVX512F = 1u << 16,
    EBX_AVX512DQ = 1u << 17,
};

static uint64_t xcr0(void) {
    uint32_t low;
    uint32_t high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t) high << 32 | low;
}

/* Leaf 1's ECX has every bit of `ecx`, leaf 7's EBX every bit of `ebx`, and XCR0 every bit of `state`. */
static bool has(uint32_t ecx, uint32_t ebx, uint64_t state) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (ECX_OSXSAVE | ecx)) != (ECX_OSXSAVE | ecx)) {
        return false;
    }
    if ((xcr0() & state) != state) {
        return false;
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & ebx) == ebx;
}

bool redge_cpu_has_avx2(void) {
    return has(ECX_FMA, EBX_AVX2, XCR0_AVX);
}

bool redge_cpu_has_avx512(void) {
    return redge_cpu_has_avx2() && has(ECX_FMA, EBX_AVX512F | EBX_AVX512DQ, XCR0_AVX512);
}
