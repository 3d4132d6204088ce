/* The rule as a llama_sampler. */
#include "sampler.h"
#include "policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- llama_sampler_i ----------------------------------------------------------------- */

static const char * redge_sampler_name(const struct llama_sampler * smpl) {
    (void) smpl;
    return "refusal-edge";
}

static void redge_sampler_accept(struct llama_sampler * smpl, int32_t token) {
    redge_sampler * s = redge_sampler_of(smpl);
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
    s->status = REDGE_ERR_NOT_DECIDED;
    memset(&s->decision, 0, sizeof s->decision);
}

static void destroy(redge_sampler * s) {
    if (s != NULL) {
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

static struct llama_sampler_i redge_sampler_i = {
    /* .name              = */ redge_sampler_name,
    /* .accept            = */ redge_sampler_accept,
    /* .apply             = */ redge_sampler_apply,
    /* .reset             = */ redge_sampler_reset,
    /* .clone             = */ redge_sampler_clone,
    /* .free              = */ redge_sampler_free,
    /* .backend_init      = */ NULL,
    /* .backend_accept    = */ NULL,
    /* .backend_apply     = */ NULL,
    /* .backend_set_input = */ NULL,
    /* .backend_reset     = */ NULL,
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

/* ---- the public functions ------------------------------------------------------------ */

static redge_status check(const redge_policy * policy, const redge_sampler_options * options) {
    if (!redge_is_bound()) {
        return REDGE_ERR_NOT_BOUND;
    }
    if (policy == NULL || options == NULL) {
        return REDGE_ERR_NULL;
    }
    if (options->n_vocab <= 0) {
        return REDGE_ERR_N_VOCAB;
    }
    if (options->phase != REDGE_PHASE_DECIDE && options->phase != REDGE_PHASE_GUARD) {
        return REDGE_ERR_RULE;
    }
    return redge_policy_validate(policy, options->n_vocab);
}

static struct llama_sampler * make(const redge_policy * policy, const redge_sampler_options * options,
                                   redge_status * status) {
    *status = check(policy, options);
    if (*status != REDGE_OK) {
        return NULL;
    }
    redge_sampler * s = create(policy, options);
    struct llama_sampler * smpl = s != NULL ? wrap(s) : NULL;
    if (smpl == NULL) {
        *status = REDGE_ERR_MEMORY;
        return NULL;
    }
    redge_sampler_reset(smpl);
    return smpl;
}

struct llama_sampler * redge_sampler_init(const redge_policy * policy, const redge_sampler_options * options,
                                          redge_status * status) {
    redge_status ignored;
    return make(policy, options, status != NULL ? status : &ignored);
}

static bool is_ours(const struct llama_sampler * smpl) {
    return smpl->iface == &redge_sampler_i;
}

struct llama_sampler * redge_sampler_find(const struct llama_sampler * smpl) {
    /* llama.cpp's chain functions take a non-const chain, though these two only read it. */
    struct llama_sampler * chain = (struct llama_sampler *) (uintptr_t) smpl;
    if (smpl == NULL || is_ours(smpl)) {
        return chain;
    }
    if (!redge_is_bound() || redge_host.llama_sampler_chain_get(chain, -1) == NULL) {
        return NULL;
    }
    const int32_t n = redge_host.llama_sampler_chain_n(chain);
    for (int32_t i = 0; i < n; ++i) {
        struct llama_sampler * member = redge_host.llama_sampler_chain_get(chain, i);
        if (is_ours(member)) {
            return member;
        }
    }
    return NULL;
}

static redge_status find(const struct llama_sampler * smpl, redge_sampler ** s) {
    if (smpl == NULL) {
        return REDGE_ERR_NULL;
    }
    const struct llama_sampler * ours = redge_sampler_find(smpl);
    if (ours == NULL) {
        return REDGE_ERR_NOT_OURS;
    }
    *s = redge_sampler_of(ours);
    return REDGE_OK;
}

redge_status redge_sampler_decision(const struct llama_sampler * smpl, redge_decision * decision) {
    if (decision == NULL) {
        return REDGE_ERR_NULL;
    }
    memset(decision, 0, sizeof *decision);
    decision->outcome = REDGE_NO_DECISION;
    decision->category = -1;
    decision->token_id = -1;

    redge_sampler * s;
    const redge_status status = find(smpl, &s);
    if (status != REDGE_OK) {
        return status;
    }
    if (s->status == REDGE_OK) {
        *decision = s->decision;
    }
    return s->status;
}

static bool same_control_tokens(const redge_policy * a, const redge_policy * b) {
    if (a->n_categories != b->n_categories) {
        return false;
    }
    for (uint32_t i = 0; i <= a->n_categories; ++i) {
        if (redge_control_token(a, i) != redge_control_token(b, i)) {
            return false;
        }
    }
    return true;
}

redge_status redge_sampler_set_policy(struct llama_sampler * smpl, const redge_policy * policy) {
    redge_sampler * s;
    redge_status status = find(smpl, &s);
    if (status == REDGE_OK) {
        status = redge_policy_validate(policy, s->options.n_vocab);
    }
    if (status == REDGE_OK && !same_control_tokens(policy, &s->policy)) {
        status = REDGE_ERR_TOKEN_CHANGED;
    }
    if (status == REDGE_OK) {
        s->policy = *policy;
    }
    return status;
}
