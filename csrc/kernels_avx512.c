#include "cpu_x86.h"
#include "kernels_simd.h"

#include <immintrin.h>

static bool chunk_maxima(const float * chunk, float * maxima) {
    __m512 even_f32x16 = _mm512_set1_ps(-INFINITY); /* two chains hide the latency of max */
    __m512 odd_f32x16 = even_f32x16;
    __mmask16 nan = 0;
    for (int32_t i = 0; i < REDGE_CHUNK; i += 32) {
        const __m512 a_f32x16 = _mm512_loadu_ps(chunk + i);
        const __m512 b_f32x16 = _mm512_loadu_ps(chunk + i + 16);
        nan |= _mm512_cmp_ps_mask(a_f32x16, b_f32x16, _CMP_UNORD_Q); /* NaN in either */
        even_f32x16 = _mm512_max_ps(even_f32x16, a_f32x16);
        odd_f32x16 = _mm512_max_ps(odd_f32x16, b_f32x16);
    }
    const __m512 max_f32x16 = _mm512_max_ps(even_f32x16, odd_f32x16);
    _mm512_storeu_ps(maxima, max_f32x16);
    return nan == 0 && _mm512_cmp_ps_mask(max_f32x16, _mm512_set1_ps(INFINITY), _CMP_EQ_OQ) == 0;
}

/* reduce leaves the fraction of x, 0 for -Inf; scalef multiplies by 2 to the floor of x. */
static inline __m512 exp2_f32x16(__m512 z_f32x16, const redge_exp2 * e) {
    static const float c[] = REDGE_EXP2_FLOOR;
    const __m512 x_f32x16 = _mm512_fmsub_ps(z_f32x16, _mm512_set1_ps(e->scale), _mm512_set1_ps(e->offset));
    const __m512 r_f32x16 = _mm512_reduce_ps(x_f32x16, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p_f32x16 = _mm512_set1_ps(c[5]);
    p_f32x16 = _mm512_fmadd_ps(p_f32x16, r_f32x16, _mm512_set1_ps(c[4]));
    p_f32x16 = _mm512_fmadd_ps(p_f32x16, r_f32x16, _mm512_set1_ps(c[3]));
    p_f32x16 = _mm512_fmadd_ps(p_f32x16, r_f32x16, _mm512_set1_ps(c[2]));
    p_f32x16 = _mm512_fmadd_ps(p_f32x16, r_f32x16, _mm512_set1_ps(c[1]));
    p_f32x16 = _mm512_fmadd_ps(p_f32x16, r_f32x16, _mm512_set1_ps(c[0]));
    return _mm512_scalef_ps(p_f32x16, x_f32x16);
}

static float term(float z, const redge_exp2 * e) {
    return _mm512_cvtss_f32(exp2_f32x16(_mm512_set1_ps(z), e));
}

static inline __m512d widened_sum(__m512 x_f32x16) {
    const __m256 low_f32x8 = _mm512_castps512_ps256(x_f32x16);
    const __m256 high_f32x8 = _mm512_extractf32x8_ps(x_f32x16, 1);
    return _mm512_add_pd(_mm512_cvtps_pd(low_f32x8), _mm512_cvtps_pd(high_f32x8));
}

static double chunk_sum(const float * chunk, const redge_exp2 * e, float * max) {
    __m512 max_f32x16 = _mm512_set1_ps(-INFINITY);
    __m512 a_f32x16 = _mm512_setzero_ps();
    __m512 b_f32x16 = a_f32x16, c_f32x16 = a_f32x16, d_f32x16 = a_f32x16;
    for (int32_t i = 0; i < REDGE_CHUNK; i += 64) {
        const __m512 za_f32x16 = _mm512_loadu_ps(chunk + i), zb_f32x16 = _mm512_loadu_ps(chunk + i + 16);
        const __m512 zc_f32x16 = _mm512_loadu_ps(chunk + i + 32), zd_f32x16 = _mm512_loadu_ps(chunk + i + 48);
        const __m512 ab_f32x16 = _mm512_max_ps(za_f32x16, zb_f32x16), cd_f32x16 = _mm512_max_ps(zc_f32x16, zd_f32x16);
        max_f32x16 = _mm512_max_ps(max_f32x16, _mm512_max_ps(ab_f32x16, cd_f32x16));
        a_f32x16 = _mm512_add_ps(a_f32x16, exp2_f32x16(za_f32x16, e));
        b_f32x16 = _mm512_add_ps(b_f32x16, exp2_f32x16(zb_f32x16, e));
        c_f32x16 = _mm512_add_ps(c_f32x16, exp2_f32x16(zc_f32x16, e));
        d_f32x16 = _mm512_add_ps(d_f32x16, exp2_f32x16(zd_f32x16, e));
    }
    *max = _mm512_reduce_max_ps(max_f32x16);
    const __m512d ab_f64x8 = _mm512_add_pd(widened_sum(a_f32x16), widened_sum(b_f32x16));
    const __m512d cd_f64x8 = _mm512_add_pd(widened_sum(c_f32x16), widened_sum(d_f32x16));
    return _mm512_reduce_add_pd(_mm512_add_pd(ab_f64x8, cd_f64x8));
}

static inline unsigned hits_of(const float * logits, __m512 floor_f32x16) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(logits), floor_f32x16, _CMP_GE_OQ);
}

static int32_t pick(const float * logits, int32_t begin, int32_t end, float floor, int32_t * picks) {
    const __m512 floor_f32x16 = _mm512_set1_ps(floor);
    int32_t n_picks = 0;
    int32_t i = begin;
    for (; end - i >= 32; i += 32) {
        const float * z = logits + i;
        const __m512 max_f32x16 = _mm512_max_ps(_mm512_loadu_ps(z), _mm512_loadu_ps(z + 16));
        if (_mm512_cmp_ps_mask(max_f32x16, floor_f32x16, _CMP_GE_OQ) == 0) {
            continue; /* nearly always */
        }
        unsigned hits = hits_of(z, floor_f32x16) | hits_of(z + 16, floor_f32x16) << 16;
        for (; hits != 0; hits &= hits - 1) {
            picks[n_picks++] = i + __builtin_ctz(hits);
        }
    }
    return n_picks + redge_kernels_serial.pick(logits, i, end, floor, picks + n_picks);
}

static bool available(void) {
    return redge_cpu_has_avx512();
}

const redge_kernels redge_kernels_avx512 = {
    .name = "avx512",
    .available = available,
    .scan = scan,
    .lane_maxima = lane_maxima,
    .pick = pick,
};
