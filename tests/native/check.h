/* The smallest harness: a failed check prints where and what, and the test program returns 1. */
#ifndef REDGE_TEST_CHECK_H
#define REDGE_TEST_CHECK_H

#include <math.h>
#include <stdio.h>

static int n_failed;
static int n_checked;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        ++n_checked;                                                                                                   \
        if (!(condition)) {                                                                                            \
            ++n_failed;                                                                                                \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                             \
        }                                                                                                              \
    } while (0)

#define CHECK_NEAR(got, expected, tolerance) CHECK(fabs((double) (got) - (double) (expected)) <= (tolerance))

#define REPORT() (printf("%d checks, %d failed\n", n_checked, n_failed), n_failed != 0)

#endif
