/* What goes into the graph before it runs, and what a decision is read from afterwards. */
#include "backend.h"
#include "policy.h"
#include "rule.h"

#include <math.h>

#define RESPOND_LIFT  9e29f      /* masked respond: -1e30 + 9e29, above what does not pass */
#define NEVER         2.0f       /* no score is greater */
#define ALWAYS        (-1.0f)    /* every score is greater */
#define CLAMPED_LOGIT (-0.9e20f) /* control logits were clamped to -1e20 */

bool redge_backend_can_run(redge_rule rule) {
    return rule != REDGE_RULE_PAPER_CATEGORY; /* its free argmax is any token at all */
}

/* x >= t for a float x is x > below(t). */
static float below(double t) {
    float f = (float) t;
    if ((double) f < t) {
        f = nextafterf(f, INFINITY);
    }
    return nextafterf(f, -INFINITY);
}

static float below_threshold(const redge_policy * policy, uint32_t category) {
    const double t = policy->thresholds[category];
    const bool by_threshold = policy->rule == REDGE_RULE_THRESHOLD || policy->rule == REDGE_RULE_PAPER_SINGLE;
    return by_threshold && t != REDGE_THRESHOLD_MODEL && t != REDGE_THRESHOLD_OFF ? below(t) : NEVER;
}

static void fill_category(const redge_policy * policy, uint32_t category, float rows[REDGE_IN_ROWS][REDGE_ROW]) {
    const bool off = policy->thresholds[category] == REDGE_THRESHOLD_OFF;
    const bool model = policy->thresholds[category] == REDGE_THRESHOLD_MODEL;
    const bool by_model = (policy->rule == REDGE_RULE_THRESHOLD && model) || policy->rule == REDGE_RULE_PAPER_ARGMAX;
    rows[REDGE_IN_BELOW][category] = below_threshold(policy, category);
    rows[REDGE_IN_MODEL][category] = by_model && !off ? 1.0f : 0.0f;
    rows[REDGE_IN_SUMMED][category] = policy->rule == REDGE_RULE_SUM && !off ? 1.0f : 0.0f;
    rows[REDGE_IN_ON_LOW][category] = policy->fallback == REDGE_FALLBACK_REFUSE && !off ? 1.0f : 0.0f;
}

static void fill(const redge_policy * policy, redge_phase phase, float rows[REDGE_IN_ROWS][REDGE_ROW]) {
    const uint32_t n = policy->n_categories;
    const bool paper = redge_rule_is_paper(policy->rule);
    for (uint32_t c = 0; c < n; ++c) {
        fill_category(policy, c, rows);
    }
    rows[REDGE_IN_BELOW][n] = NEVER;
    rows[REDGE_IN_LIFT][n] = RESPOND_LIFT;
    for (uint32_t i = 0; i <= n; ++i) {
        rows[REDGE_IN_RANK][i] = (float) (n + 1 - i);
    }
    rows[REDGE_IN_ON_ERROR][0] = 2.0f * REDGE_ROW;
    float * scalars = rows[REDGE_IN_SCALARS];
    scalars[REDGE_SCALAR_INV_TEMPERATURE] = (float) (1.0 / policy->temperature);
    scalars[REDGE_SCALAR_VOCAB] = paper || policy->score == REDGE_SCORE_VOCAB ? 1.0f : 0.0f;
    scalars[REDGE_SCALAR_BELOW_SUM] = policy->rule == REDGE_RULE_SUM ? below(policy->sum_threshold) : NEVER;
    scalars[REDGE_SCALAR_BELOW_MASS] = paper ? ALWAYS : below(policy->min_control_mass);
    scalars[REDGE_SCALAR_FREE_ON_LOW] = !paper && policy->fallback == REDGE_FALLBACK_MODEL ? 1.0f : 0.0f;
    scalars[REDGE_SCALAR_DECIDE] = phase == REDGE_PHASE_DECIDE ? 1.0f : 0.0f;
}

void redge_graph_set_inputs(const redge_graph * graph, const redge_policy * policy, redge_phase phase) {
    int32_t ids[REDGE_MAX_CATEGORIES + 1];
    for (uint32_t i = 0; i <= policy->n_categories; ++i) {
        ids[i] = redge_control_token(policy, i);
    }
    redge_host.ggml_backend_tensor_set(graph->ids, ids, 0, (policy->n_categories + 1) * sizeof ids[0]);
    float rows[REDGE_IN_ROWS][REDGE_ROW] = {{0.0f}};
    fill(policy, phase, rows);
    redge_host.ggml_backend_tensor_set(graph->params, rows, 0, sizeof rows);
}

static void read_scores(float rows[REDGE_OUT_ROWS][REDGE_ROW], const redge_policy * policy, redge_decision * d) {
    const uint32_t n = policy->n_categories;
    const float * logits = rows[REDGE_OUT_LOGITS];
    const float * probs = rows[REDGE_OUT_PROBS];
    const double temperature = policy->temperature;
    const bool on_vocab = redge_rule_is_paper(policy->rule) || policy->score == REDGE_SCORE_VOCAB;
    double top = -INFINITY;
    double total = 0.0;
    for (uint32_t i = 0; i <= n; ++i) {
        top = fmax(top, logits[i]);
        d->control_mass += probs[i];
    }
    for (uint32_t i = 0; i <= n; ++i) {
        total += exp((logits[i] - top) / temperature);
    }
    for (uint32_t i = 0; i <= n; ++i) {
        *(i < n ? &d->scores[i] : &d->respond_score) =
            on_vocab ? probs[i] : exp((logits[i] - top) / temperature) / total;
        *(i < n ? &d->logits[i] : &d->respond_logit) = logits[i] > CLAMPED_LOGIT ? logits[i] : -INFINITY;
    }
    d->control_mass = fmin(d->control_mass, 1.0);
}

static uint32_t chosen_token(const float * choice, uint32_t n_control) {
    uint32_t chosen = 0;
    while (chosen + 1 < n_control && choice[chosen] != 1.0f) {
        ++chosen;
    }
    return chosen;
}

redge_status redge_report_read(const redge_report * report, const redge_policy * policy, redge_decision * d) {
    redge_decision_clear(d);
    float rows[REDGE_OUT_ROWS][REDGE_ROW];
    redge_host.ggml_backend_tensor_get(report->tensor, rows, 0, sizeof rows);
    const float * scalars = rows[REDGE_OUT_SCALARS];
    if (scalars[REDGE_SCALAR_GOOD] != 1.0f) {
        return REDGE_ERR_LOGITS;
    }
    const uint32_t n = policy->n_categories;
    const uint32_t chosen = chosen_token(rows[REDGE_OUT_CHOICE], n + 1);
    d->n_categories = n;
    d->model_token_id = (int32_t) scalars[REDGE_SCALAR_MODEL_TOKEN];
    d->log_normalizer = scalars[REDGE_SCALAR_MODEL_LOGIT] / policy->temperature - log(scalars[REDGE_SCALAR_MODEL_PROB]);
    read_scores(rows, policy, d);
    if (scalars[REDGE_SCALAR_FORCED] == 1.0f) {
        d->token_id = redge_control_token(policy, chosen);
    }
    if (scalars[REDGE_SCALAR_ENOUGH] == 1.0f) {
        d->outcome = chosen < n ? REDGE_REFUSE : REDGE_RESPOND;
        d->category = chosen < n ? (int32_t) chosen : -1;
    }
    return REDGE_OK;
}
