/* Defaults and validation of a policy: everything that can be wrong with it is found here, once. */
#include "policy.h"

#include <math.h>
#include <string.h>

void redge_policy_default(redge_policy * policy) {
    if (policy == NULL) {
        return;
    }
    memset(policy, 0, sizeof *policy);
    policy->temperature = 1.0;
    policy->min_control_mass = 0.5;
    policy->sum_threshold = 0.5;
    for (size_t c = 0; c < REDGE_MAX_CATEGORIES; ++c) {
        policy->thresholds[c] = REDGE_THRESHOLD_MODEL;
    }
}

bool redge_rule_is_paper(redge_rule rule) {
    return rule == REDGE_RULE_PAPER_SINGLE || rule == REDGE_RULE_PAPER_ARGMAX || rule == REDGE_RULE_PAPER_CATEGORY;
}

/* Written so that NaN is outside. */
static bool is_probability(double x) {
    return x >= 0.0 && x <= 1.0;
}

static redge_status check_categories(const redge_policy * policy) {
    if (policy->n_categories < 1 || policy->n_categories > REDGE_MAX_CATEGORIES) {
        return REDGE_ERR_CATEGORY_COUNT;
    }
    const bool single = policy->rule == REDGE_RULE_PAPER_SINGLE || policy->rule == REDGE_RULE_PAPER_ARGMAX;
    return single && policy->n_categories != 1 ? REDGE_ERR_CATEGORY_COUNT : REDGE_OK;
}

static redge_status check_tokens(const redge_policy * policy, int32_t n_vocab) {
    for (uint32_t i = 0; i <= policy->n_categories; ++i) {
        const int32_t id = redge_control_token(policy, i);
        if (id < 0 || (n_vocab > 0 && id >= n_vocab)) {
            return REDGE_ERR_TOKEN_RANGE;
        }
        for (uint32_t j = 0; j < i; ++j) {
            if (redge_control_token(policy, j) == id) {
                return REDGE_ERR_TOKEN_DUPLICATE;
            }
        }
    }
    return REDGE_OK;
}

static redge_status check_thresholds(const redge_policy * policy) {
    for (uint32_t c = 0; c < policy->n_categories; ++c) {
        const double t = policy->thresholds[c];
        if (!is_probability(t) && t != REDGE_THRESHOLD_MODEL && t != REDGE_THRESHOLD_OFF) {
            return REDGE_ERR_THRESHOLD;
        }
    }
    if (policy->rule == REDGE_RULE_PAPER_SINGLE && policy->thresholds[0] == REDGE_THRESHOLD_MODEL) {
        return REDGE_ERR_THRESHOLD;
    }
    if (policy->rule == REDGE_RULE_SUM && !is_probability(policy->sum_threshold)) {
        return REDGE_ERR_THRESHOLD;
    }
    return REDGE_OK;
}

redge_status redge_policy_validate(const redge_policy * policy, int32_t n_vocab) {
    if (policy == NULL) {
        return REDGE_ERR_NULL;
    }
    if (n_vocab < 0) {
        return REDGE_ERR_N_VOCAB;
    }
    if ((unsigned) policy->rule >= REDGE_RULE_COUNT || (unsigned) policy->score >= REDGE_SCORE_COUNT ||
        (unsigned) policy->fallback >= REDGE_FALLBACK_COUNT) {
        return REDGE_ERR_RULE;
    }
    redge_status status = check_categories(policy);
    if (status == REDGE_OK) {
        status = check_tokens(policy, n_vocab);
    }
    if (status == REDGE_OK) {
        status = check_thresholds(policy);
    }
    if (status != REDGE_OK) {
        return status;
    }
    if (!(policy->temperature > 0.0) || !isfinite(policy->temperature)) {
        return REDGE_ERR_TEMPERATURE;
    }
    return is_probability(policy->min_control_mass) ? REDGE_OK : REDGE_ERR_CONTROL_MASS;
}
