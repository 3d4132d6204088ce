/* Compile-time comparison of csrc/llama_abi.h with an installed llama.h: sizes and offsets of every struct we declare,
 * and the types of every function in the host table. Compiling this file is the test. */
#define llama_token_data       redge_abi_token_data
#define llama_token_data_array redge_abi_token_data_array
#define llama_sampler_data     redge_abi_sampler_data
#define llama_sampler_i        redge_abi_sampler_i
#define llama_sampler          redge_abi_sampler
#define ggml_type              redge_abi_ggml_type
#define ggml_init_params       redge_abi_init_params
#define GGML_TYPE_F32          REDGE_ABI_TYPE_F32
#define GGML_TYPE_I32          REDGE_ABI_TYPE_I32
#include "llama_abi.h"
#undef llama_token_data
#undef llama_token_data_array
#undef llama_sampler_data
#undef llama_sampler_i
#undef llama_sampler
#undef ggml_type
#undef ggml_init_params
#undef GGML_TYPE_F32
#undef GGML_TYPE_I32

#include "llama.h"

#define SAME_SIZE(ours, theirs) _Static_assert(sizeof(ours) == sizeof(theirs), "size of " #theirs)
#define SAME_FIELD(ours, theirs, field)                                                                                \
    _Static_assert(offsetof(ours, field) == offsetof(theirs, field), #theirs "." #field);                              \
    _Static_assert(sizeof(((ours *) 0)->field) == sizeof(((theirs *) 0)->field), "size of " #theirs "." #field)

SAME_SIZE(redge_abi_token_data, llama_token_data);
SAME_FIELD(redge_abi_token_data, llama_token_data, id);
SAME_FIELD(redge_abi_token_data, llama_token_data, logit);
SAME_FIELD(redge_abi_token_data, llama_token_data, p);

SAME_SIZE(redge_abi_token_data_array, llama_token_data_array);
SAME_FIELD(redge_abi_token_data_array, llama_token_data_array, data);
SAME_FIELD(redge_abi_token_data_array, llama_token_data_array, size);
SAME_FIELD(redge_abi_token_data_array, llama_token_data_array, selected);
SAME_FIELD(redge_abi_token_data_array, llama_token_data_array, sorted);

SAME_SIZE(struct redge_abi_sampler_data, struct llama_sampler_data);
SAME_FIELD(struct redge_abi_sampler_data, struct llama_sampler_data, logits);
SAME_FIELD(struct redge_abi_sampler_data, struct llama_sampler_data, probs);
SAME_FIELD(struct redge_abi_sampler_data, struct llama_sampler_data, sampled);
SAME_FIELD(struct redge_abi_sampler_data, struct llama_sampler_data, candidates);

SAME_SIZE(struct redge_abi_sampler_i, struct llama_sampler_i);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, name);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, accept);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, apply);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, reset);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, clone);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, free);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, backend_init);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, backend_accept);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, backend_apply);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, backend_set_input);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, backend_reset);
SAME_FIELD(struct redge_abi_sampler_i, struct llama_sampler_i, copy_state);

SAME_SIZE(struct redge_abi_sampler, struct llama_sampler);
SAME_FIELD(struct redge_abi_sampler, struct llama_sampler, iface);
SAME_FIELD(struct redge_abi_sampler, struct llama_sampler, ctx);

_Static_assert((int) REDGE_ABI_TYPE_F32 == (int) GGML_TYPE_F32, "GGML_TYPE_F32");
_Static_assert((int) REDGE_ABI_TYPE_I32 == (int) GGML_TYPE_I32, "GGML_TYPE_I32");
_Static_assert(sizeof(enum redge_abi_ggml_type) == sizeof(enum ggml_type), "size of enum ggml_type");

SAME_SIZE(struct redge_abi_init_params, struct ggml_init_params);
SAME_FIELD(struct redge_abi_init_params, struct ggml_init_params, mem_size);
SAME_FIELD(struct redge_abi_init_params, struct ggml_init_params, mem_buffer);
SAME_FIELD(struct redge_abi_init_params, struct ggml_init_params, no_alloc);
