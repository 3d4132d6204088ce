/* The rule as a llama_sampler. */
#include "sampler.h"
#include "policy.h"
#include "rule.h"

#include <math.h>
#include <stdlib.h>

static struct llama_sampler * wrap(redge_sampler * s);

/* ---- what the samplers of a chain see ------------------------------------------------ */

static void mask_control_tokens(const redge_policy * policy, llama_token_data_array * cur_p) {
    for (size_t i = 0; i < cur_p->size; ++i) {
        if (redge_is_control_token(policy, cur_p->data[i].id)) {
            cur_p->data[i].logit = -INFINITY;
            cur_p->data[i].p = 0.0f;
            cur_p->sorted = false;
        }
    }
}

/* The whole vocabulary in order, as llama_sampler_sample builds it, needs no search. */
static bool mask_in_place(const redge_policy * policy, int32_t n_vocab, llama_token_data_array * cur_p) {
    if (cur_p->size != (size_t) n_vocab || cur_p->sorted) {
        return false;
    }
    for (uint32_t i = 0; i <= policy->n_categories; ++i) {
        const int32_t id = redge_control_token(policy, i);
        if (cur_p->data[id].id != id) {
            return false;
        }
    }
    for (uint32_t i = 0; i <= policy->n_categories; ++i) {
        cur_p->data[redge_control_token(policy, i)].logit = -INFINITY;
    }
    return true;
}

static void guard(const redge_sampler * s, llama_token_data_array * cur_p) {
    if (!mask_in_place(&s->policy, s->options.n_vocab, cur_p)) {
        mask_control_tokens(&s->policy, cur_p);
    }
}

void redge_sampler_collapse(const redge_sampler * s, llama_token_data_array * cur_p) {
    const int32_t token = s->status == REDGE_OK ? s->decision.token_id : s->policy.token_ids[0];
    if (token < 0) {
        guard(s, cur_p);
        return;
    }
    cur_p->data[0] = (llama_token_data){.id = token, .logit = 0.0f, .p = 1.0f};
    cur_p->size = 1;
    cur_p->selected = 0;
    cur_p->sorted = true;
}

redge_status redge_sampler_decide(redge_sampler * s, const float * logits, int32_t n_vocab) {
    s->applied = true;
    s->status =
        n_vocab == s->options.n_vocab ? redge_decide_f32(logits, n_vocab, &s->policy, &s->decision) : REDGE_ERR_N_VOCAB;
    return s->status;
}

/* Logits by token id. A candidate list that repeats one id lacks another, whose NaN then fails the decision. */
static redge_status gather_logits(redge_sampler * s, const llama_token_data_array * cur_p) {
    const int32_t n_vocab = s->options.n_vocab;
    if (cur_p->size != (size_t) n_vocab) {
        return REDGE_ERR_N_VOCAB;
    }
    for (int32_t i = 0; i < n_vocab; ++i) {
        s->logits[i] = NAN;
    }
    for (int32_t i = 0; i < n_vocab; ++i) {
        const int32_t id = cur_p->data[i].id;
        if (id < 0 || id >= n_vocab) {
            return REDGE_ERR_N_VOCAB;
        }
        s->logits[id] = cur_p->data[i].logit;
    }
    return REDGE_OK;
}

static void decide(redge_sampler * s, llama_token_data_array * cur_p) {
    const redge_status status = gather_logits(s, cur_p);
    if (status == REDGE_OK) {
        redge_sampler_decide(s, s->logits, s->options.n_vocab);
    } else {
        s->applied = true;
        s->status = status;
    }
    if (cur_p->size > 0) {
        redge_sampler_collapse(s, cur_p);
    }
}

/* A graph that ran has decided, and left its report. */
static void take_decision_of_backend(redge_sampler * s) {
    if (s->backend.ran && s->phase == REDGE_PHASE_DECIDE) {
        s->applied = true;
        s->status = redge_report_read(&s->backend.report, &s->policy, &s->decision);
    }
    s->backend.ran = false;
}

redge_status redge_sampler_check_backend(const redge_sampler * s, int32_t * forced) {
    *forced = -1;
    if (!s->backend.ran) {
        return REDGE_ERR_NOT_DECIDED;
    }
    if (s->phase != REDGE_PHASE_DECIDE) {
        return REDGE_OK;
    }
    redge_decision decision;
    const redge_status status = redge_report_read(&s->backend.report, &s->policy, &decision);
    *forced = decision.token_id;
    return status;
}

/* ---- llama_sampler_i ----------------------------------------------------------------- */

static const char * redge_sampler_name(const struct llama_sampler * smpl) {
    const redge_backend * backend = &redge_sampler_of(smpl)->backend;
    return !backend->is_init ? "refusal-edge" : backend->supported ? "+refusal-edge" : "-refusal-edge";
}

static void redge_sampler_accept(struct llama_sampler * smpl, int32_t token) {
    redge_sampler * s = redge_sampler_of(smpl);
    take_decision_of_backend(s);
    if (s->phase != REDGE_PHASE_DECIDE || !s->applied) {
        return; /* the prompt, which hosts may accept before they sample */
    }
    if (s->status == REDGE_OK && s->decision.token_id >= 0 && token != s->decision.token_id) {
        s->status =
            REDGE_ERR_NOT_DECIDED; /* something after us picked another token: that must not pass for a decision */
    }
    s->phase = REDGE_PHASE_GUARD;
}

static void redge_sampler_apply(struct llama_sampler * smpl, llama_token_data_array * cur_p) {
    redge_sampler * s = redge_sampler_of(smpl);
    if (s->phase == REDGE_PHASE_DECIDE) {
        decide(s, cur_p);
    } else {
        guard(s, cur_p);
    }
}

static void redge_sampler_reset(struct llama_sampler * smpl) {
    redge_sampler * s = redge_sampler_of(smpl);
    s->phase = s->options.phase;
    s->applied = false;
    s->backend.ran = false;
    s->status = REDGE_ERR_NOT_DECIDED;
    redge_decision_clear(&s->decision);
}

static void destroy(redge_sampler * s) {
    if (s != NULL) {
        redge_report_free(&s->backend.report);
        redge_selector_free(&s->selector);
        free(s->logits);
        free(s->candidates);
        free(s);
    }
}

static redge_sampler * create(const redge_policy * policy, const redge_sampler_options * options) {
    redge_sampler * s = calloc(1, sizeof *s);
    if (s == NULL) {
        return NULL;
    }
    s->policy = *policy;
    s->options = *options;
    const size_t n_vocab = (size_t) options->n_vocab;
    const int32_t n_control = (int32_t) policy->n_categories + 1;
    for (int32_t i = 0; i < n_control; ++i) {
        s->control_tokens[i] = redge_control_token(policy, (uint32_t) i);
    }
    s->logits = malloc(n_vocab * sizeof *s->logits);
    s->candidates = calloc(n_vocab, sizeof *s->candidates);
    const bool has_selector = redge_selector_init(&s->selector, options->n_vocab, s->control_tokens, n_control);
    if (s->logits == NULL || s->candidates == NULL || !has_selector) {
        destroy(s);
        return NULL;
    }
    return s;
}

/* What a decision has changed, and the policy, which may be replaced at any time. */
static void copy(const redge_sampler * src, redge_sampler * dst) {
    dst->policy = src->policy;
    dst->phase = src->phase;
    dst->applied = src->applied;
    dst->status = src->status;
    dst->decision = src->decision;
}

static struct llama_sampler * redge_sampler_clone(const struct llama_sampler * smpl) {
    const redge_sampler * src = redge_sampler_of(smpl);
    redge_sampler * dst = create(&src->policy, &src->options);
    if (dst == NULL) {
        return NULL;
    }
    copy(src, dst);
    return wrap(dst);
}

static void redge_sampler_free(struct llama_sampler * smpl) {
    destroy(redge_sampler_of(smpl));
}

static void redge_sampler_copy_state(const struct llama_sampler * src, struct llama_sampler * dst) {
    copy(redge_sampler_of(src), redge_sampler_of(dst));
}

static bool redge_sampler_backend_init(struct llama_sampler * smpl, struct ggml_backend_buffer_type * buft,
                                       uint32_t n_outputs_max_per_seq) {
    redge_sampler * s = redge_sampler_of(smpl);
    const int32_t n_control = (int32_t) s->policy.n_categories + 1;
    redge_report * report = &s->backend.report;
    redge_report_free(report);
    s->backend.is_init = true;
    s->backend.supported =
        redge_host_has_graphs() && n_outputs_max_per_seq <= 1 && redge_backend_can_run(s->policy.rule) &&
        redge_report_init(report, buft) &&
        redge_graph_is_supported(redge_host.ggml_backend_buft_get_device(buft), report, s->options.n_vocab, n_control);
    return s->backend.supported;
}

static void redge_sampler_backend_apply(struct llama_sampler * smpl, struct ggml_context * ctx, struct ggml_cgraph * gf,
                                        struct llama_sampler_data * data) {
    (void) gf;
    redge_sampler * s = redge_sampler_of(smpl);
    const int32_t n_control = (int32_t) s->policy.n_categories + 1;
    if (data->candidates ==
        NULL) { /* else we are not at the head, and token ids are no indices: every use is an error */
        redge_graph_build(&s->backend.graph, &s->backend.report, ctx, n_control, &data->logits);
    }
}

static void redge_sampler_backend_set_input(struct llama_sampler * smpl) {
    redge_sampler * s = redge_sampler_of(smpl);
    if (s->backend.graph.ids != NULL) {
        redge_graph_set_inputs(&s->backend.graph, &s->policy, s->phase);
        s->backend.ran = true;
    }
}

static void redge_sampler_backend_reset(struct llama_sampler * smpl) {
    redge_sampler_of(smpl)->backend.graph = (redge_graph){0};
}

static struct llama_sampler_i redge_sampler_i = {
    /* .name              = */ redge_sampler_name,
    /* .accept            = */ redge_sampler_accept,
    /* .apply             = */ redge_sampler_apply,
    /* .reset             = */ redge_sampler_reset,
    /* .clone             = */ redge_sampler_clone,
    /* .free              = */ redge_sampler_free,
    /* .backend_init      = */ redge_sampler_backend_init,
    /* .backend_accept    = */ NULL,
    /* .backend_apply     = */ redge_sampler_backend_apply,
    /* .backend_set_input = */ redge_sampler_backend_set_input,
    /* .backend_reset     = */ redge_sampler_backend_reset,
    /* .copy_state        = */ redge_sampler_copy_state,
};

/* The host allocates the llama_sampler, since it also frees it. */
static struct llama_sampler * wrap(redge_sampler * s) {
    struct llama_sampler * smpl = redge_host.llama_sampler_init(&redge_sampler_i, s);
    if (smpl == NULL) {
        destroy(s);
    }
    return smpl;
}

struct llama_sampler * redge_sampler_new(const redge_policy * policy, const redge_sampler_options * options) {
    redge_sampler * s = create(policy, options);
    struct llama_sampler * smpl = s != NULL ? wrap(s) : NULL;
    if (smpl != NULL) {
        redge_sampler_reset(smpl);
    }
    return smpl;
}

bool redge_sampler_is_ours(const struct llama_sampler * smpl) {
    return smpl->iface == &redge_sampler_i;
}
