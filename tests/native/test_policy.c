/* Every way in which a policy or an argument can be wrong has its status. */
#include "check.h"
#include "refusal_edge.h"

#include <string.h>

static redge_policy valid(void) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.n_categories = 2;
    policy.token_ids[0] = 3;
    policy.token_ids[1] = 4;
    policy.thresholds[0] = 0.5;
    policy.respond_token_id = 5;
    return policy;
}

#define EXPECT(expected, change)                                                                                       \
    do {                                                                                                               \
        redge_policy policy = valid();                                                                                 \
        change;                                                                                                        \
        CHECK(redge_policy_validate(&policy, 8) == (expected));                                                        \
    } while (0)

static void test_validation(void) {
    EXPECT(REDGE_OK, (void) 0);
    EXPECT(REDGE_ERR_RULE, policy.rule = REDGE_RULE_COUNT);
    EXPECT(REDGE_ERR_RULE, policy.score = REDGE_SCORE_COUNT);
    EXPECT(REDGE_ERR_RULE, policy.fallback = REDGE_FALLBACK_COUNT);
    EXPECT(REDGE_ERR_CATEGORY_COUNT, policy.n_categories = 0);
    EXPECT(REDGE_ERR_CATEGORY_COUNT, policy.n_categories = REDGE_MAX_CATEGORIES + 1);
    EXPECT(REDGE_ERR_CATEGORY_COUNT, policy.rule = REDGE_RULE_PAPER_SINGLE);
    EXPECT(REDGE_ERR_CATEGORY_COUNT, policy.rule = REDGE_RULE_PAPER_ARGMAX);
    EXPECT(REDGE_ERR_TOKEN_RANGE, policy.token_ids[1] = 8);
    EXPECT(REDGE_ERR_TOKEN_RANGE, policy.token_ids[1] = -1);
    EXPECT(REDGE_ERR_TOKEN_RANGE, policy.respond_token_id = 8);
    EXPECT(REDGE_ERR_TOKEN_DUPLICATE, policy.token_ids[1] = 3);
    EXPECT(REDGE_ERR_TOKEN_DUPLICATE, policy.respond_token_id = 4);
    EXPECT(REDGE_ERR_THRESHOLD, policy.thresholds[1] = -0.5);
    EXPECT(REDGE_ERR_THRESHOLD, policy.thresholds[1] = 1.5);
    EXPECT(REDGE_ERR_THRESHOLD, policy.thresholds[1] = (double) NAN);
    EXPECT(REDGE_ERR_THRESHOLD, (policy.rule = REDGE_RULE_SUM, policy.sum_threshold = 1.1));
    EXPECT(REDGE_ERR_TEMPERATURE, policy.temperature = 0.0);
    EXPECT(REDGE_ERR_TEMPERATURE, policy.temperature = (double) INFINITY);
    EXPECT(REDGE_ERR_TEMPERATURE, policy.temperature = (double) NAN);
    EXPECT(REDGE_ERR_CONTROL_MASS, policy.min_control_mass = -0.1);
    EXPECT(REDGE_ERR_CONTROL_MASS, policy.min_control_mass = (double) NAN);

    redge_policy single = valid();
    single.rule = REDGE_RULE_PAPER_SINGLE;
    single.n_categories = 1;
    single.thresholds[0] = REDGE_THRESHOLD_MODEL;
    CHECK(redge_policy_validate(&single, 8) == REDGE_ERR_THRESHOLD);
    CHECK(redge_policy_validate(NULL, 8) == REDGE_ERR_NULL);

    const redge_policy policy = valid();
    CHECK(redge_policy_validate(&policy, -1) == REDGE_ERR_N_VOCAB);
    CHECK(redge_policy_validate(&policy, 5) == REDGE_ERR_TOKEN_RANGE);
    CHECK(redge_policy_validate(&policy, 0) == REDGE_OK);
}

static redge_status decide(const float * logits, int32_t n_vocab, redge_decision * d) {
    const redge_policy policy = valid();
    return redge_decide_f32(logits, n_vocab, &policy, d);
}

static void test_bad_logits(void) {
    float logits[8] = {0};
    redge_decision d;
    CHECK(decide(logits, 8, &d) == REDGE_OK);
    CHECK(decide(NULL, 8, &d) == REDGE_ERR_NULL);
    CHECK(decide(logits, 8, NULL) == REDGE_ERR_NULL);
    CHECK(decide(logits, 0, &d) == REDGE_ERR_N_VOCAB);
    CHECK(decide(logits, -3, &d) == REDGE_ERR_N_VOCAB);
    CHECK(decide(logits, 5, &d) == REDGE_ERR_TOKEN_RANGE);
    CHECK(redge_decide_f32(logits, 8, NULL, &d) == REDGE_ERR_NULL);
    for (int i = 0; i < 8; ++i) {
        logits[i] = NAN;
        memset(&d, 0x55, sizeof d);
        CHECK(decide(logits, 8, &d) == REDGE_ERR_LOGITS);
        CHECK(d.outcome == REDGE_NO_DECISION && d.category == -1 && d.token_id == -1 && d.control_mass == 0.0);
        logits[i] = INFINITY;
        CHECK(decide(logits, 8, &d) == REDGE_ERR_LOGITS);
        logits[i] = -INFINITY;
        CHECK(decide(logits, 8, &d) == REDGE_OK);
        logits[i] = 0.0f;
    }
    logits[3] = logits[4] = logits[5] = -INFINITY;
    CHECK(decide(logits, 8, &d) == REDGE_ERR_LOGITS);
    for (int i = 0; i < 8; ++i) {
        logits[i] = -INFINITY;
    }
    CHECK(decide(logits, 8, &d) == REDGE_ERR_LOGITS);
}

static void test_messages(void) {
    for (int s = 0; s < REDGE_STATUS_COUNT; ++s) {
        CHECK(strlen(redge_status_message((redge_status) s)) > 0);
        for (int other = 0; other < s; ++other) {
            CHECK(strcmp(redge_status_message((redge_status) s), redge_status_message((redge_status) other)) != 0);
        }
    }
    CHECK(strcmp(redge_status_message((redge_status) 1000), "unknown status") == 0);
}

static void test_isa(void) {
    CHECK(strcmp(redge_isa_name(0), "serial") == 0);
    CHECK(redge_isa_available("serial"));
    CHECK(!redge_isa_available("altivec") && !redge_isa_available("") && !redge_isa_available(NULL));
    CHECK(redge_isa_force("altivec") == REDGE_ERR_ISA);
    CHECK(redge_isa_force("serial") == REDGE_OK && strcmp(redge_isa_active(), "serial") == 0);
    CHECK(redge_isa_force(NULL) == REDGE_OK);
}

static void test_unbound(void) {
    const redge_policy policy = valid();
    const redge_sampler_options options = {.phase = REDGE_PHASE_DECIDE, .n_vocab = 8};
    redge_status status = REDGE_OK;
    CHECK(!redge_is_bound());
    CHECK(redge_bind(NULL) == REDGE_ERR_NULL);
    CHECK(redge_sampler_init(&policy, &options, &status) == NULL && status == REDGE_ERR_NOT_BOUND);
    CHECK(redge_sampler_init(&policy, &options, NULL) == NULL);
    redge_decision d;
    CHECK(redge_sampler_decision(NULL, &d) == REDGE_ERR_NULL);
    CHECK(redge_sampler_set_policy(NULL, &policy) == REDGE_ERR_NULL);
    CHECK(redge_sampler_sample(NULL, NULL, 0, &status) == -1 && status == REDGE_ERR_NULL);
}

int main(void) {
    test_validation();
    test_bad_logits();
    test_messages();
    test_isa();
    test_unbound();
    return REPORT();
}
