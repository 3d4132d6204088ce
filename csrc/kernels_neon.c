#include "kernels_simd.h"

#include <arm_neon.h>

enum { REGISTERS = REDGE_LANES / 4 };

static bool chunk_maxima(const float * chunk, float * maxima) {
    const float32x4_t inf_f32x4 = vdupq_n_f32(INFINITY);
    float32x4_t max_f32x4[REGISTERS];
    uint32x4_t good_u32x4 = vdupq_n_u32(UINT32_MAX);
    for (int32_t k = 0; k < REGISTERS; ++k) {
        max_f32x4[k] = vdupq_n_f32(-INFINITY);
    }
    for (int32_t i = 0; i < REDGE_CHUNK; i += REDGE_LANES) {
        for (int32_t k = 0; k < REGISTERS; ++k) {
            const float32x4_t z_f32x4 = vld1q_f32(chunk + i + 4 * k);
            good_u32x4 = vandq_u32(good_u32x4, vcltq_f32(z_f32x4, inf_f32x4));
            max_f32x4[k] = vmaxq_f32(max_f32x4[k], z_f32x4);
        }
    }
    for (int32_t k = 0; k < REGISTERS; ++k) {
        vst1q_f32(maxima + 4 * k, max_f32x4[k]);
    }
    return vminvq_u32(good_u32x4) != 0;
}

/* sum + 2^x; the bits of n + 127, shifted into the exponent, are 2^n. */
static inline float32x4_t add_exp2_f32x4(float32x4_t sum_f32x4, float32x4_t z_f32x4, const redge_exp2 * e) {
    static const float c[] = REDGE_EXP2_NEAREST;
    float32x4_t x_f32x4 = vfmaq_n_f32(vdupq_n_f32(-e->offset), z_f32x4, e->scale);
    x_f32x4 = vmaxq_f32(x_f32x4, vdupq_n_f32(-126.0f));
    const float32x4_t n_f32x4 = vrndnq_f32(x_f32x4);
    const float32x4_t r_f32x4 = vsubq_f32(x_f32x4, n_f32x4);
    float32x4_t p_f32x4 = vdupq_n_f32(c[5]);
    for (int32_t k = 4; k >= 0; --k) {
        p_f32x4 = vfmaq_f32(vdupq_n_f32(c[k]), p_f32x4, r_f32x4);
    }
    const int32x4_t power_i32x4 = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n_f32x4), vdupq_n_s32(127)), 23);
    return vfmaq_f32(sum_f32x4, p_f32x4, vreinterpretq_f32_s32(power_i32x4));
}

static float term(float z, const redge_exp2 * e) {
    return vgetq_lane_f32(add_exp2_f32x4(vdupq_n_f32(0.0f), vdupq_n_f32(z), e), 0);
}

static inline float64x2_t widened_sum(float32x4_t x_f32x4) {
    return vaddq_f64(vcvt_f64_f32(vget_low_f32(x_f32x4)), vcvt_high_f64_f32(x_f32x4));
}

/* At most 16 terms a lane before it is widened to double, as on AVX-512. */
static double chunk_sum(const float * chunk, const redge_exp2 * e, float * max) {
    enum { PART = REDGE_CHUNK / 4 };
    float32x4_t max_f32x4 = vdupq_n_f32(-INFINITY);
    float64x2_t sum_f64x2 = vdupq_n_f64(0.0);
    for (const float * part = chunk; part != chunk + REDGE_CHUNK; part += PART) {
        float32x4_t sum_f32x4[REGISTERS];
        for (int32_t k = 0; k < REGISTERS; ++k) {
            sum_f32x4[k] = vdupq_n_f32(0.0f);
        }
        for (int32_t i = 0; i < PART; i += REDGE_LANES) {
            for (int32_t k = 0; k < REGISTERS; ++k) {
                const float32x4_t z_f32x4 = vld1q_f32(part + i + 4 * k);
                max_f32x4 = vmaxq_f32(max_f32x4, z_f32x4);
                sum_f32x4[k] = add_exp2_f32x4(sum_f32x4[k], z_f32x4, e);
            }
        }
        for (int32_t k = 0; k < REGISTERS; ++k) {
            sum_f64x2 = vaddq_f64(sum_f64x2, widened_sum(sum_f32x4[k]));
        }
    }
    *max = vmaxvq_f32(max_f32x4);
    return vaddvq_f64(sum_f64x2);
}

static int32_t pick(const float * logits, int32_t begin, int32_t end, float floor, int32_t * picks) {
    const float32x4_t floor_f32x4 = vdupq_n_f32(floor);
    int32_t n_picks = 0;
    int32_t i = begin;
    for (; end - i >= REDGE_LANES; i += REDGE_LANES) {
        const uint32x4_t a_u32x4 = vcgeq_f32(vld1q_f32(logits + i), floor_f32x4);
        const uint32x4_t b_u32x4 = vcgeq_f32(vld1q_f32(logits + i + 4), floor_f32x4);
        const uint32x4_t c_u32x4 = vcgeq_f32(vld1q_f32(logits + i + 8), floor_f32x4);
        const uint32x4_t d_u32x4 = vcgeq_f32(vld1q_f32(logits + i + 12), floor_f32x4);
        if (vmaxvq_u32(vorrq_u32(vorrq_u32(a_u32x4, b_u32x4), vorrq_u32(c_u32x4, d_u32x4))) != 0) { /* rare */
            n_picks += redge_kernels_serial.pick(logits, i, i + REDGE_LANES, floor, picks + n_picks);
        }
    }
    return n_picks + redge_kernels_serial.pick(logits, i, end, floor, picks + n_picks);
}

static bool available(void) {
    return true; /* part of every AArch64 processor */
}

const redge_kernels redge_kernels_neon = {
    .name = "neon",
    .available = available,
    .scan = scan,
    .lane_maxima = lane_maxima,
    .pick = pick,
};
