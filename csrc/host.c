#include "host.h"

#include <string.h>

redge_host_api redge_host; /* zero size: not bound */

static bool is_complete(const redge_host_api * api) {
    return api->llama_sampler_init && api->llama_sampler_name && api->llama_sampler_apply &&
           api->llama_sampler_accept && api->llama_sampler_chain_get && api->llama_sampler_chain_n &&
           api->llama_get_model && api->llama_model_get_vocab && api->llama_vocab_n_tokens &&
           api->llama_get_logits_ith && api->llama_get_sampled_token_ith && api->llama_get_sampled_probs_ith &&
           api->llama_get_sampled_probs_count_ith && api->llama_get_sampled_logits_ith &&
           api->llama_get_sampled_logits_count_ith && api->llama_get_sampled_candidates_ith;
}

redge_status redge_bind(const redge_host_api * api) {
    if (api == NULL) {
        return REDGE_ERR_NULL;
    }
    if (api->size != sizeof *api || !is_complete(api)) {
        return REDGE_ERR_HOST;
    }
    redge_host = *api;
    return REDGE_OK;
}

bool redge_is_bound(void) {
    return redge_host.size != 0;
}
