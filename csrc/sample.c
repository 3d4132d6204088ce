/* llama_sampler_sample, with a status where llama.cpp aborts, and the fast front where it applies. */
#include "fast.h"
#include "policy.h"

#include <math.h>

static int32_t vocab_size(const struct llama_context * ctx) {
    return redge_host.llama_vocab_n_tokens(redge_host.llama_model_get_vocab(redge_host.llama_get_model(ctx)));
}

/* The output row: all logits, or what a backend sampler left over. */
typedef struct output_row {
    const float * logits;
    const float * probs; /* NULL: none yet */
    const int32_t * ids; /* NULL: index i is token i */
    int32_t n;
} output_row;

static redge_status read_row(const redge_sampler * s, struct llama_context * ctx, int32_t idx, output_row * row) {
    *row = (output_row){.probs = redge_host.llama_get_sampled_probs_ith(ctx, idx),
                        .logits = redge_host.llama_get_sampled_logits_ith(ctx, idx)};
    if (row->probs != NULL || row->logits != NULL) {
        row->ids = redge_host.llama_get_sampled_candidates_ith(ctx, idx);
        row->n = (int32_t) (row->probs != NULL ? redge_host.llama_get_sampled_probs_count_ith(ctx, idx)
                                               : redge_host.llama_get_sampled_logits_count_ith(ctx, idx));
    } else {
        row->logits = redge_host.llama_get_logits_ith(ctx, idx);
        row->n = s->options.n_vocab;
    }
    if (row->logits == NULL || row->n <= 0) {
        return REDGE_ERR_NO_OUTPUT;
    }
    return row->n <= s->options.n_vocab ? REDGE_OK : REDGE_ERR_N_VOCAB;
}

static void load_candidates(redge_sampler * s, const output_row * row, llama_token_data_array * cur_p) {
    for (int32_t i = 0; i < row->n; ++i) {
        s->candidates[i] = (llama_token_data){
            .id = row->ids != NULL ? row->ids[i] : i,
            .logit = row->logits[i],
            .p = row->probs != NULL ? row->probs[i] : 0.0f,
        };
    }
    *cur_p = (llama_token_data_array){.data = s->candidates, .size = (size_t) row->n, .selected = -1, .sorted = false};
}

static bool is_head_of(struct llama_sampler * chain, const redge_sampler * s) {
    const struct llama_sampler * first = redge_host.llama_sampler_chain_get(chain, 0);
    return first != NULL && first->ctx == s;
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

static void apply_all(struct llama_sampler * smpl, llama_token_data_array * cur_p) {
    const bool is_chain = redge_host.llama_sampler_chain_get(smpl, -1) != NULL;
    if (is_chain) {
        redge_chain_apply(smpl, 0, cur_p);
    } else {
        redge_host.llama_sampler_apply(smpl, cur_p);
    }
}

/* *forced: the token that this position must have, -1 if none. */
static redge_status sample_on_cpu(struct llama_sampler * chain, redge_sampler * s, const output_row * row,
                                  int32_t * token, int32_t * forced) {
    const bool decides = s->phase == REDGE_PHASE_DECIDE;
    llama_token_data_array cur_p;
    if (!is_head_of(chain, s) || !redge_fast_apply(chain, s, row->logits, &cur_p)) {
        load_candidates(s, row, &cur_p);
        apply_all(chain, &cur_p);
    }
    *forced = decides ? s->decision.token_id : -1;
    return decides && s->status != REDGE_OK ? s->status : selected_token(&cur_p, token);
}

/* The graph has gone all of the chain's way (*token is there) or part of it, us included, and the CPU goes the rest. */
static redge_status finish_backend(struct llama_sampler * chain, redge_sampler * s, const output_row * row,
                                   int32_t * token, int32_t * forced) {
    const redge_status status = redge_sampler_check_backend(s, forced);
    if (status != REDGE_OK || *token >= 0) {
        return status;
    }
    llama_token_data_array cur_p;
    load_candidates(s, row, &cur_p);
    redge_host.llama_sampler_apply(chain, &cur_p);
    return selected_token(&cur_p, token);
}

/* A sampler after ours can raise what ours has masked, or replace what is decided: neither may come out. */
static redge_status check_token(const redge_sampler * s, int32_t token, int32_t forced) {
    if (forced >= 0) {
        return token == forced ? REDGE_OK : REDGE_ERR_NOT_DECIDED;
    }
    return redge_is_control_token(&s->policy, token) ? REDGE_ERR_CONTROL_TOKEN : REDGE_OK;
}

static redge_status sample(struct llama_sampler * chain, redge_sampler * s, struct llama_context * ctx, int32_t idx,
                           int32_t * token) {
    if (vocab_size(ctx) != s->options.n_vocab) {
        return REDGE_ERR_N_VOCAB;
    }
    *token = redge_host.llama_get_sampled_token_ith(ctx, idx);
    output_row row = {.n = 0};
    redge_status status = *token >= 0 ? REDGE_OK : read_row(s, ctx, idx, &row);
    if (status != REDGE_OK) {
        return status;
    }
    int32_t forced = -1;
    const bool on_cpu = *token < 0 && row.probs == NULL && row.ids == NULL;
    status = on_cpu ? sample_on_cpu(chain, s, &row, token, &forced) : finish_backend(chain, s, &row, token, &forced);
    return status == REDGE_OK ? check_token(s, *token, forced) : status;
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
