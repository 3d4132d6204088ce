/* What the other files ask a policy. Control tokens are numbered as everywhere: the categories in order, then respond.
 */
#ifndef REDGE_POLICY_H
#define REDGE_POLICY_H

#include "refusal_edge.h"

bool redge_rule_is_paper(redge_rule rule);

static inline int32_t redge_control_token(const redge_policy * policy, uint32_t index) {
    return index < policy->n_categories ? policy->token_ids[index] : policy->respond_token_id;
}

static inline bool redge_is_control_token(const redge_policy * policy, int32_t id) {
    for (uint32_t i = 0; i <= policy->n_categories; ++i) {
        if (redge_control_token(policy, i) == id) {
            return true;
        }
    }
    return false;
}

#endif
