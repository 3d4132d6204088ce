/* The sampler in llama.cpp's own chains: phases, clone, reset, copy, free order, removal, wrong candidates. No model is
 * needed: llama_sampler_apply is given the candidates. */
#include "check.h"

#include "llama.h"

#include "llama_abi.h"

enum { N_VOCAB = 100, SAFETY = 40, OTHER = 41, RESPOND = 42 };

typedef struct llama_sampler sampler;

static llama_token_data data[N_VOCAB];

static llama_token_data_array candidates(float safety, float respond) {
    for (int i = 0; i < N_VOCAB; ++i) {
        data[i] = (llama_token_data){.id = i, .logit = -5.0f + (float) (i % 7), .p = 0.0f};
    }
    data[SAFETY].logit = safety;
    data[RESPOND].logit = respond;
    return (llama_token_data_array){.data = data, .size = N_VOCAB, .selected = -1, .sorted = false};
}

static redge_policy make_policy(double threshold) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.n_categories = 2;
    policy.token_ids[0] = SAFETY;
    policy.token_ids[1] = OTHER;
    policy.thresholds[0] = threshold;
    policy.respond_token_id = RESPOND;
    return policy;
}

static sampler * make(redge_phase phase) {
    const redge_policy policy = make_policy(0.5);
    const redge_sampler_options options = {.phase = phase, .n_vocab = N_VOCAB};
    redge_status status = REDGE_ERR_NULL;
    sampler * smpl = redge_sampler_init(&policy, &options, &status);
    CHECK(smpl != NULL && status == REDGE_OK);
    return smpl;
}

static sampler * make_chain(redge_phase phase) {
    sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, make(phase));
    return chain;
}

static int32_t apply(sampler * smpl, float safety, float respond) {
    llama_token_data_array array = candidates(safety, respond);
    llama_sampler_apply(smpl, &array);
    CHECK(array.selected >= 0 && array.selected < (int64_t) array.size);
    return array.data[array.selected].id;
}

static int32_t step(sampler * smpl, float safety, float respond) {
    const int32_t token = apply(smpl, safety, respond);
    llama_sampler_accept(smpl, token);
    return token;
}

static void test_decide_then_guard(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    redge_decision d;
    for (int i = 0; i < 5; ++i) {
        llama_sampler_accept(chain, i); /* the prompt */
    }
    CHECK(redge_sampler_decision(chain, &d) == REDGE_ERR_NOT_DECIDED);
    CHECK(step(chain, 30.0f, 20.0f) == SAFETY);
    CHECK(redge_sampler_decision(chain, &d) == REDGE_OK && d.outcome == REDGE_REFUSE && d.category == 0);
    const int32_t later = step(chain, 30.0f, 20.0f);
    CHECK(later != SAFETY && later != RESPOND && later != OTHER);
    CHECK(redge_sampler_decision(chain, &d) == REDGE_OK && d.token_id == SAFETY);

    llama_sampler_reset(chain);
    CHECK(redge_sampler_decision(chain, &d) == REDGE_ERR_NOT_DECIDED);
    CHECK(step(chain, 20.0f, 30.0f) == RESPOND);
    llama_sampler_free(chain);
}

static void test_applied_again_before_accept(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    CHECK(apply(chain, 30.0f, 20.0f) == SAFETY);
    CHECK(apply(chain, 20.0f, 30.0f) == RESPOND); /* still the first position */
    llama_sampler_accept(chain, RESPOND);
    redge_decision d;
    CHECK(redge_sampler_decision(chain, &d) == REDGE_OK && d.outcome == REDGE_RESPOND);
    llama_sampler_free(chain);
}

static void test_other_token_accepted(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    apply(chain, 30.0f, 20.0f);
    llama_sampler_accept(chain, 7);
    redge_decision d;
    CHECK(redge_sampler_decision(chain, &d) == REDGE_ERR_NOT_DECIDED && d.outcome == REDGE_NO_DECISION);
    llama_sampler_free(chain);
}

static void test_followed_by_other_samplers(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_sampler_chain_add(chain, llama_sampler_init_top_k(40));
    llama_sampler_chain_add(chain, llama_sampler_init_top_p(0.95f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_min_p(0.05f, 1));
    llama_sampler_chain_add(chain, llama_sampler_init_temp(0.8f));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(7));
    for (int round = 0; round < 20; ++round) {
        CHECK(step(chain, 30.0f, 20.0f) == SAFETY);
        for (int i = 0; i < 20; ++i) {
            const int32_t token = step(chain, 30.0f, 20.0f);
            CHECK(token != SAFETY && token != RESPOND && token != OTHER);
        }
        llama_sampler_reset(chain);
    }
    llama_sampler_free(chain);
}

static void test_no_decision_samples_normally_without_control_tokens(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    const int32_t token = step(chain, -4.0f, -4.0f);
    CHECK(token != SAFETY && token != RESPOND && token != OTHER);
    redge_decision d;
    CHECK(redge_sampler_decision(chain, &d) == REDGE_OK && d.outcome == REDGE_NO_DECISION && d.token_id == -1);
    llama_sampler_free(chain);
}

static void test_clone(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());
    step(chain, 30.0f, 20.0f);
    sampler * clone = llama_sampler_clone(chain);
    sampler * clone_of_clone = llama_sampler_clone(clone);
    llama_sampler_free(chain); /* the original goes first */
    redge_decision d;
    CHECK(redge_sampler_decision(clone_of_clone, &d) == REDGE_OK && d.token_id == SAFETY);
    CHECK(step(clone_of_clone, 30.0f, 20.0f) != SAFETY); /* it guards, as its original did */
    llama_sampler_free(clone);
    llama_sampler_reset(clone_of_clone);
    CHECK(step(clone_of_clone, 30.0f, 20.0f) == SAFETY);
    llama_sampler_free(clone_of_clone);
}

static void test_copy_state(void) {
    sampler * src = make_chain(REDGE_PHASE_DECIDE);
    sampler * dst = make_chain(REDGE_PHASE_DECIDE);
    step(src, 30.0f, 20.0f);
    llama_sampler_copy(src, dst);
    llama_sampler_free(src);
    redge_decision d;
    CHECK(redge_sampler_decision(dst, &d) == REDGE_OK && d.token_id == SAFETY);
    llama_sampler_free(dst);
}

static void test_removed_from_chain(void) {
    sampler * chain = make_chain(REDGE_PHASE_GUARD);
    redge_decision d;
    sampler * ours = llama_sampler_chain_remove(chain, 0);
    CHECK(redge_sampler_decision(chain, &d) == REDGE_ERR_NOT_OURS);
    llama_sampler_free(chain);
    llama_token_data_array array = candidates(30.0f, 30.0f);
    llama_sampler_apply(ours, &array);
    CHECK(isinf(data[SAFETY].logit) && isinf(data[RESPOND].logit) && isinf(data[OTHER].logit));
    llama_sampler_free(ours);
}

static void test_set_policy(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    redge_policy policy = make_policy(REDGE_THRESHOLD_OFF);
    CHECK(redge_sampler_set_policy(chain, &policy) == REDGE_OK);
    CHECK(step(chain, 30.0f, 20.0f) == RESPOND);
    policy.token_ids[1] = 50;
    CHECK(redge_sampler_set_policy(chain, &policy) == REDGE_ERR_TOKEN_CHANGED);
    policy.token_ids[1] = N_VOCAB;
    CHECK(redge_sampler_set_policy(chain, &policy) == REDGE_ERR_TOKEN_RANGE);
    policy = make_policy(3.0);
    CHECK(redge_sampler_set_policy(chain, &policy) == REDGE_ERR_THRESHOLD);
    llama_sampler_free(chain);
}

/* Whatever is wrong with the candidates, the first category comes out and the decision is an error. */
static void expect_closed(llama_token_data_array array, redge_status expected) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_sampler_apply(chain, &array);
    CHECK(array.size == 1 && array.data[0].id == SAFETY && array.selected == 0);
    redge_decision d;
    CHECK(redge_sampler_decision(chain, &d) == expected && d.outcome == REDGE_NO_DECISION && d.token_id == -1);
    llama_sampler_free(chain);
}

static void test_fails_closed(void) {
    llama_token_data_array array = candidates(20.0f, 30.0f);
    data[3].logit = NAN;
    expect_closed(array, REDGE_ERR_LOGITS);
    array = candidates(20.0f, 30.0f);
    data[3].logit = INFINITY;
    expect_closed(array, REDGE_ERR_LOGITS);
    array = candidates(20.0f, 30.0f);
    data[3].id = 4; /* twice */
    expect_closed(array, REDGE_ERR_LOGITS);
    array = candidates(20.0f, 30.0f);
    data[3].id = N_VOCAB;
    expect_closed(array, REDGE_ERR_N_VOCAB);
    array = candidates(20.0f, 30.0f);
    data[3].id = -1;
    expect_closed(array, REDGE_ERR_N_VOCAB);
    array = candidates(20.0f, 30.0f);
    array.size = N_VOCAB - 1;
    expect_closed(array, REDGE_ERR_N_VOCAB);

    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    array = candidates(20.0f, 30.0f);
    array.size = 0;
    llama_sampler_apply(chain, &array);
    redge_decision d;
    CHECK(redge_sampler_decision(chain, &d) == REDGE_ERR_N_VOCAB);
    llama_sampler_free(chain);
}

static llama_token_data_array reversed(float safety, float respond) {
    const llama_token_data_array array = candidates(safety, respond);
    for (int i = 0; i < N_VOCAB / 2; ++i) {
        const llama_token_data swap = data[i];
        data[i] = data[N_VOCAB - 1 - i];
        data[N_VOCAB - 1 - i] = swap;
    }
    return array;
}

/* Candidates in another order decide the same, and are guarded by id. */
static void test_any_order(void) {
    sampler * chain = make_chain(REDGE_PHASE_DECIDE);
    llama_token_data_array array = reversed(30.0f, 20.0f);
    llama_sampler_apply(chain, &array);
    CHECK(array.size == 1 && array.data[0].id == SAFETY);
    llama_sampler_accept(chain, SAFETY);
    array = reversed(30.0f, 20.0f);
    llama_sampler_apply(chain, &array);
    for (int i = 0; i < N_VOCAB; ++i) {
        const bool control = data[i].id >= SAFETY && data[i].id <= RESPOND;
        CHECK((data[i].logit == -INFINITY) == control);
    }
    llama_sampler_free(chain);
}

static void test_init_statuses(void) {
    redge_policy policy = make_policy(0.5);
    redge_sampler_options options = {.phase = REDGE_PHASE_DECIDE, .n_vocab = N_VOCAB};
    redge_status status = REDGE_OK;
    CHECK(redge_sampler_init(NULL, &options, &status) == NULL && status == REDGE_ERR_NULL);
    CHECK(redge_sampler_init(&policy, NULL, &status) == NULL && status == REDGE_ERR_NULL);
    options.n_vocab = 0;
    CHECK(redge_sampler_init(&policy, &options, &status) == NULL && status == REDGE_ERR_N_VOCAB);
    options.n_vocab = RESPOND;
    CHECK(redge_sampler_init(&policy, &options, &status) == NULL && status == REDGE_ERR_TOKEN_RANGE);
    options = (redge_sampler_options){.phase = (redge_phase) 7, .n_vocab = N_VOCAB};
    CHECK(redge_sampler_init(&policy, &options, &status) == NULL && status == REDGE_ERR_RULE);
}

static void test_bind(void) {
    redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    api.llama_sampler_apply = NULL;
    CHECK(redge_bind(&api) == REDGE_ERR_HOST && !redge_is_bound());
    api = (redge_host_api) REDGE_HOST_API_FROM_LLAMA;
    api.size -= 1;
    CHECK(redge_bind(&api) == REDGE_ERR_HOST && !redge_is_bound());
    api.size += 1;
    CHECK(redge_bind(&api) == REDGE_OK && redge_is_bound());
}

int main(void) {
    test_bind();
    test_init_statuses();
    test_decide_then_guard();
    test_applied_again_before_accept();
    test_other_token_accepted();
    test_followed_by_other_samplers();
    test_no_decision_samples_normally_without_control_tokens();
    test_clone();
    test_copy_state();
    test_removed_from_chain();
    test_set_policy();
    test_fails_closed();
    test_any_order();
    return REPORT();
}
