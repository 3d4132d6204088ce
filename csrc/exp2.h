/* exp((z - max) / T) in float, for the SIMD scans: 2^x with x = z * scale - offset, split into a whole part and a rest.
 * One fused multiply-add makes x, so nothing is lost to cancellation; x is never far above 0, where float would be
 * coarse. The offset is a logit * scale only rounded to a whole number: the sum is in units of what the same arithmetic
 * makes of the maximum itself, which so counts as exactly 1. */
#ifndef REDGE_EXP2_H
#define REDGE_EXP2_H

#include <math.h>
#include <stdbool.h>

typedef struct redge_exp2 {
    float scale;   /* log2(e) / T */
    float offset;  /* that of the origin, rounded to a whole number */
    float lowest;  /* a logit at which 2^x is still a normal number, and no part of any sum */
    float highest; /* up to this logit x is small enough for the accuracy that kernels.h promises */
} redge_exp2;

/* False where float is too coarse, eighths of a number as large as the offset must be exact, or overflows: those logits
 * and temperatures go to the serial scan. */
static inline bool redge_exp2_for(float max, double temperature, redge_exp2 * e) {
    const double scale = 1.4426950408889634 / temperature;
    if (!(scale >= 0x1p-20 && scale <= 0x1p10) || !(fabs(max * scale) < 0x1p20)) {
        return false;
    }
    e->scale = (float) scale;
    e->offset = (float) rint((double) max * e->scale);
    e->lowest = (float) ((e->offset - 125.0) / e->scale);
    e->highest = (float) ((e->offset + 4.0) / e->scale);
    return true;
}

/* 2^r, exact at r = 0: fitted by reweighted least squares, relative error 1.1e-7, and 2.6e-8 for the last. */
/* clang-format off */
#define REDGE_EXP2_NEAREST {1.0f, 0.6931470036506653f, 0.24022242426872253f, 0.05550733581185341f, 0.009671512991189957f, 0.0013264728477224708f} /* |r| <= 1/2 */
#define REDGE_EXP2_FLOOR {1.0f, 0.6931512951850891f, 0.24016444385051727f, 0.05579991638660431f, 0.009017026983201504f, 0.0018671315629035234f} /* 0 <= r < 1 */
#define REDGE_EXP2_EIGHTH {1.0f, 0.6931472420692444f, 0.2402576357126236f, 0.0554962158203125f} /* |r| <= 1/16 */
/* clang-format on */

#endif
