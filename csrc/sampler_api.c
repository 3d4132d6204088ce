/* The public functions on samplers: arguments checked, ours found in whatever was handed over. */
#include "policy.h"
#include "rule.h"
#include "sampler.h"

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

struct llama_sampler * redge_sampler_init(const redge_policy * policy, const redge_sampler_options * options,
                                          redge_status * status) {
    redge_status ignored;
    redge_status * out = status != NULL ? status : &ignored;
    *out = check(policy, options);
    if (*out != REDGE_OK) {
        return NULL;
    }
    struct llama_sampler * smpl = redge_sampler_new(policy, options);
    if (smpl == NULL) {
        *out = REDGE_ERR_MEMORY;
    }
    return smpl;
}

struct llama_sampler * redge_sampler_find(const struct llama_sampler * smpl) {
    /* llama.cpp's chain functions take a non-const chain, though these two only read it. */
    struct llama_sampler * chain = (struct llama_sampler *) (uintptr_t) smpl;
    if (smpl == NULL || redge_sampler_is_ours(smpl)) {
        return chain;
    }
    if (!redge_is_bound() || redge_host.llama_sampler_chain_get(chain, -1) == NULL) {
        return NULL;
    }
    const int32_t n = redge_host.llama_sampler_chain_n(chain);
    for (int32_t i = 0; i < n; ++i) {
        struct llama_sampler * member = redge_host.llama_sampler_chain_get(chain, i);
        if (redge_sampler_is_ours(member)) {
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
    redge_decision_clear(decision);
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
    if (status == REDGE_OK && s->backend.supported && !redge_backend_can_run(policy->rule)) {
        status = REDGE_ERR_BACKEND_RULE;
    }
    if (status == REDGE_OK) {
        s->policy = *policy;
    }
    return status;
}
