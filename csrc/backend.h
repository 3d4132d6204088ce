/* The rule inside a backend's graph: what llama.cpp calls a sampler's backend_* functions for. */
#ifndef REDGE_BACKEND_H
#define REDGE_BACKEND_H

#include "host.h"

/* One row of the parameter tensor: a number for each control token, padded so that a row starts aligned everywhere. */
enum { REDGE_ROW = 128 };

/* Rows of the parameter tensor. Everything that a policy or the phase may change is an input, so no graph is rebuilt.
 */
enum {
    REDGE_IN_BELOW,    /* a score passes if it is greater than this: the float below the threshold */
    REDGE_IN_MODEL,    /* 1: passes if it is the largest control logit */
    REDGE_IN_SUMMED,   /* 1: adds to the sum, and passes if the sum does */
    REDGE_IN_ON_LOW,   /* 1: passes when the control mass is too low */
    REDGE_IN_LIFT,     /* raises respond above what does not pass, below what does */
    REDGE_IN_RANK,     /* breaks ties: greater is earlier */
    REDGE_IN_ON_ERROR, /* outranks every tie-breaker: the first category, for logits that are not finite */
    REDGE_IN_SCALARS,  /* numbers of their own, each at a REDGE_SCALAR_ */
    REDGE_IN_ROWS
};

enum {
    REDGE_SCALAR_INV_TEMPERATURE = 0,
    REDGE_SCALAR_VOCAB = 16,       /* 1: scores are on the vocabulary */
    REDGE_SCALAR_BELOW_SUM = 32,   /* the sum passes if it is greater */
    REDGE_SCALAR_BELOW_MASS = 48,  /* the control mass suffices if it is greater */
    REDGE_SCALAR_FREE_ON_LOW = 64, /* 1: nothing is forced when it does not */
    REDGE_SCALAR_DECIDE = 80       /* 1: this position is decided; 0: it is only guarded */
};

/* Rows of the report: what the graph says about its decision. It is a tensor of the sampler's own, on the device, since
 * the memory of a graph's tensors is gone when the next part of a batch is computed. */
enum {
    REDGE_OUT_LOGITS, /* of the control tokens, clamped to finite numbers */
    REDGE_OUT_PROBS,  /* of the control tokens, on the vocabulary */
    REDGE_OUT_CHOICE, /* 1 at the chosen control token */
    REDGE_OUT_SCALARS,
    REDGE_OUT_ROWS
};

enum {
    REDGE_SCALAR_MODEL_TOKEN = 0,
    REDGE_SCALAR_MODEL_LOGIT = 16,
    REDGE_SCALAR_MODEL_PROB = 32,
    REDGE_SCALAR_ENOUGH = 48, /* 1: the control mass suffices */
    REDGE_SCALAR_GOOD = 64,   /* 1: the logits can be decided on */
    REDGE_SCALAR_FORCED = 80  /* 1: the chosen token is the only one left */
};

typedef struct redge_report {
    struct ggml_context * ctx;
    struct ggml_backend_buffer * buffer;
    struct ggml_tensor * tensor;
} redge_report;

/* Inputs of the current graph; NULL between graphs, and in one where another sampler has selected before us. */
typedef struct redge_graph {
    struct ggml_tensor * ids;
    struct ggml_tensor * params;
} redge_graph;

typedef struct redge_backend {
    bool is_init;
    bool supported; /* by the library, the device and the rule */
    bool ran;       /* a graph holding us was given its inputs since the last accept or reset */
    redge_report report;
    redge_graph graph;
} redge_backend;

bool redge_backend_can_run(redge_rule rule);

/* False if the device has no memory for it. */
bool redge_report_init(redge_report * report, struct ggml_backend_buffer_type * buft);
void redge_report_free(redge_report * report);

/* Replaces *logits, one for each token, by what the rule leaves of them. */
void redge_graph_build(redge_graph * graph, const redge_report * report, struct ggml_context * ctx, int32_t n_control,
                       struct ggml_tensor ** logits);

/* Whether `device` (NULL: a CPU) can run every operation of the graph. */
bool redge_graph_is_supported(struct ggml_backend_device * device, const redge_report * report, int32_t n_vocab,
                              int32_t n_control);

void redge_graph_set_inputs(const redge_graph * graph, const redge_policy * policy, redge_phase phase);

/* The decision that the graph made when it last ran. */
redge_status redge_report_read(const redge_report * report, const redge_policy * policy, redge_decision * decision);

#endif
