#include "refusal_edge.h"

static const char * const messages[] = {
    [REDGE_OK] = "ok",
    [REDGE_ERR_NULL] = "a required pointer is NULL",
    [REDGE_ERR_RULE] = "unknown rule, score, fallback or phase",
    [REDGE_ERR_CATEGORY_COUNT] =
        "the number of categories is outside [1, 64], or not 1 for a paper-single or paper-argmax rule",
    [REDGE_ERR_TOKEN_RANGE] = "a control token id is outside [0, n_vocab)",
    [REDGE_ERR_TOKEN_DUPLICATE] = "two control tokens share an id",
    [REDGE_ERR_THRESHOLD] = "a threshold is neither in [0, 1] nor one of the values the rule knows (model, off)",
    [REDGE_ERR_TEMPERATURE] = "the temperature is not a finite number > 0",
    [REDGE_ERR_CONTROL_MASS] = "min_control_mass is outside [0, 1]",
    [REDGE_ERR_N_VOCAB] = "the logits or candidates are not the whole vocabulary of the model",
    [REDGE_ERR_LOGITS] = "NaN or +Inf among the logits, or no finite logit among the control tokens",
    [REDGE_ERR_NOT_BOUND] = "the library is not bound to a llama.cpp yet",
    [REDGE_ERR_HOST] = "the table of llama.cpp functions is incomplete or of another version",
    [REDGE_ERR_NOT_OURS] = "not a refusal-edge sampler, nor a chain that holds one",
    [REDGE_ERR_NOT_DECIDED] =
        "the sampler made no decision: it was never applied, or another token was accepted in its place",
    [REDGE_ERR_TOKEN_CHANGED] = "the control tokens of a live sampler cannot change",
    [REDGE_ERR_BACKEND_RULE] = "the rule paper-category cannot run on a backend: use placement cpu",
    [REDGE_ERR_NO_OUTPUT] = "the context has no logits at this output index",
    [REDGE_ERR_NO_CANDIDATE] = "the sampler chain selected no token, or only a masked one",
    [REDGE_ERR_CONTROL_TOKEN] =
        "a control token was selected mid-answer: a sampler after refusal-edge raised its logit",
    [REDGE_ERR_ISA] = "unknown instruction set, or one that this machine cannot run",
    [REDGE_ERR_MEMORY] = "out of memory",
};

_Static_assert(sizeof messages / sizeof messages[0] == REDGE_STATUS_COUNT, "one message per status");

const char * redge_status_message(redge_status status) {
    const unsigned index = (unsigned) status;
    return index < REDGE_STATUS_COUNT ? messages[index] : "unknown status";
}
