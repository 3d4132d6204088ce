/* The operations that have one implementation per instruction set. The serial ones are the oracle: the plainest code
 * that is right, in double. Accuracy of `scan` on every ISA: relative error of `sum` <= 1e-6 against float64; `max`,
 * `argmax` and `finite` are exact. */
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

typedef struct redge_kernels {
    const char * name;
    bool (*available)(void);
    /* One pass over n >= 1 logits; T > 0. */
    void (*scan)(const float * logits, int32_t n, double temperature, redge_scan * out);
} redge_kernels;

extern const redge_kernels redge_kernels_serial;

/* The table in force; NULL if REFUSAL_EDGE_ISA names one that is unknown or cannot run. */
const redge_kernels * redge_kernels_active(void);

#endif
