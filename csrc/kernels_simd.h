/* The part of the kernels that is the same on every SIMD instruction set. A file that includes it defines the two
 * functions on whole chunks of REDGE_CHUNK logits that are declared first, and the one on a single logit. */
#ifndef REDGE_KERNELS_SIMD_H
#define REDGE_KERNELS_SIMD_H

#include "exp2.h"
#include "kernels.h"

#include <math.h>
#include <string.h>

static bool chunk_maxima(const float * chunk, float * maxima); /* of the lanes; false: NaN or +Inf seen */
static float term(float z, const redge_exp2 * e);              /* 2^(z * scale - offset) */

/* The sum of the chunk's terms, and its maximum. With NaN, +Inf or a logit above `e->highest` in it, the sum is not
 * finite or the maximum is above `e->highest`, and neither means more than that. */
static double chunk_sum(const float * chunk, const redge_exp2 * e, float * max);

/* The chunk itself, or, for the short one at the end, a copy filled up with -Inf: it adds nothing to any result. */
static inline const float * whole_chunk(const float * logits, int32_t n, int32_t chunk, float * copy) {
    const int32_t start = chunk * REDGE_CHUNK;
    if (n - start >= REDGE_CHUNK) {
        return logits + start;
    }
    memcpy(copy, logits + start, (size_t) (n - start) * sizeof *copy);
    for (int32_t i = n - start; i < REDGE_CHUNK; ++i) {
        copy[i] = -INFINITY;
    }
    return copy;
}

static inline int32_t first_of(const float * logits, int32_t i, float value) {
    while (logits[i] != value) {
        ++i;
    }
    return i;
}

/* Makes the chunk's maximum the origin of `e`, unless it is -Inf. False if there is NaN or +Inf, or float is too
 * coarse.
 */
static bool set_origin(const float * chunk, double temperature, redge_exp2 * e, float * max) {
    float maxima[REDGE_LANES];
    if (!chunk_maxima(chunk, maxima)) {
        return false;
    }
    *max = redge_lane_maximum(maxima);
    return *max == -INFINITY || redge_exp2_for(*max, temperature, e);
}

/* Memory is read once, and each logit once: its term is taken before it is known whether it is the largest, in units of
 * an origin that the maximum so far is not far above. The sum of a chunk is in float over few terms a lane, the sum of
 * the chunks in double. */
static void scan(const float * logits, int32_t n, double temperature, redge_scan * out) {
    *out = (redge_scan) {.sum = 0.0, .max = -INFINITY, .argmax = 0, .finite = true};
    redge_exp2 e = {0};
    bool has_origin = false;
    int32_t best_chunk = 0;
    float copy[REDGE_CHUNK];
    for (int32_t c = 0; c < redge_n_chunks(n); ++c) {
        const float * chunk = whole_chunk(logits, n, c, copy);
        float max = -INFINITY;
        double sum = has_origin ? chunk_sum(chunk, &e, &max) : 0.0;
        if (!has_origin || !(sum < INFINITY) || max > e.highest) {
            const float offset = e.offset;
            if (!set_origin(chunk, temperature, &e, &max)) {
                redge_kernels_serial.scan(logits, n, temperature, out);
                return;
            }
            if (max == -INFINITY) {
                continue;
            }
            out->sum = ldexp(out->sum, (int) (offset - e.offset));
            has_origin = true;
            sum = chunk_sum(chunk, &e, &max);
        }
        out->sum += sum;
        if (max > out->max) {
            out->max = max;
            best_chunk = c;
        }
    }
    if (has_origin) {
        out->sum /= term(out->max, &e);
        out->argmax = first_of(logits, best_chunk * REDGE_CHUNK, out->max);
    }
}

static bool lane_maxima(const float * logits, int32_t n, float * maxima) {
    float copy[REDGE_CHUNK];
    bool finite = true;
    for (int32_t c = 0; c < redge_n_chunks(n); ++c) {
        finite &= chunk_maxima(whole_chunk(logits, n, c, copy), maxima + c * REDGE_LANES);
    }
    return finite;
}

#endif
