#include "host.h"

redge_host_api redge_host; /* zero size: not bound */

static const struct llama_sampler_i * interfaces[REDGE_N_KINDS];

static bool is_complete(const redge_host_api * api) {
    return api->llama_sampler_init && api->llama_sampler_apply && api->llama_sampler_accept &&
           api->llama_sampler_free && api->llama_sampler_chain_get && api->llama_sampler_chain_n &&
           api->llama_sampler_init_greedy && api->llama_sampler_init_top_k && api->llama_sampler_init_top_p &&
           api->llama_sampler_init_min_p && api->llama_get_model && api->llama_model_get_vocab &&
           api->llama_vocab_n_tokens && api->llama_get_logits_ith && api->llama_get_sampled_token_ith &&
           api->llama_get_sampled_probs_ith && api->llama_get_sampled_probs_count_ith &&
           api->llama_get_sampled_logits_ith && api->llama_get_sampled_logits_count_ith &&
           api->llama_get_sampled_candidates_ith;
}

static void learn(redge_kind kind, struct llama_sampler * example) {
    interfaces[kind] = example->iface;
    redge_host.llama_sampler_free(example);
}

redge_status redge_bind(const redge_host_api * api) {
    if (api == NULL) {
        return REDGE_ERR_NULL;
    }
    if (api->size != sizeof *api || !is_complete(api)) {
        return REDGE_ERR_HOST;
    }
    redge_host = *api;
    learn(REDGE_KIND_EMPTY, api->llama_sampler_init_top_k(0));
    learn(REDGE_KIND_GREEDY, api->llama_sampler_init_greedy());
    learn(REDGE_KIND_TOP_K, api->llama_sampler_init_top_k(1));
    learn(REDGE_KIND_TOP_P, api->llama_sampler_init_top_p(0.5f, 1));
    learn(REDGE_KIND_MIN_P, api->llama_sampler_init_min_p(0.5f, 1));
    if (interfaces[REDGE_KIND_EMPTY] == interfaces[REDGE_KIND_TOP_K]) { /* every top-k would pass for switched off */
        redge_host = (redge_host_api){0};
        return REDGE_ERR_HOST;
    }
    return REDGE_OK;
}

bool redge_is_bound(void) {
    return redge_host.size != 0;
}

bool redge_host_has_graphs(void) {
    const redge_host_api * api = &redge_host;
    return api->ggml_init && api->ggml_free && api->ggml_tensor_overhead && api->ggml_graph_overhead_custom &&
           api->ggml_new_graph_custom && api->ggml_graph_n_nodes && api->ggml_graph_node &&
           api->ggml_build_forward_expand && api->ggml_new_tensor_1d && api->ggml_nelements && api->ggml_set_name &&
           api->ggml_set_input && api->ggml_cpy && api->ggml_backend_alloc_ctx_tensors_from_buft &&
           api->ggml_backend_buffer_free && api->ggml_view_1d && api->ggml_reshape_1d && api->ggml_reshape_2d &&
           api->ggml_get_rows && api->ggml_set_rows && api->ggml_soft_max && api->ggml_argmax && api->ggml_step &&
           api->ggml_sum && api->ggml_add && api->ggml_sub && api->ggml_mul && api->ggml_scale_bias &&
           api->ggml_clamp && api->ggml_backend_tensor_set && api->ggml_backend_tensor_get &&
           api->ggml_backend_buft_get_device && api->ggml_backend_dev_supports_op;
}

redge_kind redge_host_kind(const struct llama_sampler * smpl) {
    for (redge_kind kind = REDGE_KIND_EMPTY; kind < REDGE_N_KINDS; ++kind) {
        if (smpl->iface == interfaces[kind]) {
            return kind;
        }
    }
    return REDGE_KIND_OTHER;
}
