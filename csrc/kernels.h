/* The operations that have one implementation per instruction set. The serial ones are the oracle: the plainest code
 * that is right, in double. On every ISA `max`, `argmax`, `finite`, the maxima and the picks are exact, and `sum` is
 * within 1e-6 of float64, relatively. */
#ifndef REDGE_KERNELS_H
#define REDGE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct redge_scan {
    double sum;     /* of exp((z - max) / T); 0 if every logit is -Inf */
    float max;      /* -Inf if every logit is */
    int32_t argmax; /* lowest index of max */
    bool finite;    /* no NaN, no +Inf; if false the other fields mean nothing */
} redge_scan;

/* Selection looks at the logits in chunks of REDGE_CHUNK. Lane l of a chunk holds its logits at l, l + REDGE_LANES,
 * ...: what a vector register keeps apart by itself, so that a lane's maximum costs no shuffle. */
enum { REDGE_LANES = 16, REDGE_CHUNK = 1024 };

static inline int32_t redge_n_chunks(int32_t n) {
    return n / REDGE_CHUNK + (n % REDGE_CHUNK != 0);
}

/* The maximum of a chunk from those of its lanes. */
static inline float redge_lane_maximum(const float * maxima) {
    float max = maxima[0];
    for (int32_t lane = 1; lane < REDGE_LANES; ++lane) {
        max = maxima[lane] > max ? maxima[lane] : max;
    }
    return max;
}

typedef struct redge_kernels {
    const char * name;
    bool (*available)(void);

    /* One pass over n >= 1 logits; T > 0. */
    void (*scan)(const float * logits, int32_t n, double temperature, redge_scan * out);

    /* The maximum of every lane of every chunk: REDGE_LANES * redge_n_chunks(n) of them, -Inf for an empty lane. False
     * if there is NaN or +Inf. */
    bool (*lane_maxima)(const float * logits, int32_t n, float * maxima);

    /* Ascending indices in [begin, end) of the logits >= floor, none of which is NaN; returns how many. `picks` has
     * room for all. */
    int32_t (*pick)(const float * logits, int32_t begin, int32_t end, float floor, int32_t * picks);
} redge_kernels;

extern const redge_kernels redge_kernels_serial;
#ifdef REDGE_X86
extern const redge_kernels redge_kernels_avx2;
extern const redge_kernels redge_kernels_avx512;
#endif
#ifdef REDGE_NEON
extern const redge_kernels redge_kernels_neon;
#endif

/* The table in force; NULL if REFUSAL_EDGE_ISA names one that is unknown or cannot run. */
const redge_kernels * redge_kernels_active(void);

#endif
