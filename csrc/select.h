/* The few logits that a sampler can keep, found in one pass without building a candidate for every token. */
#ifndef REDGE_SELECT_H
#define REDGE_SELECT_H

#include "kernels.h"

enum { REDGE_MAX_TOP_K = 1024, REDGE_MAX_PICKS = 4096 };
enum { REDGE_DENSE_PICKS = 256, REDGE_DENSE_PICKS_PER_CHUNK = REDGE_CHUNK / 8 };

typedef struct redge_selector {
    int32_t n_vocab;
    int32_t n_excluded;
    const int32_t * excluded; /* token ids that are never selected */
    float * maxima;           /* of the lanes of the logits last read, excluded tokens left out */
    float * chunk_maxima;
    int32_t * picks; /* token ids */
} redge_selector;

/* False if memory is short. `excluded` must outlive the selector. */
bool redge_selector_init(redge_selector * s, int32_t n_vocab, const int32_t * excluded, int32_t n_excluded);
void redge_selector_free(redge_selector * s);

/* The one pass over the logits; false if there is NaN or +Inf. The functions below look at the logits last read. */
bool redge_selector_read(redge_selector * s, const redge_kernels * kernels, const float * logits);

float redge_selector_max(const redge_selector * s);

/* Lowest token id of the largest logit; -1 if there is none but -Inf. */
int32_t redge_selector_argmax(redge_selector * s, const redge_kernels * kernels, const float * logits);

/* Writes the ids of all logits >= floor, which is > -Inf, to picks, ascending; returns how many, or -1 as soon as they
 * are more than `most` and `most_per_chunk` for each chunk so far: what is worth the detour is over by then. At most
 * REDGE_MAX_PICKS and 0, or REDGE_DENSE_PICKS and REDGE_DENSE_PICKS_PER_CHUNK. */
int32_t redge_selector_at_least(redge_selector * s, const redge_kernels * kernels, const float * logits, float floor,
                                int32_t most, int32_t most_per_chunk);

/* Writes the ids of the k largest logits to picks, descending. False if they are not the same for every correct
 * algorithm (ties among them or with the next one, fewer than k finite), or k is outside [1, REDGE_MAX_TOP_K]. */
bool redge_selector_top_k(redge_selector * s, const redge_kernels * kernels, const float * logits, int32_t k);

/* Sum of expf(z - max) over the vocabulary exactly as llama.cpp's softmax takes it, in float and in the order of the
 * token ids, in which excluded tokens add nothing; or a part of it, as soon as that is greater than `most`. `max` is
 * redge_selector_max, and finite. Overwrites the picks. */
float redge_selector_softmax_sum(redge_selector * s, const redge_kernels * kernels, const float * logits, float max,
                                 float most);

#endif
