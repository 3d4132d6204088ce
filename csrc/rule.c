#include "rule.h"
#include "policy.h"

enum { NONE = -1 };

/* Index of the respond token among the control tokens: after the categories. */
static int32_t respond_index(const redge_policy * policy) {
    return (int32_t) policy->n_categories;
}

static float logit(const redge_decision * decision, int32_t index) {
    return index < (int32_t) decision->n_categories ? decision->logits[index] : decision->respond_logit;
}

/* The larger of two control tokens, the earlier on a tie. Compared by raw logit, not by score: scores underflow to
 * equal zeros where logits still differ. */
static int32_t larger(const redge_decision * decision, int32_t a, int32_t b) {
    return a == NONE || logit(decision, b) > logit(decision, a) ? b : a;
}

static void emit(redge_decision * decision, redge_outcome outcome, int32_t category, int32_t token_id) {
    decision->outcome = outcome;
    decision->category = category;
    decision->token_id = token_id;
}

static void respond(const redge_policy * policy, redge_decision * decision) {
    emit(decision, REDGE_RESPOND, NONE, policy->respond_token_id);
}

static void refuse_if(bool condition, int32_t category, const redge_policy * policy, redge_decision * decision) {
    if (condition && category != NONE) {
        emit(decision, REDGE_REFUSE, category, policy->token_ids[category]);
    } else {
        respond(policy, decision);
    }
}

static bool is_off(const redge_policy * policy, int32_t category) {
    return policy->thresholds[category] == REDGE_THRESHOLD_OFF;
}

static bool has_threshold(const redge_policy * policy, int32_t category) {
    return !is_off(policy, category) && policy->thresholds[category] != REDGE_THRESHOLD_MODEL;
}

static int32_t largest_not_off(const redge_policy * policy, const redge_decision * decision) {
    int32_t best = NONE;
    for (int32_t c = 0; c < (int32_t) policy->n_categories; ++c) {
        if (!is_off(policy, c)) {
            best = larger(decision, best, c);
        }
    }
    return best;
}

static void rule_threshold(const redge_policy * policy, redge_decision * decision) {
    int32_t model_choice = NONE;
    for (int32_t i = 0; i <= respond_index(policy); ++i) {
        model_choice = larger(decision, model_choice, i);
    }
    int32_t best = NONE;
    for (int32_t c = 0; c < (int32_t) policy->n_categories; ++c) {
        const bool passes = has_threshold(policy, c) ? decision->scores[c] >= policy->thresholds[c]
                                                     : !is_off(policy, c) && c == model_choice;
        if (passes) {
            best = larger(decision, best, c);
        }
    }
    refuse_if(true, best, policy, decision);
}

static void rule_sum(const redge_policy * policy, redge_decision * decision) {
    double sum = 0.0;
    for (int32_t c = 0; c < (int32_t) policy->n_categories; ++c) {
        if (!is_off(policy, c)) {
            sum += decision->scores[c];
        }
    }
    refuse_if(sum >= policy->sum_threshold, largest_not_off(policy, decision), policy, decision);
}

static void rule_paper_single(const redge_policy * policy, redge_decision * decision) {
    refuse_if(has_threshold(policy, 0) && decision->scores[0] >= policy->thresholds[0], 0, policy, decision);
}

static void rule_paper_argmax(const redge_policy * policy, redge_decision * decision) {
    refuse_if(!is_off(policy, 0) && decision->logits[0] >= decision->respond_logit, 0, policy, decision);
}

/* The published script takes whatever token the model likes best once the top category has no threshold. */
static void follow_model(const redge_policy * policy, redge_decision * decision) {
    const int32_t token = decision->model_token_id;
    emit(decision, token == policy->respond_token_id ? REDGE_RESPOND : REDGE_NO_DECISION, NONE, token);
    for (int32_t c = 0; c < (int32_t) policy->n_categories; ++c) {
        if (policy->token_ids[c] == token) {
            emit(decision, REDGE_REFUSE, c, token);
        }
    }
}

static void rule_paper_category(const redge_policy * policy, redge_decision * decision) {
    int32_t best = NONE;
    for (int32_t c = 0; c < (int32_t) policy->n_categories; ++c) {
        best = larger(decision, best, c);
    }
    if (has_threshold(policy, best)) {
        refuse_if(decision->scores[best] >= policy->thresholds[best], best, policy, decision);
    } else {
        follow_model(policy, decision);
    }
}

static void fall_back(const redge_policy * policy, redge_decision * decision) {
    const int32_t refusal = policy->fallback == REDGE_FALLBACK_REFUSE ? largest_not_off(policy, decision) : NONE;
    int32_t token = policy->respond_token_id;
    if (policy->fallback == REDGE_FALLBACK_MODEL) {
        token = -1;
    } else if (refusal != NONE) {
        token = policy->token_ids[refusal];
    }
    emit(decision, REDGE_NO_DECISION, NONE, token);
}

void redge_decision_clear(redge_decision * decision) {
    *decision = (redge_decision){0};
    emit(decision, REDGE_NO_DECISION, NONE, -1);
}

void redge_rule_apply(const redge_policy * policy, redge_decision * decision) {
    if (!redge_rule_is_paper(policy->rule) && decision->control_mass < policy->min_control_mass) {
        fall_back(policy, decision);
        return;
    }
    switch (policy->rule) {
    case REDGE_RULE_SUM:
        rule_sum(policy, decision);
        break;
    case REDGE_RULE_PAPER_SINGLE:
        rule_paper_single(policy, decision);
        break;
    case REDGE_RULE_PAPER_ARGMAX:
        rule_paper_argmax(policy, decision);
        break;
    case REDGE_RULE_PAPER_CATEGORY:
        rule_paper_category(policy, decision);
        break;
    default:
        rule_threshold(policy, decision);
        break;
    }
}
