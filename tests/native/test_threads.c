/* One policy shared by many threads, each with its own sampler in its own chain; meant for ThreadSanitizer. */
#include "check.h"

#include "llama.h"

#include "fast.h"

#include <pthread.h>

enum { N_VOCAB = 5000, N_THREADS = 8, N_ROUNDS = 200 };

static redge_policy policy;
static float logits[N_VOCAB];

static int32_t sample(struct llama_sampler * chain, llama_token_data * data) {
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        data[i] = (llama_token_data){.id = i, .logit = logits[i], .p = 0.0f};
    }
    llama_token_data_array array = {.data = data, .size = N_VOCAB, .selected = -1, .sorted = false};
    llama_sampler_apply(chain, &array);
    const int32_t token = array.data[array.selected].id;
    llama_sampler_accept(chain, token);
    return token;
}

static int32_t sample_fast(struct llama_sampler * chain) {
    llama_token_data_array array;
    if (!redge_fast_apply(chain, redge_sampler_of(redge_sampler_find(chain)), logits, &array)) {
        return -1;
    }
    const int32_t token = array.data[array.selected].id;
    llama_sampler_accept(chain, token);
    return token;
}

static void * work(void * n_wrong) {
    static _Thread_local llama_token_data data[N_VOCAB];
    const redge_sampler_options options = {.phase = REDGE_PHASE_DECIDE, .n_vocab = N_VOCAB};
    struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, redge_sampler_init(&policy, &options, NULL));
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(5));
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    for (int i = 0; i < N_ROUNDS; ++i) {
        redge_decision decision;
        const bool pure = redge_decide_f32(logits, N_VOCAB, &policy, &decision) == REDGE_OK && decision.category == 0;
        const bool decided = sample(chain, data) == 3;
        const bool guarded = sample(chain, data) > 5;
        llama_sampler_reset(chain);
        const bool decided_fast = sample_fast(chain) == 3;
        const bool guarded_fast = sample_fast(chain) > 5;
        *(int *) n_wrong += !pure || !decided || !guarded || !decided_fast || !guarded_fast;
        llama_sampler_reset(chain);
    }
    llama_sampler_free(chain);
    return NULL;
}

int main(void) {
    const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    CHECK(redge_bind(&api) == REDGE_OK);
    redge_policy_default(&policy);
    policy.n_categories = 2;
    policy.token_ids[0] = 3;
    policy.token_ids[1] = 4;
    policy.thresholds[0] = 0.5;
    policy.respond_token_id = 5;
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        logits[i] = (float) (i % 11) + 1e-4f * (float) i; /* no ties */
    }
    logits[3] = 25.0f;

    pthread_t threads[N_THREADS];
    int n_wrong[N_THREADS] = {0};
    for (int i = 0; i < N_THREADS; ++i) {
        CHECK(pthread_create(&threads[i], NULL, work, &n_wrong[i]) == 0);
    }
    for (int i = 0; i < N_THREADS; ++i) {
        pthread_join(threads[i], NULL);
        CHECK(n_wrong[i] == 0);
    }
    return REPORT();
}
