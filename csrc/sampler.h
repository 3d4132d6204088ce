/* Our sampler's state, for the files that work on it. */
#ifndef REDGE_SAMPLER_H
#define REDGE_SAMPLER_H

#include "backend.h"
#include "host.h"
#include "select.h"

typedef struct redge_sampler {
    redge_policy policy;
    redge_sampler_options options;

    redge_phase phase;
    bool applied;        /* a decision was tried since init or reset */
    redge_status status; /* how it went */
    redge_decision decision;

    redge_backend backend;

    /* Scratch, so that nothing is allocated later: n_vocab entries each. */
    float * logits;
    llama_token_data * candidates;
    redge_selector selector; /* excludes the control tokens */
    int32_t control_tokens[REDGE_MAX_CATEGORIES + 1];
} redge_sampler;

/* NULL if memory is short; the arguments are valid. */
struct llama_sampler * redge_sampler_new(const redge_policy * policy, const redge_sampler_options * options);

bool redge_sampler_is_ours(const struct llama_sampler * smpl);

/* The first sampler of ours in `smpl`, or in the chain that it is; NULL if there is none. */
struct llama_sampler * redge_sampler_find(const struct llama_sampler * smpl);

static inline redge_sampler * redge_sampler_of(const struct llama_sampler * ours) {
    return (redge_sampler *) ours->ctx;
}

/* Decides on raw logits and keeps the result; returns its status. */
redge_status redge_sampler_decide(redge_sampler * s, const float * logits, int32_t n_vocab);

/* Whether the backend's graph that left something over had us in it, and could decide; *forced is then the decided
 * token, -1 for none. */
redge_status redge_sampler_check_backend(const redge_sampler * s, int32_t * forced);

/* Makes `cur_p`, which has at least one entry, hold the decided token alone (on an error: the first category's), or
 * masks the control tokens if none is forced. */
void redge_sampler_collapse(const redge_sampler * s, llama_token_data_array * cur_p);

#endif
