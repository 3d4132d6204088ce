/* The golden vectors on every instruction set that this machine can run. */
#include "check.h"
#include "refusal_edge.h"

typedef struct vector {
    const float * logits;
    int32_t n_vocab;
    redge_policy policy;
    int outcome;
    int32_t category;
    int32_t token_id;
    int32_t model_token_id;
    double respond_score;
    double control_mass;
    double log_normalizer;
    double scores[REDGE_MAX_CATEGORIES];
} vector;

#include "vectors.h"

static void check_vector(const vector * v) {
    redge_decision d;
    CHECK(redge_decide_f32(v->logits, v->n_vocab, &v->policy, &d) == REDGE_OK);
    CHECK((int) d.outcome == v->outcome);
    CHECK(d.category == v->category);
    CHECK(d.token_id == v->token_id);
    CHECK(d.model_token_id == v->model_token_id);
    CHECK_NEAR(d.respond_score, v->respond_score, 1e-6);
    CHECK_NEAR(d.control_mass, v->control_mass, 1e-6);
    CHECK_NEAR(d.log_normalizer, v->log_normalizer, 1e-6 * fmax(1.0, fabs(v->log_normalizer)));
    for (uint32_t c = 0; c < v->policy.n_categories; ++c) {
        CHECK_NEAR(d.scores[c], v->scores[c], 1e-6);
    }
}

int main(void) {
    for (size_t i = 0; redge_isa_name(i) != NULL; ++i) {
        if (redge_isa_force(redge_isa_name(i)) != REDGE_OK) {
            printf("%s: cannot run here\n", redge_isa_name(i));
            continue;
        }
        for (size_t v = 0; v < sizeof vectors / sizeof vectors[0]; ++v) {
            check_vector(&vectors[v]);
        }
        printf("%s: %zu vectors\n", redge_isa_name(i), sizeof vectors / sizeof vectors[0]);
    }
    return REPORT();
}
