/* The oracle: every other instruction set must agree with this file. */
#include "kernels.h"

#include <math.h>
#include <stddef.h>

/* Logits are read once from memory: a block is short enough to be still in the first cache when it is read again. */
enum { BLOCK = 1024 };

static bool available(void) {
    return true;
}

static void scan(const float * logits, int32_t n, double temperature, redge_scan * out) {
    *out = (redge_scan){.sum = 0.0, .max = -INFINITY, .argmax = 0, .finite = true};
    for (int32_t start = 0; start < n; start += BLOCK) {
        const int32_t end = n - start < BLOCK ? n : start + BLOCK;
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

const redge_kernels redge_kernels_serial = {
    .name = "serial",
    .available = available,
    .scan = scan,
};
