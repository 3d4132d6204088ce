/* Fuzz target on policy validation and redge_decide_f32: any bytes at all as a policy, a vocabulary size and logits.
 * With libFuzzer: clang -fsanitize=fuzzer,address -DREDGE_LIBFUZZER. Without, main feeds it seeded mutations of a valid
 * policy. */
#include "kernels.h"
#include "refusal_edge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_LOGITS = 3 * REDGE_CHUNK + 57 };

static void require(bool condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "violated: %s\n", what);
        abort();
    }
}

static void check_decision(const redge_policy * policy, int32_t n_vocab, redge_status status,
                           const redge_decision * d) {
    if (status != REDGE_OK) {
        require(d->outcome == REDGE_NO_DECISION && d->category == -1 && d->token_id == -1, "errors leave no decision");
        return;
    }
    require(redge_policy_validate(policy, n_vocab) == REDGE_OK, "only a valid policy decides");
    require(d->token_id >= -1 && d->token_id < n_vocab, "the token is in the vocabulary");
    require(d->category >= -1 && d->category < (int32_t) policy->n_categories, "the category exists");
    require((d->outcome == REDGE_REFUSE) == (d->category >= 0), "a refusal has a category, nothing else has");
    require(d->outcome != REDGE_REFUSE || d->token_id == policy->token_ids[d->category], "and emits its token");
    require(d->outcome != REDGE_RESPOND || d->token_id == policy->respond_token_id, "respond emits its token");
    require(d->control_mass >= 0.0 && d->control_mass <= 1.0, "the control mass is a probability");
    for (uint32_t c = 0; c < policy->n_categories; ++c) {
        require(d->scores[c] >= 0.0 && d->scores[c] <= 1.0 + 1e-6, "scores are probabilities");
        const bool off = policy->thresholds[c] == REDGE_THRESHOLD_OFF;
        require(!off || policy->rule == REDGE_RULE_PAPER_CATEGORY || d->category != (int32_t) c, "off never refuses");
    }
}

static void check_kernels(const float * logits, int32_t n, double temperature) {
    redge_scan serial;
    redge_scan scan;
    redge_kernels_serial.scan(logits, n, temperature, &serial);
    for (size_t i = 0; redge_isa_name(i) != NULL; ++i) {
        if (redge_isa_force(redge_isa_name(i)) != REDGE_OK) {
            continue;
        }
        redge_kernels_active()->scan(logits, n, temperature, &scan);
        require(scan.finite == serial.finite, "every instruction set sees NaN and +Inf");
        require(!scan.finite || (scan.max == serial.max && scan.argmax == serial.argmax), "the maximum is exact");
        require(!scan.finite || fabs(scan.sum - serial.sum) <= 1e-6 * serial.sum, "the sum is within 1e-6");
    }
    redge_isa_force(NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    redge_policy policy;
    redge_policy_default(&policy);
    memcpy(&policy, data, size < sizeof policy ? size : sizeof policy);
    const uint8_t * rest = size < sizeof policy ? data + size : data + sizeof policy;
    const size_t left = size < sizeof policy ? 0 : size - sizeof policy;
    float * logits = calloc(N_LOGITS, sizeof *logits); /* on the heap, so that a read past the end is seen */
    if (logits == NULL) {
        return 0;
    }
    memcpy(logits, rest, left < N_LOGITS * sizeof *logits ? left : N_LOGITS * sizeof *logits);
    check_kernels(logits, N_LOGITS, redge_policy_validate(&policy, N_LOGITS) == REDGE_OK ? policy.temperature : 1.0);
    for (int32_t n_vocab = N_LOGITS; n_vocab >= -1; n_vocab -= N_LOGITS / 2) {
        redge_decision decision;
        memset(&decision, 0x5A, sizeof decision);
        const redge_status status = redge_decide_f32(logits, n_vocab, &policy, &decision);
        check_decision(&policy, n_vocab, status, &decision);
    }
    free(logits);
    return 0;
}

#ifndef REDGE_LIBFUZZER
static uint64_t state = 0x9E3779B97F4A7C15u;

static uint32_t next(uint32_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t) (state >> 32) % n;
}

static void start(uint8_t * input) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.rule = (redge_rule) next(REDGE_RULE_COUNT);
    policy.score = (redge_score) next(REDGE_SCORE_COUNT);
    policy.fallback = (redge_fallback) next(REDGE_FALLBACK_COUNT);
    policy.n_categories = policy.rule == REDGE_RULE_PAPER_SINGLE || policy.rule == REDGE_RULE_PAPER_ARGMAX ? 1 : 3;
    policy.min_control_mass = 0.25 * next(3);
    const double thresholds[] = {0.0, 0.3, 1.0, REDGE_THRESHOLD_MODEL, REDGE_THRESHOLD_OFF};
    for (int32_t c = 0; c < 3; ++c) {
        policy.token_ids[c] = 10 + c;
        policy.thresholds[c] = thresholds[next(5)];
    }
    policy.respond_token_id = 13;
    memcpy(input, &policy, sizeof policy);
    float logits[N_LOGITS];
    const float slope = (float) next(8);
    for (int32_t i = 0; i < N_LOGITS; ++i) {
        logits[i] = (float) next(2000) * 0.01f - 10.0f + slope * (float) (i / REDGE_CHUNK);
    }
    memcpy(input + sizeof policy, logits, sizeof logits);
}

static void mutate(uint8_t * input, size_t size) {
    for (uint32_t n = next(4); n > 0; --n) {
        const uint32_t at = next(2) ? next((uint32_t) sizeof(redge_policy)) : next((uint32_t) size);
        input[at] = (uint8_t) (next(3) ? next(256) : input[at] ^ 1u << next(8));
    }
}

int main(void) {
    uint8_t input[sizeof(redge_policy) + N_LOGITS * sizeof(float)];
    const char * isa = redge_isa_active();
    for (int32_t i = 0; i < 20000; ++i) {
        start(input);
        mutate(input, sizeof input);
        LLVMFuzzerTestOneInput(input, next(20) ? sizeof input : next((uint32_t) sizeof input));
    }
    printf("20000 inputs on %s\n", isa);
    return 0;
}
#endif
