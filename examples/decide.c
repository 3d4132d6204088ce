/* The rule alone, with no llama.cpp: build with
 *
 *     cmake -B build/c -DREFUSAL_EDGE_PYTHON=OFF && cmake --build build/c
 *     cc -std=c11 -Icsrc examples/decide.c build/c/libredge.a -lm -o decide && ./decide
 *
 * A vocabulary of eight tokens; the model leans to answering (token 7), but not past a strict safety threshold. */
#include "refusal_edge.h"

#include <stdio.h>

static const char * const CATEGORY_NAMES[] = {"safety", "unsupported"};
static const char * const OUTCOMES[] = {"refuse", "respond", "no decision"};

int main(void) {
    const float logits[] = {-4.0f, -3.5f, -5.0f, -4.2f, -6.0f, 2.0f, -1.0f, 3.0f};
    redge_policy policy;
    redge_policy_default(&policy);
    policy.n_categories = 2;
    policy.token_ids[0] = 5;
    policy.token_ids[1] = 6;
    policy.respond_token_id = 7;

    const double safety_thresholds[] = {REDGE_THRESHOLD_MODEL, 0.2, REDGE_THRESHOLD_OFF, 1.5};
    for (size_t i = 0; i < sizeof safety_thresholds / sizeof *safety_thresholds; ++i) {
        policy.thresholds[0] = safety_thresholds[i];
        redge_decision decision;
        const redge_status status = redge_decide_f32(logits, 8, &policy, &decision);
        printf("safety at %4.1f: ", safety_thresholds[i]);
        if (status != REDGE_OK) {
            printf("error: %s\n", redge_status_message(status));
            continue;
        }
        const char * category = decision.category < 0 ? "-" : CATEGORY_NAMES[decision.category];
        printf("%s %s (score %.3f)\n", OUTCOMES[decision.outcome], category, decision.scores[0]);
    }
    return 0;
}
