/* The part of llama.cpp's ABI that this library touches: a handful of structs, and the table of functions that the host
 * hands over. A host that includes its own llama.h includes it before this file, and fills the table with
 *
 *     const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
 *     redge_bind(&api);
 *
 * and links llama and ggml-base, as it does anyway.
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
struct ggml_backend_device;
struct ggml_backend_buffer;

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

enum ggml_type { GGML_TYPE_F32 = 0, GGML_TYPE_I32 = 26 };

struct ggml_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool no_alloc;
};

#endif

/* Field names are the functions' names, so that a binding can fill the table by looking each one up. */
struct redge_host_api {
    size_t size; /* sizeof(redge_host_api): a table of another version is refused */

    struct llama_sampler * (*llama_sampler_init)(struct llama_sampler_i * iface, void * ctx);
    void (*llama_sampler_apply)(struct llama_sampler * smpl, llama_token_data_array * cur_p);
    void (*llama_sampler_accept)(struct llama_sampler * smpl, int32_t token);
    void (*llama_sampler_free)(struct llama_sampler * smpl);
    struct llama_sampler * (*llama_sampler_chain_get)(struct llama_sampler * chain, int32_t i);
    int32_t (*llama_sampler_chain_n)(const struct llama_sampler * chain);

    /* One of each kind is made and freed when the table is bound, to recognise them by their interface. */
    struct llama_sampler * (*llama_sampler_init_greedy)(void);
    struct llama_sampler * (*llama_sampler_init_top_k)(int32_t k);
    struct llama_sampler * (*llama_sampler_init_top_p)(float p, size_t min_keep);
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

    /* For the rule inside a backend's graph. Optional: without any one of them the rule runs on the CPU. */
    struct ggml_context * (*ggml_init)(struct ggml_init_params params);
    void (*ggml_free)(struct ggml_context * ctx);
    size_t (*ggml_tensor_overhead)(void);
    size_t (*ggml_graph_overhead_custom)(size_t size, bool grads);
    struct ggml_cgraph * (*ggml_new_graph_custom)(struct ggml_context * ctx, size_t size, bool grads);
    int (*ggml_graph_n_nodes)(struct ggml_cgraph * cgraph);
    struct ggml_tensor * (*ggml_graph_node)(struct ggml_cgraph * cgraph, int i);
    void (*ggml_build_forward_expand)(struct ggml_cgraph * cgraph, struct ggml_tensor * tensor);
    struct ggml_tensor * (*ggml_new_tensor_1d)(struct ggml_context * ctx, enum ggml_type type, int64_t ne0);
    int64_t (*ggml_nelements)(const struct ggml_tensor * tensor);
    struct ggml_tensor * (*ggml_set_name)(struct ggml_tensor * tensor, const char * name);
    void (*ggml_set_input)(struct ggml_tensor * tensor);
    struct ggml_tensor * (*ggml_view_1d)(struct ggml_context * ctx, struct ggml_tensor * a, int64_t ne0, size_t offset);
    struct ggml_tensor * (*ggml_reshape_1d)(struct ggml_context * ctx, struct ggml_tensor * a, int64_t ne0);
    struct ggml_tensor * (*ggml_reshape_2d)(struct ggml_context * ctx, struct ggml_tensor * a, int64_t ne0,
                                            int64_t ne1);
    struct ggml_tensor * (*ggml_get_rows)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
    struct ggml_tensor * (*ggml_set_rows)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b,
                                          struct ggml_tensor * c);
    struct ggml_tensor * (*ggml_soft_max)(struct ggml_context * ctx, struct ggml_tensor * a);
    struct ggml_tensor * (*ggml_argmax)(struct ggml_context * ctx, struct ggml_tensor * a);
    struct ggml_tensor * (*ggml_step)(struct ggml_context * ctx, struct ggml_tensor * a);
    struct ggml_tensor * (*ggml_sum)(struct ggml_context * ctx, struct ggml_tensor * a);
    struct ggml_tensor * (*ggml_add)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
    struct ggml_tensor * (*ggml_sub)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
    struct ggml_tensor * (*ggml_mul)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
    struct ggml_tensor * (*ggml_scale_bias)(struct ggml_context * ctx, struct ggml_tensor * a, float s, float b);
    struct ggml_tensor * (*ggml_clamp)(struct ggml_context * ctx, struct ggml_tensor * a, float min, float max);
    struct ggml_tensor * (*ggml_cpy)(struct ggml_context * ctx, struct ggml_tensor * a, struct ggml_tensor * b);
    struct ggml_backend_buffer * (*ggml_backend_alloc_ctx_tensors_from_buft)(struct ggml_context * ctx,
                                                                             struct ggml_backend_buffer_type * buft);
    void (*ggml_backend_buffer_free)(struct ggml_backend_buffer * buffer);
    void (*ggml_backend_tensor_set)(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size);
    void (*ggml_backend_tensor_get)(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
    struct ggml_backend_device * (*ggml_backend_buft_get_device)(struct ggml_backend_buffer_type * buft);
    bool (*ggml_backend_dev_supports_op)(struct ggml_backend_device * device, const struct ggml_tensor * op);
};

#define REDGE_HOST_API_FROM_LLAMA                                                                                      \
    {                                                                                                                  \
        .size = sizeof(redge_host_api),                                                                                \
        .llama_sampler_init = llama_sampler_init,                                                                      \
        .llama_sampler_apply = llama_sampler_apply,                                                                    \
        .llama_sampler_accept = llama_sampler_accept,                                                                  \
        .llama_sampler_free = llama_sampler_free,                                                                      \
        .llama_sampler_chain_get = llama_sampler_chain_get,                                                            \
        .llama_sampler_chain_n = llama_sampler_chain_n,                                                                \
        .llama_sampler_init_greedy = llama_sampler_init_greedy,                                                        \
        .llama_sampler_init_top_k = llama_sampler_init_top_k,                                                          \
        .llama_sampler_init_top_p = llama_sampler_init_top_p,                                                          \
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
        .ggml_init = ggml_init,                                                                                        \
        .ggml_free = ggml_free,                                                                                        \
        .ggml_tensor_overhead = ggml_tensor_overhead,                                                                  \
        .ggml_graph_overhead_custom = ggml_graph_overhead_custom,                                                      \
        .ggml_new_graph_custom = ggml_new_graph_custom,                                                                \
        .ggml_graph_n_nodes = ggml_graph_n_nodes,                                                                      \
        .ggml_graph_node = ggml_graph_node,                                                                            \
        .ggml_build_forward_expand = ggml_build_forward_expand,                                                        \
        .ggml_new_tensor_1d = ggml_new_tensor_1d,                                                                      \
        .ggml_nelements = ggml_nelements,                                                                              \
        .ggml_set_name = ggml_set_name,                                                                                \
        .ggml_set_input = ggml_set_input,                                                                              \
        .ggml_view_1d = ggml_view_1d,                                                                                  \
        .ggml_reshape_1d = ggml_reshape_1d,                                                                            \
        .ggml_reshape_2d = ggml_reshape_2d,                                                                            \
        .ggml_get_rows = ggml_get_rows,                                                                                \
        .ggml_set_rows = ggml_set_rows,                                                                                \
        .ggml_soft_max = ggml_soft_max,                                                                                \
        .ggml_argmax = ggml_argmax,                                                                                    \
        .ggml_step = ggml_step,                                                                                        \
        .ggml_sum = ggml_sum,                                                                                          \
        .ggml_add = ggml_add,                                                                                          \
        .ggml_sub = ggml_sub,                                                                                          \
        .ggml_mul = ggml_mul,                                                                                          \
        .ggml_scale_bias = ggml_scale_bias,                                                                            \
        .ggml_clamp = ggml_clamp,                                                                                      \
        .ggml_cpy = ggml_cpy,                                                                                          \
        .ggml_backend_alloc_ctx_tensors_from_buft = ggml_backend_alloc_ctx_tensors_from_buft,                          \
        .ggml_backend_buffer_free = ggml_backend_buffer_free,                                                          \
        .ggml_backend_tensor_set = ggml_backend_tensor_set,                                                            \
        .ggml_backend_tensor_get = ggml_backend_tensor_get,                                                            \
        .ggml_backend_buft_get_device = ggml_backend_buft_get_device,                                                  \
        .ggml_backend_dev_supports_op = ggml_backend_dev_supports_op,                                                  \
    }

#endif /* REDGE_LLAMA_ABI_H */
