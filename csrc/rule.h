/* From scores to an outcome: the part of the decision that is policy, not arithmetic. */
#ifndef REDGE_RULE_H
#define REDGE_RULE_H

#include "refusal_edge.h"

/* A decision that nobody took: zeroes, NO_DECISION, category and token_id -1. */
void redge_decision_clear(redge_decision * decision);

/* Sets outcome, category and token_id from the scores, logits, control mass and model token that *decision already has.
 * The policy is valid. */
void redge_rule_apply(const redge_policy * policy, redge_decision * decision);

#endif
