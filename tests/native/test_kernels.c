/* Every instruction set against the serial kernels: exact where the contract says exact, 1e-6 for the sum; on sizes at
 * the edges of lanes and chunks, with ties, -Inf, NaN and +Inf anywhere, several temperatures, and 262k logits. */
#include "check.h"
#include "kernels.h"
#include "refusal_edge.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { N_MAX = 262144 + 17 };

static float logits[N_MAX];
static float maxima[2][(N_MAX / REDGE_CHUNK + 1) * REDGE_LANES];
static int32_t picks[2][N_MAX];
static uint64_t state = 88172645463325252u;

static double uniform(void) { /* xorshift64, in [0, 1) */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double) (state >> 11) * 0x1p-53;
}

typedef void fill(int32_t n);

static void spread(int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = (float) (uniform() * 20.0 - 10.0);
    }
}

static void flat(int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = -3.7f;
    }
}

static void peaked(int32_t n) {
    spread(n);
    logits[(int32_t) (uniform() * n)] = 31.3f;
}

static void below_one_peak(int32_t n) { /* all but one at the same distance: rounding cannot average out */
    flat(n);
    logits[n / 2] = 7.9f;
}

static void tied(int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = (float) (int32_t) (uniform() * 5.0);
    }
}

static void masked(int32_t n) {
    spread(n);
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = uniform() < 0.7 ? -INFINITY : logits[i];
    }
}

static void all_masked(int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = -INFINITY;
    }
}

static void large(int32_t n) {
    spread(n);
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = logits[i] * 1e3f + 1e5f;
    }
}

/* Every chunk `step` above the one before: the sum so far must come along when the origin moves. */
static void rising(int32_t n, double step) {
    for (int32_t i = 0; i < n; ++i) {
        logits[i] = (float) (step * (i / REDGE_CHUNK) + uniform());
    }
}

static void rising_slowly(int32_t n) {
    rising(n, 2.2);
}

static void rising_fast(int32_t n) {
    rising(n, 3.6);
}

static void beyond_float(int32_t n) {
    spread(n);
    for (int32_t i = 0; i < n; ++i) {
        logits[i] *= 3e37f;
    }
}

static fill * const fills[] = {spread,        flat,        peaked,
                               below_one_peak, tied,        masked,
                               all_masked,     large,       beyond_float,
                               rising_slowly,  rising_fast};
static const int32_t sizes[] = {1, 7, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 5000, 32000, 128256, N_MAX};
static const double temperatures[] = {1.0, 0.3, 2.5, 1e-3, 1e-9, 1e9};

static const redge_kernels * force(const char * name) {
    CHECK(redge_isa_force(name) == REDGE_OK);
    return redge_kernels_active();
}

static void check_scan(const redge_kernels * k, int32_t n, double temperature) {
    redge_scan got;
    redge_scan expected;
    k->scan(logits, n, temperature, &got);
    redge_kernels_serial.scan(logits, n, temperature, &expected);
    CHECK(got.finite == expected.finite);
    if (expected.finite) {
        CHECK(got.max == expected.max);
        CHECK(got.argmax == expected.argmax);
        CHECK_NEAR(got.sum, expected.sum, 1e-6 * expected.sum);
    }
}

static void check_selection(const redge_kernels * k, int32_t n) {
    CHECK(k->lane_maxima(logits, n, maxima[0]) == redge_kernels_serial.lane_maxima(logits, n, maxima[1]));
    const size_t size = (size_t) redge_n_chunks(n) * REDGE_LANES * sizeof maxima[0][0];
    CHECK(memcmp(maxima[0], maxima[1], size) == 0);
    const int32_t begin = n > 2000 ? REDGE_CHUNK : 0;
    const float floor = logits[n / 3] > -INFINITY ? logits[n / 3] : 0.0f;
    const int32_t n_got = k->pick(logits, begin, n, floor, picks[0]);
    const int32_t n_expected = redge_kernels_serial.pick(logits, begin, n, floor, picks[1]);
    CHECK(n_got == n_expected);
    CHECK(memcmp(picks[0], picks[1], (size_t) n_expected * sizeof picks[0][0]) == 0);
}

static void check_not_finite(const redge_kernels * k, int32_t n, float bad) {
    const int32_t positions[] = {0, n / 2, n - 1, (int32_t) (uniform() * n)};
    for (size_t p = 0; p < sizeof positions / sizeof positions[0]; ++p) {
        spread(n);
        logits[positions[p]] = bad;
        redge_scan scan;
        k->scan(logits, n, 1.0, &scan);
        CHECK(!scan.finite);
        CHECK(!k->lane_maxima(logits, n, maxima[0]));
    }
}

/* Nearly all at the same distance below the maximum and far above the first chunk, so that the rounding of their
 * exponents cannot average out. */
static void check_far_above_the_first_chunk(const redge_kernels * k) {
    enum { N = 4 * REDGE_CHUNK };
    for (int round = 0; round < 500; ++round) {
        const double top = 5.0 + 60.0 * uniform();
        const double below = 1.0 + 5.0 * uniform();
        for (int32_t i = 0; i < N; ++i) {
            logits[i] = i < REDGE_CHUNK ? 0.0f : (float) (top - below);
        }
        logits[N - 1] = (float) top;
        check_scan(k, N, 1.0);
    }
}

static void check_isa(const char * name) {
    const redge_kernels * k = force(name);
    check_far_above_the_first_chunk(k);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; ++s) {
        for (size_t f = 0; f < sizeof fills / sizeof fills[0]; ++f) {
            fills[f](sizes[s]);
            check_selection(k, sizes[s]);
            for (size_t t = 0; t < sizeof temperatures / sizeof temperatures[0]; ++t) {
                if (sizes[s] < 10000 || t == 0) {
                    check_scan(k, sizes[s], temperatures[t]);
                }
            }
        }
        check_not_finite(k, sizes[s], NAN);
        check_not_finite(k, sizes[s], -NAN);
        check_not_finite(k, sizes[s], INFINITY);
    }
}

int main(void) {
    for (size_t i = 0; redge_isa_name(i) != NULL; ++i) {
        const bool runs = redge_isa_available(redge_isa_name(i));
        printf("%s: %s\n", redge_isa_name(i), runs ? "checked" : "cannot run here");
        if (runs) {
            check_isa(redge_isa_name(i));
        }
    }
    return REPORT();
}
