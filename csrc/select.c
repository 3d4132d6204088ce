#include "select.h"

#include <math.h>
#include <stdlib.h>

/* A chunk more than asked for, since picks are counted a chunk at a time. */
static size_t room_for_picks(int32_t n_vocab) {
    const int32_t dense = REDGE_DENSE_PICKS + redge_n_chunks(n_vocab) * REDGE_DENSE_PICKS_PER_CHUNK;
    return (size_t) (dense > REDGE_MAX_PICKS ? dense : REDGE_MAX_PICKS) + REDGE_CHUNK;
}

bool redge_selector_init(redge_selector * s, int32_t n_vocab, const int32_t * excluded, int32_t n_excluded) {
    *s = (redge_selector){.n_vocab = n_vocab, .n_excluded = n_excluded, .excluded = excluded};
    s->maxima = malloc((size_t) redge_n_chunks(n_vocab) * REDGE_LANES * sizeof *s->maxima);
    s->chunk_maxima = malloc((size_t) redge_n_chunks(n_vocab) * sizeof *s->chunk_maxima);
    s->picks = malloc(room_for_picks(n_vocab) * sizeof *s->picks);
    return s->maxima != NULL && s->chunk_maxima != NULL && s->picks != NULL;
}

void redge_selector_free(redge_selector * s) {
    free(s->maxima);
    free(s->chunk_maxima);
    free(s->picks);
}

static bool is_excluded(const redge_selector * s, int32_t id) {
    for (int32_t i = 0; i < s->n_excluded; ++i) {
        if (s->excluded[i] == id) {
            return true;
        }
    }
    return false;
}

static void leave_out_of_maxima(redge_selector * s, const float * logits, int32_t id) {
    const int32_t chunk = id / REDGE_CHUNK;
    const int32_t lane = id % REDGE_LANES;
    const int32_t start = chunk * REDGE_CHUNK;
    const int32_t length = s->n_vocab - start < REDGE_CHUNK ? s->n_vocab - start : REDGE_CHUNK;
    float max = -INFINITY;
    for (int32_t i = lane; i < length; i += REDGE_LANES) {
        if (logits[start + i] > max && !is_excluded(s, start + i)) {
            max = logits[start + i];
        }
    }
    s->maxima[chunk * REDGE_LANES + lane] = max;
}

bool redge_selector_read(redge_selector * s, const redge_kernels * kernels, const float * logits) {
    if (!kernels->lane_maxima(logits, s->n_vocab, s->maxima)) {
        return false;
    }
    for (int32_t i = 0; i < s->n_excluded; ++i) {
        leave_out_of_maxima(s, logits, s->excluded[i]);
    }
    for (int32_t c = 0; c < redge_n_chunks(s->n_vocab); ++c) {
        s->chunk_maxima[c] = redge_lane_maximum(s->maxima + c * REDGE_LANES);
    }
    return true;
}

float redge_selector_max(const redge_selector * s) {
    float max = s->chunk_maxima[0];
    for (int32_t c = 1; c < redge_n_chunks(s->n_vocab); ++c) {
        max = s->chunk_maxima[c] > max ? s->chunk_maxima[c] : max;
    }
    return max;
}

static bool holds_excluded(const redge_selector * s, int32_t start, int32_t end) {
    for (int32_t i = 0; i < s->n_excluded; ++i) {
        if (s->excluded[i] >= start && s->excluded[i] < end) {
            return true;
        }
    }
    return false;
}

/* Appends the ids of one chunk that reach the floor to the first n picks; returns the new n. */
static int32_t pick_chunk(redge_selector * s, const redge_kernels * kernels, const float * logits, int32_t chunk,
                          float floor, int32_t n) {
    const int32_t start = chunk * REDGE_CHUNK;
    const int32_t end = s->n_vocab - start < REDGE_CHUNK ? s->n_vocab : start + REDGE_CHUNK;
    const int32_t n_all = n + kernels->pick(logits, start, end, floor, s->picks + n);
    if (!holds_excluded(s, start, end)) {
        return n_all;
    }
    for (int32_t i = n; i < n_all; ++i) {
        if (!is_excluded(s, s->picks[i])) {
            s->picks[n++] = s->picks[i];
        }
    }
    return n;
}

int32_t redge_selector_at_least(redge_selector * s, const redge_kernels * kernels, const float * logits, float floor,
                                int32_t most, int32_t most_per_chunk) {
    int32_t n = 0;
    for (int32_t c = 0; c < redge_n_chunks(s->n_vocab); ++c) {
        most += most_per_chunk;
        if (s->chunk_maxima[c] >= floor) {
            n = pick_chunk(s, kernels, logits, c, floor, n);
            if (n > most) {
                return -1;
            }
        }
    }
    return n;
}

int32_t redge_selector_argmax(redge_selector * s, const redge_kernels * kernels, const float * logits) {
    const float max = redge_selector_max(s);
    if (max == -INFINITY) {
        return -1;
    }
    int32_t chunk = 0;
    while (s->chunk_maxima[chunk] < max) {
        ++chunk;
    }
    pick_chunk(s, kernels, logits, chunk, max, 0);
    return s->picks[0];
}

/* A term less than half a unit in the last place of the sum, 2^-25 of it, is rounded away when it is added: it needs
 * not be computed. This is a logit below which all terms are so small, rounding and the error of expf allowed for. */
static float negligible_beside(float sum, float max) {
    const double slack = 0.01 + (fabs(max) + 64.0) * 0x1p-22;
    return (float) (max + log(sum) - 25.0 * 0.6931471805599453 - slack);
}

float redge_selector_softmax_sum(redge_selector * s, const redge_kernels * kernels, const float * logits, float max,
                                 float most) {
    float sum = 0.0f;
    for (int32_t c = 0; c < redge_n_chunks(s->n_vocab) && sum <= most; ++c) {
        const float floor = sum > 0.0f ? negligible_beside(sum, max) : -INFINITY;
        if (s->chunk_maxima[c] < floor) {
            continue;
        }
        const int32_t n = pick_chunk(s, kernels, logits, c, floor, 0);
        for (int32_t i = 0; i < n; ++i) {
            sum += expf(logits[s->picks[i]] - max);
        }
    }
    return sum;
}

static void sift_down(float * heap, int32_t n, int32_t root) {
    const float value = heap[root];
    for (int32_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (value <= heap[child]) {
            break;
        }
        heap[root] = heap[child];
        root = child;
    }
    heap[root] = value;
}

static float kth_largest(const float * values, int32_t n, int32_t k) {
    float heap[REDGE_MAX_TOP_K]; /* the k largest so far, the least of them at the root */
    for (int32_t i = 0; i < k; ++i) {
        heap[i] = values[i];
    }
    for (int32_t i = k / 2 - 1; i >= 0; --i) {
        sift_down(heap, k, i);
    }
    for (int32_t i = k; i < n; ++i) {
        if (values[i] > heap[0]) {
            heap[0] = values[i];
            sift_down(heap, k, 0);
        }
    }
    return heap[0];
}

static float smallest_finite(const float * values, int32_t n) {
    float smallest = INFINITY;
    for (int32_t i = 0; i < n; ++i) {
        smallest = values[i] > -INFINITY && values[i] < smallest ? values[i] : smallest;
    }
    return smallest;
}

/* A floor that at least k logits reach, so that the k largest all do: the k-th largest maximum, of the chunks if there
 * are plenty of them, else of their lanes. If there are not even k lanes, all lanes reach their smallest maximum, most
 * of them more than once: k logits probably do. */
static float floor_of_top_k(const redge_selector * s, int32_t k) {
    const int32_t n_chunks = redge_n_chunks(s->n_vocab);
    if (k <= n_chunks / 2) {
        return kth_largest(s->chunk_maxima, n_chunks, k);
    }
    const int32_t n_lanes = n_chunks * REDGE_LANES;
    return k <= n_lanes ? kth_largest(s->maxima, n_lanes, k) : smallest_finite(s->maxima, n_lanes);
}

/* Whole numbers in the order of the floats; the two zeros are one. */
static uint32_t ordered(float x) {
    union {
        float f;
        uint32_t u;
    } bits = {.f = x + 0.0f};
    return bits.u ^ (bits.u >> 31 ? 0xFFFFFFFFu : 0x80000000u);
}

/* Heap sort, a heap with the least key at the root: in place, without the allocation that qsort may make. */
static void sort_descending(uint64_t * keys, int32_t n) {
    for (int32_t size = n, i = n / 2; size > 1;) {
        uint64_t key;
        if (i > 0) {
            key = keys[--i];
        } else {
            key = keys[--size];
            keys[size] = keys[0];
        }
        int32_t root = i;
        for (int32_t child = 2 * root + 1; child < size; child = 2 * root + 1) {
            child += child + 1 < size && keys[child + 1] < keys[child];
            if (key <= keys[child]) {
                break;
            }
            keys[root] = keys[child];
            root = child;
        }
        keys[root] = key;
    }
}

static bool is_unambiguous(const uint64_t * keys, int32_t n, int32_t k) {
    for (int32_t i = 1; i <= k && i < n; ++i) {
        if (keys[i - 1] >> 32 == keys[i] >> 32) {
            return false;
        }
    }
    return true;
}

bool redge_selector_top_k(redge_selector * s, const redge_kernels * kernels, const float * logits, int32_t k) {
    if (k < 1 || k > REDGE_MAX_TOP_K) {
        return false;
    }
    const float floor = floor_of_top_k(s, k);
    if (floor == -INFINITY || floor == INFINITY) {
        return false;
    }
    const int32_t n = redge_selector_at_least(s, kernels, logits, floor, REDGE_MAX_PICKS, 0);
    if (n < k) {
        return false;
    }
    uint64_t keys[REDGE_MAX_PICKS];
    for (int32_t i = 0; i < n; ++i) {
        keys[i] = (uint64_t) ordered(logits[s->picks[i]]) << 32 | (uint32_t) s->picks[i];
    }
    sort_descending(keys, n);
    for (int32_t i = 0; i < k; ++i) {
        s->picks[i] = (int32_t) (uint32_t) keys[i];
    }
    return is_unambiguous(keys, n, k);
}
