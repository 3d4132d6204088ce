/* Nothing is allocated for a decision or for a sampled token: a malloc that counts stands in for the C library's, for
 * us and for llama.cpp alike. */
#include "check.h"

#include "llama.h"

#include "fast.h"

#include <stdlib.h>

extern void * __libc_malloc(size_t size);
extern void * __libc_calloc(size_t n, size_t size);
extern void * __libc_realloc(void * old, size_t size);

static long n_allocations;

void * malloc(size_t size) {
    ++n_allocations;
    return __libc_malloc(size);
}

void * calloc(size_t n, size_t size) {
    ++n_allocations;
    return __libc_calloc(n, size);
}

void * realloc(void * old, size_t size) {
    ++n_allocations;
    return __libc_realloc(old, size);
}

enum { N_VOCAB = 128256, SAFETY = 128000, RESPOND = 128001 };

static float logits[N_VOCAB];

typedef enum chain_kind { DEFAULT, TOP_P, GREEDY } chain_kind;

static struct llama_sampler * make_chain(chain_kind kind) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.n_categories = 1;
    policy.token_ids[0] = SAFETY;
    policy.respond_token_id = RESPOND;
    const redge_sampler_options options = {.phase = REDGE_PHASE_DECIDE, .n_vocab = N_VOCAB};
    struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, redge_sampler_init(&policy, &options, NULL));
    if (kind == GREEDY) {
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        return chain;
    }
    if (kind == DEFAULT) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(40));
    }
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(0.95f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(0.05f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(0.8f));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(1));
    return chain;
}

static void check_chain(chain_kind kind) {
    struct llama_sampler * chain = make_chain(kind);
    redge_sampler * s = redge_sampler_of(redge_sampler_find(chain));
    const long before = n_allocations;
    bool fast = true;
    for (int i = 0; i < 100; ++i) {
        llama_token_data_array cur_p;
        fast &= redge_fast_apply(chain, s, logits, &cur_p);
        llama_sampler_accept(chain, cur_p.data[cur_p.selected].id);
    }
    CHECK(n_allocations == before);
    CHECK(fast);
    redge_decision decision;
    CHECK(redge_sampler_decision(chain, &decision) == REDGE_OK && decision.outcome == REDGE_RESPOND);
    llama_sampler_free(chain);
}

int main(void) {
    const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    CHECK(redge_bind(&api) == REDGE_OK);
    srand(3);
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        logits[i] = (float) (10.0 * pow((double) rand() / RAND_MAX, 4.0));
    }
    for (int32_t i = 0; i < 20; ++i) {
        logits[i * 1000] = 16.0f + 0.3f * (float) i; /* what top-p keeps */
    }
    logits[RESPOND] = 30.0f;
    const long before = n_allocations;
    free(malloc(1));
    CHECK(n_allocations == before + 1); /* the counter counts */
    check_chain(DEFAULT);
    check_chain(TOP_P);
    check_chain(GREEDY);
    return REPORT();
}
