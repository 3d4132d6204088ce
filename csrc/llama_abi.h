/* The part of llama.cpp's ABI that this library touches: a handful of structs, and the table of functions that the host
 * hands over. A host that includes its own llama.h includes it before this file, and fills the table with
 *
 *     const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
 *     redge_bind(&api);
 *
 * The structs are those of llama.cpp with backend sampling and `copy_state` (llama-cpp-python 0.3.36);
 * tests/native/abi_check.c holds them against an installed llama.h. */
#ifndef REDGE_LLAMA_ABI_H
#define REDGE_LLAMA_ABI_H

#include "refusal_edge.h"

struct llama_model;
struct llama_vocab;
struct ggml_tensor;
struct ggml_context;
struct ggml_cgraph;
struct ggml_backend_buffer_type;

#ifndef LLAMA_API /* llama.h is not there: our declarations stand in for it */

typedef struct llama_token_data {
    int32_t id;
    float logit;
    float p;
} llama_token_data;

typedef struct llama_token_data_array {
    llama_token_data * data;
    size_t size;
    int64_t selected; /* index into data, not a token id; -1: none yet */
    bool sorted;      /* by logit, descending */
} llama_token_data_array;

struct llama_sampler_data {
    struct ggml_tensor * logits;
    struct ggml_tensor * probs;
    struct ggml_tensor * sampled;
    struct ggml_tensor * candidates;
};

struct llama_sampler_i {
    const char * (*name)(const struct llama_sampler * smpl);
    void (*accept)(struct llama_sampler * smpl, int32_t token);
    void (*apply)(struct llama_sampler * smpl, llama_token_data_array * cur_p);
    void (*reset)(struct llama_sampler * smpl);
    struct llama_sampler * (*clone)(const struct llama_sampler * smpl);
    void (*free)(struct llama_sampler * smpl);
    bool (*backend_init)(struct llama_sampler * smpl, struct ggml_backend_buffer_type * buft,
                         uint32_t n_outputs_max_per_seq);
    void (*backend_accept)(struct llama_sampler * smpl, struct ggml_context * ctx, struct ggml_cgraph * gf,
                           struct ggml_tensor * selected_token);
    void (*backend_apply)(struct llama_sampler * smpl, struct ggml_context * ctx, struct ggml_cgraph * gf,
                          struct llama_sampler_data * data);
    void (*backend_set_input)(struct llama_sampler * smpl);
    void (*backend_reset)(struct llama_sampler * smpl);
    void (*copy_state)(const struct llama_sampler * src, struct llama_sampler * dst);
};

struct llama_sampler {
    struct llama_sampler_i * iface;
    void * ctx;
};

#endif

/* Field names are the functions' names, so that a binding can fill the table by looking each one up. */
struct redge_host_api {
    size_t size; /* sizeof(redge_host_api): a table of another version is refused */

    struct llama_sampler * (*llama_sampler_init)(struct llama_sampler_i * iface, void * ctx);
    const char * (*llama_sampler_name)(const struct llama_sampler * smpl);
    void (*llama_sampler_apply)(struct llama_sampler * smpl, llama_token_data_array * cur_p);
    void (*llama_sampler_accept)(struct llama_sampler * smpl, int32_t token);
    void (*llama_sampler_free)(struct llama_sampler * smpl);
    struct llama_sampler * (*llama_sampler_chain_get)(struct llama_sampler * chain, int32_t i);
    int32_t (*llama_sampler_chain_n)(const struct llama_sampler * chain);

    /* One of each kind is made and freed when the table is bound, to recognise them by their interface. */
    struct llama_sampler * (*llama_sampler_init_greedy)(void);
    struct llama_sampler * (*llama_sampler_init_top_k)(int32_t k);
    struct llama_sampler * (*llama_sampler_init_min_p)(float p, size_t min_keep);

    const struct llama_model * (*llama_get_model)(const struct llama_context * ctx);
    const struct llama_vocab * (*llama_model_get_vocab)(const struct llama_model * model);
    int32_t (*llama_vocab_n_tokens)(const struct llama_vocab * vocab);
    float * (*llama_get_logits_ith)(struct llama_context * ctx, int32_t i);
    int32_t (*llama_get_sampled_token_ith)(struct llama_context * ctx, int32_t i);
    float * (*llama_get_sampled_probs_ith)(struct llama_context * ctx, int32_t i);
    uint32_t (*llama_get_sampled_probs_count_ith)(struct llama_context * ctx, int32_t i);
    float * (*llama_get_sampled_logits_ith)(struct llama_context * ctx, int32_t i);
    uint32_t (*llama_get_sampled_logits_count_ith)(struct llama_context * ctx, int32_t i);
    int32_t * (*llama_get_sampled_candidates_ith)(struct llama_context * ctx, int32_t i);
};

#define REDGE_HOST_API_FROM_LLAMA                                                                                      \
    {                                                                                                                  \
        .size = sizeof(redge_host_api),                                                                                \
        .llama_sampler_init = llama_sampler_init,                                                                      \
        .llama_sampler_name = llama_sampler_name,                                                                      \
        .llama_sampler_apply = llama_sampler_apply,                                                                    \
        .llama_sampler_accept = llama_sampler_accept,                                                                  \
        .llama_sampler_free = llama_sampler_free,                                                                      \
        .llama_sampler_chain_get = llama_sampler_chain_get,                                                            \
        .llama_sampler_chain_n = llama_sampler_chain_n,                                                                \
        .llama_sampler_init_greedy = llama_sampler_init_greedy,                                                        \
        .llama_sampler_init_top_k = llama_sampler_init_top_k,                                                          \
        .llama_sampler_init_min_p = llama_sampler_init_min_p,                                                          \
        .llama_get_model = llama_get_model,                                                                            \
        .llama_model_get_vocab = llama_model_get_vocab,                                                                \
        .llama_vocab_n_tokens = llama_vocab_n_tokens,                                                                  \
        .llama_get_logits_ith = llama_get_logits_ith,                                                                  \
        .llama_get_sampled_token_ith = llama_get_sampled_token_ith,                                                    \
        .llama_get_sampled_probs_ith = llama_get_sampled_probs_ith,                                                    \
        .llama_get_sampled_probs_count_ith = llama_get_sampled_probs_count_ith,                                        \
        .llama_get_sampled_logits_ith = llama_get_sampled_logits_ith,                                                  \
        .llama_get_sampled_logits_count_ith = llama_get_sampled_logits_count_ith,                                      \
        .llama_get_sampled_candidates_ith = llama_get_sampled_candidates_ith,                                          \
    }

#endif /* REDGE_LLAMA_ABI_H */
