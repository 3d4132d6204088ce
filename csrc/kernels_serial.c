/* The oracle: every other instruction set must agree with this file. */
#include "kernels.h"

#include <math.h>
#include <stddef.h>

static bool available(void) {
    return true;
}

/* Memory is read once: a chunk is still in the first cache when it is read again. */
static void scan(const float * logits, int32_t n, double temperature, redge_scan * out) {
    *out = (redge_scan){.sum = 0.0, .max = -INFINITY, .argmax = 0, .finite = true};
    for (int32_t c = 0; c < redge_n_chunks(n); ++c) {
        const int32_t start = c * REDGE_CHUNK;
        const int32_t end = n - start < REDGE_CHUNK ? n : start + REDGE_CHUNK;
        const float max_before = out->max;
        for (int32_t i = start; i < end; ++i) {
            if (!(logits[i] < INFINITY)) { /* NaN and +Inf */
                out->finite = false;
                return;
            }
            if (logits[i] > out->max) {
                out->max = logits[i];
                out->argmax = i;
            }
        }
        if (out->max == -INFINITY) {
            continue;
        }
        if (out->max > max_before) {
            out->sum *= exp(((double) max_before - out->max) / temperature);
        }
        for (int32_t i = start; i < end; ++i) {
            out->sum += exp(((double) logits[i] - out->max) / temperature);
        }
    }
}

static bool lane_maxima(const float * logits, int32_t n, float * maxima) {
    for (int32_t m = 0; m < REDGE_LANES * redge_n_chunks(n); ++m) {
        maxima[m] = -INFINITY;
    }
    for (int32_t i = 0; i < n; ++i) {
        if (!(logits[i] < INFINITY)) {
            return false;
        }
        float * max = &maxima[i / REDGE_CHUNK * REDGE_LANES + i % REDGE_LANES];
        *max = logits[i] > *max ? logits[i] : *max;
    }
    return true;
}

static int32_t pick(const float * logits, int32_t begin, int32_t end, float floor, int32_t * picks) {
    int32_t n_picks = 0;
    for (int32_t i = begin; i < end; ++i) {
        if (logits[i] >= floor) {
            picks[n_picks++] = i;
        }
    }
    return n_picks;
}

const redge_kernels redge_kernels_serial = {
    .name = "serial",
    .available = available,
    .scan = scan,
    .lane_maxima = lane_maxima,
    .pick = pick,
};
