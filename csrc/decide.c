/* The arithmetic of the decision: one scan of the logits, then sums over the few control tokens, all in double. */
#include "kernels.h"
#include "policy.h"
#include "rule.h"

#include <math.h>

static void gather(const float * logits, const redge_policy * policy, redge_decision * decision) {
    for (uint32_t c = 0; c < policy->n_categories; ++c) {
        decision->logits[c] = logits[policy->token_ids[c]];
    }
    decision->respond_logit = logits[policy->respond_token_id];
    decision->n_categories = policy->n_categories;
}

static float largest_control_logit(const redge_decision * decision) {
    float largest = decision->respond_logit;
    for (uint32_t c = 0; c < decision->n_categories; ++c) {
        largest = decision->logits[c] > largest ? decision->logits[c] : largest;
    }
    return largest;
}

/* scores[c] = exp((z_c - top) / T) / sum; returns the total over all control tokens, respond included. */
static double fill_scores(double top, double temperature, double sum, redge_decision * decision) {
    decision->respond_score = exp((decision->respond_logit - top) / temperature) / sum;
    double total = decision->respond_score;
    for (uint32_t c = 0; c < decision->n_categories; ++c) {
        decision->scores[c] = exp((decision->logits[c] - top) / temperature) / sum;
        total += decision->scores[c];
    }
    return total;
}

static void score(const redge_policy * policy, const redge_scan * scan, redge_decision * decision) {
    const double temperature = policy->temperature;
    decision->log_normalizer = scan->max / temperature + log(scan->sum);
    const double mass = fill_scores(scan->max, temperature, scan->sum, decision);
    decision->control_mass = mass < 1.0 ? mass : 1.0; /* rounding may pass 1 */

    if (policy->score == REDGE_SCORE_CONTROL && !redge_rule_is_paper(policy->rule)) {
        const double top = largest_control_logit(decision);
        const double total = fill_scores(top, temperature, 1.0, decision);
        fill_scores(top, temperature, total, decision);
    }
}

static redge_status decide(const float * logits, int32_t n_vocab, const redge_policy * policy,
                           redge_decision * decision) {
    if (logits == NULL) {
        return REDGE_ERR_NULL;
    }
    if (n_vocab <= 0) {
        return REDGE_ERR_N_VOCAB;
    }
    const redge_status status = redge_policy_validate(policy, n_vocab);
    if (status != REDGE_OK) {
        return status;
    }
    const redge_kernels * kernels = redge_kernels_active();
    if (kernels == NULL) {
        return REDGE_ERR_ISA;
    }
    redge_scan scan;
    kernels->scan(logits, n_vocab, policy->temperature, &scan);
    gather(logits, policy, decision);
    if (!scan.finite || largest_control_logit(decision) == -INFINITY) {
        return REDGE_ERR_LOGITS;
    }
    decision->model_token_id = scan.argmax;
    score(policy, &scan, decision);
    redge_rule_apply(policy, decision);
    return REDGE_OK;
}

redge_status redge_decide_f32(const float * logits, int32_t n_vocab, const redge_policy * policy,
                              redge_decision * decision) {
    if (decision == NULL) {
        return REDGE_ERR_NULL;
    }
    redge_decision_clear(decision);
    const redge_status status = decide(logits, n_vocab, policy, decision);
    if (status != REDGE_OK) {
        redge_decision_clear(decision);
    }
    return status;
}
