#include "cpu_x86.h"
#include "kernels_simd.h"

#include <immintrin.h>

static bool chunk_maxima(const float * chunk, float * maxima) {
    __m256 low_f32x8 = _mm256_set1_ps(-INFINITY); /* lanes 0 to 7 */
    __m256 high_f32x8 = low_f32x8;                /* lanes 8 to 15 */
    __m256 nan_f32x8 = _mm256_setzero_ps();
    for (int32_t i = 0; i < REDGE_CHUNK; i += 16) {
        const __m256 a_f32x8 = _mm256_loadu_ps(chunk + i);
        const __m256 b_f32x8 = _mm256_loadu_ps(chunk + i + 8);
        nan_f32x8 = _mm256_or_ps(nan_f32x8, _mm256_cmp_ps(a_f32x8, b_f32x8, _CMP_UNORD_Q)); /* NaN in either */
        low_f32x8 = _mm256_max_ps(low_f32x8, a_f32x8);
        high_f32x8 = _mm256_max_ps(high_f32x8, b_f32x8);
    }
    _mm256_storeu_ps(maxima, low_f32x8);
    _mm256_storeu_ps(maxima + 8, high_f32x8);
    const __m256 inf_f32x8 = _mm256_cmp_ps(_mm256_max_ps(low_f32x8, high_f32x8), _mm256_set1_ps(INFINITY), _CMP_EQ_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(nan_f32x8, inf_f32x8)) == 0;
}

/* 1.5 * 2^20: adding it rounds x to eighths, and leaves 8 * x, a whole number k, in the low bits. */
static const float ROUND = 1572864.0f;

/* sum + 2^x, with x = k/8 + r and |r| <= 1/16, so that a polynomial of degree 3 does: fewer multiply-adds, which are
 * what this loop waits for. x itself is never there: the offset is a whole number, so that what is subtracted from
 * z * scale to leave r is exact. The low three bits of k choose 2^(j/8) from a table that already lacks j << 20, and k,
 * shifted by 20, adds it back along with the exponent. */
static inline __m256 add_exp2_f32x8(__m256 sum_f32x8, __m256 z_f32x8, const redge_exp2 * e) {
    static const float c[] = REDGE_EXP2_EIGHTH;
    const __m256i table_i32x8 = _mm256_setr_epi32(
        0x3F800000, 0x3F8B95C2 - (1 << 20), 0x3F9837F0 - (2 << 20), 0x3FA5FED7 - (3 << 20), 0x3FB504F3 - (4 << 20),
        0x3FC5672A - (5 << 20), 0x3FD744FD - (6 << 20), 0x3FEAC0C7 - (7 << 20));
    const __m256 scale_f32x8 = _mm256_set1_ps(e->scale);
    const __m256 origin_f32x8 = _mm256_set1_ps(ROUND - e->offset);
    z_f32x8 = _mm256_max_ps(_mm256_set1_ps(e->lowest), z_f32x8); /* in this order NaN stays NaN */
    const __m256 t_f32x8 = _mm256_fmadd_ps(z_f32x8, scale_f32x8, origin_f32x8);
    const __m256 r_f32x8 = _mm256_fmsub_ps(z_f32x8, scale_f32x8, _mm256_sub_ps(t_f32x8, origin_f32x8));
    __m256 p_f32x8 = _mm256_set1_ps(c[3]);
    p_f32x8 = _mm256_fmadd_ps(p_f32x8, r_f32x8, _mm256_set1_ps(c[2]));
    p_f32x8 = _mm256_fmadd_ps(p_f32x8, r_f32x8, _mm256_set1_ps(c[1]));
    p_f32x8 = _mm256_fmadd_ps(p_f32x8, r_f32x8, _mm256_set1_ps(c[0]));
    const __m256i k_i32x8 = _mm256_castps_si256(t_f32x8);
    const __m256i eighth_i32x8 = _mm256_permutevar8x32_epi32(table_i32x8, k_i32x8);
    const __m256i power_i32x8 = _mm256_add_epi32(eighth_i32x8, _mm256_slli_epi32(k_i32x8, 20));
    return _mm256_fmadd_ps(p_f32x8, _mm256_castsi256_ps(power_i32x8), sum_f32x8);
}

static float term(float z, const redge_exp2 * e) {
    return _mm256_cvtss_f32(add_exp2_f32x8(_mm256_setzero_ps(), _mm256_set1_ps(z), e));
}

static inline __m256d widened_sum(__m256 x_f32x8) {
    const __m128 low_f32x4 = _mm256_castps256_ps128(x_f32x8);
    const __m128 high_f32x4 = _mm256_extractf128_ps(x_f32x8, 1);
    return _mm256_add_pd(_mm256_cvtps_pd(low_f32x4), _mm256_cvtps_pd(high_f32x4));
}

static inline float largest_f32x8(__m256 x_f32x8) {
    __m128 max_f32x4 = _mm_max_ps(_mm256_castps256_ps128(x_f32x8), _mm256_extractf128_ps(x_f32x8, 1));
    max_f32x4 = _mm_max_ps(max_f32x4, _mm_movehl_ps(max_f32x4, max_f32x4));
    return _mm_cvtss_f32(_mm_max_ss(max_f32x4, _mm_shuffle_ps(max_f32x4, max_f32x4, 1)));
}

/* At most 16 terms a lane before it is widened to double, as on AVX-512. */
static double chunk_sum(const float * chunk, const redge_exp2 * e, float * max) {
    enum { PART = REDGE_CHUNK / 2 };
    __m256 max_f32x8 = _mm256_set1_ps(-INFINITY);
    __m256d sum_f64x4 = _mm256_setzero_pd();
    for (const float * part = chunk; part != chunk + REDGE_CHUNK; part += PART) {
        __m256 a_f32x8 = _mm256_setzero_ps();
        __m256 b_f32x8 = a_f32x8, c_f32x8 = a_f32x8, d_f32x8 = a_f32x8;
        for (int32_t i = 0; i < PART; i += 32) {
            const __m256 za_f32x8 = _mm256_loadu_ps(part + i), zb_f32x8 = _mm256_loadu_ps(part + i + 8);
            const __m256 zc_f32x8 = _mm256_loadu_ps(part + i + 16), zd_f32x8 = _mm256_loadu_ps(part + i + 24);
            const __m256 ab_f32x8 = _mm256_max_ps(za_f32x8, zb_f32x8), cd_f32x8 = _mm256_max_ps(zc_f32x8, zd_f32x8);
            max_f32x8 = _mm256_max_ps(max_f32x8, _mm256_max_ps(ab_f32x8, cd_f32x8));
            a_f32x8 = add_exp2_f32x8(a_f32x8, za_f32x8, e);
            b_f32x8 = add_exp2_f32x8(b_f32x8, zb_f32x8, e);
            c_f32x8 = add_exp2_f32x8(c_f32x8, zc_f32x8, e);
            d_f32x8 = add_exp2_f32x8(d_f32x8, zd_f32x8, e);
        }
        sum_f64x4 = _mm256_add_pd(sum_f64x4, _mm256_add_pd(widened_sum(a_f32x8), widened_sum(b_f32x8)));
        sum_f64x4 = _mm256_add_pd(sum_f64x4, _mm256_add_pd(widened_sum(c_f32x8), widened_sum(d_f32x8)));
    }
    *max = largest_f32x8(max_f32x8);
    double sums[4];
    _mm256_storeu_pd(sums, sum_f64x4);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static inline unsigned hits_of(const float * logits, __m256 floor_f32x8) {
    return (unsigned) _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(logits), floor_f32x8, _CMP_GE_OQ));
}

static int32_t pick(const float * logits, int32_t begin, int32_t end, float floor, int32_t * picks) {
    const __m256 floor_f32x8 = _mm256_set1_ps(floor);
    int32_t n_picks = 0;
    int32_t i = begin;
    for (; end - i >= 32; i += 32) {
        const float * z = logits + i;
        const __m256 ab_f32x8 = _mm256_max_ps(_mm256_loadu_ps(z), _mm256_loadu_ps(z + 8));
        const __m256 cd_f32x8 = _mm256_max_ps(_mm256_loadu_ps(z + 16), _mm256_loadu_ps(z + 24));
        const __m256 max_f32x8 = _mm256_max_ps(ab_f32x8, cd_f32x8);
        if (_mm256_movemask_ps(_mm256_cmp_ps(max_f32x8, floor_f32x8, _CMP_GE_OQ)) == 0) {
            continue; /* nearly always */
        }
        unsigned hits = hits_of(z, floor_f32x8) | hits_of(z + 8, floor_f32x8) << 8 |
                        hits_of(z + 16, floor_f32x8) << 16 | hits_of(z + 24, floor_f32x8) << 24;
        for (; hits != 0; hits &= hits - 1) {
            picks[n_picks++] = i + __builtin_ctz(hits);
        }
    }
    return n_picks + redge_kernels_serial.pick(logits, i, end, floor, picks + n_picks);
}

static bool available(void) {
    return redge_cpu_has_avx2();
}

const redge_kernels redge_kernels_avx2 = {
    .name = "avx2",
    .available = available,
    .scan = scan,
    .lane_maxima = lane_maxima,
    .pick = pick,
};
