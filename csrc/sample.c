/* llama_sampler_sample, with a status where llama.cpp aborts. */
#include "sampler.h"

#include <math.h>

static int32_t vocab_size(const struct llama_context * ctx) {
    return redge_host.llama_vocab_n_tokens(redge_host.llama_model_get_vocab(redge_host.llama_get_model(ctx)));
}

/* Candidates that a backend sampler left over, or the whole vocabulary. */
static redge_status load_candidates(redge_sampler * s, struct llama_context * ctx, int32_t idx,
                                    llama_token_data_array * cur_p) {
    const float * probs = redge_host.llama_get_sampled_probs_ith(ctx, idx);
    const float * logits = redge_host.llama_get_sampled_logits_ith(ctx, idx);
    const int32_t * ids = redge_host.llama_get_sampled_candidates_ith(ctx, idx);
    int32_t n = s->options.n_vocab;
    if (probs != NULL) {
        n = (int32_t) redge_host.llama_get_sampled_probs_count_ith(ctx, idx);
    } else if (logits != NULL) {
        n = (int32_t) redge_host.llama_get_sampled_logits_count_ith(ctx, idx);
    } else {
        logits = redge_host.llama_get_logits_ith(ctx, idx);
        ids = NULL;
    }
    if (logits == NULL || n <= 0) {
        return REDGE_ERR_NO_OUTPUT;
    }
    if (n > s->options.n_vocab) {
        return REDGE_ERR_N_VOCAB;
    }
    for (int32_t i = 0; i < n; ++i) {
        s->candidates[i] = (llama_token_data){
            .id = ids != NULL ? ids[i] : i,
            .logit = logits[i],
            .p = probs != NULL ? probs[i] : 0.0f,
        };
    }
    *cur_p = (llama_token_data_array){.data = s->candidates, .size = (size_t) n, .selected = -1, .sorted = false};
    return REDGE_OK;
}

static redge_status selected_token(const llama_token_data_array * cur_p, int32_t * token) {
    if (cur_p->selected < 0 || cur_p->selected >= (int64_t) cur_p->size) {
        return REDGE_ERR_NO_CANDIDATE;
    }
    /* Every candidate is masked: a grammar would throw through us when such a token is accepted. */
    if (cur_p->data[cur_p->selected].logit == -INFINITY) {
        return REDGE_ERR_NO_CANDIDATE;
    }
    *token = cur_p->data[cur_p->selected].id;
    return REDGE_OK;
}

static redge_status sample(struct llama_sampler * chain, redge_sampler * s, struct llama_context * ctx, int32_t idx,
                           int32_t * token) {
    if (vocab_size(ctx) != s->options.n_vocab) {
        return REDGE_ERR_N_VOCAB;
    }
    const int32_t backend_token = redge_host.llama_get_sampled_token_ith(ctx, idx);
    if (backend_token >= 0) {
        *token = backend_token;
        return s->phase == REDGE_PHASE_DECIDE ? REDGE_ERR_NOT_DECIDED : REDGE_OK;
    }
    const bool decides = s->phase == REDGE_PHASE_DECIDE;
    llama_token_data_array cur_p;
    redge_status status = load_candidates(s, ctx, idx, &cur_p);
    if (status != REDGE_OK) {
        return status;
    }
    redge_host.llama_sampler_apply(chain, &cur_p);
    if (decides && s->status != REDGE_OK) {
        return s->status;
    }
    return selected_token(&cur_p, token);
}

int32_t redge_sampler_sample(struct llama_sampler * chain, struct llama_context * ctx, int32_t idx,
                             redge_status * status) {
    redge_status ignored;
    redge_status * out = status != NULL ? status : &ignored;
    if (chain == NULL || ctx == NULL) {
        *out = REDGE_ERR_NULL;
        return -1;
    }
    const struct llama_sampler * ours = redge_sampler_find(chain);
    if (ours == NULL) {
        *out = redge_is_bound() ? REDGE_ERR_NOT_OURS : REDGE_ERR_NOT_BOUND;
        return -1;
    }
    int32_t token = -1;
    *out = sample(chain, redge_sampler_of(ours), ctx, idx, &token);
    if (*out != REDGE_OK) {
        return -1;
    }
    redge_host.llama_sampler_accept(chain, token);
    return token;
}
