/* The fast front: what the first samplers of a chain leave over, found without a candidate for every token. */
#ifndef REDGE_FAST_H
#define REDGE_FAST_H

#include "sampler.h"

/* Fills *cur_p with exactly what `chain`, whose first sampler is ours, makes of these raw logits. False, with nothing
 * that matters changed, where that cannot be proven equal: the stock way must be taken. */
bool redge_fast_apply(struct llama_sampler * chain, redge_sampler * s, const float * logits,
                      llama_token_data_array * cur_p);

#endif
