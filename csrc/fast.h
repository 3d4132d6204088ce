/* The fast front: what the first samplers of a chain leave over, found without a candidate for every token. */
#ifndef REDGE_FAST_H
#define REDGE_FAST_H

#include "sampler.h"

/* Fills *cur_p with exactly what `chain`, whose first sampler is ours, makes of these raw logits. False, with nothing
 * that matters changed, where that cannot be proven equal: the stock way must be taken. */
bool redge_fast_apply(struct llama_sampler * chain, redge_sampler * s, const float * logits,
                      llama_token_data_array * cur_p);

/* Applies the samplers of a chain from position `first` on. None is left out: llama_sampler_apply skips, on the CPU's
 * logits too, what ran on a backend while the chain was attached to a context. */
void redge_chain_apply(struct llama_sampler * chain, int32_t first, llama_token_data_array * cur_p);

#endif
