/* refusal_edge.h - the refusal-threshold rule, alone and as a llama.cpp sampler. The only public header.
 *
 * A refusal-token model (Jain et al., arXiv 2412.06748) emits one control token before each answer: one per refusal
 * category, and a respond token. This library reads the logits of that position and decides, by a policy, which control
 * token comes out. It does not link llama.cpp: the host hands over the functions it already has, once (`redge_bind`).
 *
 * Every function is total: it returns a status, and never aborts, exits or prints. Nothing is allocated here after a
 * sampler was made. All functions are thread-safe on distinct objects; a `redge_policy` may be shared read-only by any
 * number of threads; `redge_bind` must come before, and never beside, the functions that need the host.
 */
#ifndef REFUSAL_EDGE_H
#define REFUSAL_EDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define REDGE_VERSION        "0.1.0"
#define REDGE_MAX_CATEGORIES 64

/* Control values that are not thresholds; the same numbers stand in the GGUF keys. */
#define REDGE_THRESHOLD_MODEL (-1.0) /* passes iff the category is the argmax of all control tokens */
#define REDGE_THRESHOLD_OFF   2.0    /* never passes */

typedef enum redge_status {
    REDGE_OK = 0,
    REDGE_ERR_NULL,            /* a required pointer is NULL */
    REDGE_ERR_RULE,            /* unknown rule, score, fallback or phase */
    REDGE_ERR_CATEGORY_COUNT,  /* n_categories outside [1, REDGE_MAX_CATEGORIES], or not 1 for a paper-single/-argmax
                                  rule */
    REDGE_ERR_TOKEN_RANGE,     /* a control token id outside [0, n_vocab) */
    REDGE_ERR_TOKEN_DUPLICATE, /* two control tokens share an id */
    REDGE_ERR_THRESHOLD,    /* a threshold that is neither in [0, 1] nor MODEL nor OFF (or one the rule cannot use) */
    REDGE_ERR_TEMPERATURE,  /* temperature not finite or not > 0 */
    REDGE_ERR_CONTROL_MASS, /* min_control_mass outside [0, 1] */
    REDGE_ERR_N_VOCAB,      /* n_vocab <= 0, or candidates that are not the whole vocabulary */
    REDGE_ERR_LOGITS,    /* NaN or +Inf among the logits, or no finite logit at all, or none among the control tokens */
    REDGE_ERR_NOT_BOUND, /* redge_bind has not succeeded yet */
    REDGE_ERR_HOST,      /* the host table is incomplete */
    REDGE_ERR_NOT_OURS,  /* not a sampler of this library, or a chain that holds none */
    REDGE_ERR_NOT_DECIDED,   /* the sampler was never applied, or a token other than the decided one was accepted */
    REDGE_ERR_TOKEN_CHANGED, /* the control tokens of a live sampler cannot change */
    REDGE_ERR_BACKEND_RULE,  /* the rule paper-category for a sampler that runs on a backend */
    REDGE_ERR_NO_OUTPUT,     /* the context has no logits at this output index */
    REDGE_ERR_NO_CANDIDATE,  /* the chain selected no token, or only one that is masked (-Inf) */
    REDGE_ERR_CONTROL_TOKEN, /* a later sampler of the chain raised a masked control token */
    REDGE_ERR_ISA,           /* unknown instruction set, or one that this machine cannot run */
    REDGE_ERR_MEMORY,        /* out of memory */
    REDGE_STATUS_COUNT
} redge_status;

typedef enum redge_rule {
    REDGE_RULE_THRESHOLD = 0,  /* a category passes if its score >= its threshold; largest passing score wins */
    REDGE_RULE_SUM,            /* refuse iff the sum of the scores of the categories not OFF >= sum_threshold */
    REDGE_RULE_PAPER_SINGLE,   /* one category: refuse iff p >= threshold (the published script) */
    REDGE_RULE_PAPER_ARGMAX,   /* one category: refuse iff p_refuse >= p_respond */
    REDGE_RULE_PAPER_CATEGORY, /* argmax over the categories, thresholded if it has one; else argmax of the vocabulary
                                */
    REDGE_RULE_COUNT
} redge_rule;

typedef enum redge_score {
    REDGE_SCORE_CONTROL = 0, /* softmax over the control tokens only */
    REDGE_SCORE_VOCAB,       /* softmax over the whole vocabulary (the paper's) */
    REDGE_SCORE_COUNT
} redge_score;

/* What to emit when the control mass is below min_control_mass (outcome NO_DECISION either way). */
typedef enum redge_fallback {
    REDGE_FALLBACK_MODEL = 0, /* sample normally; control tokens stay masked, so no seed can decide */
    REDGE_FALLBACK_RESPOND,   /* the respond token */
    REDGE_FALLBACK_REFUSE,    /* the category of largest score among those not OFF (all OFF: respond) */
    REDGE_FALLBACK_COUNT
} redge_fallback;

typedef enum redge_outcome { REDGE_REFUSE = 0, REDGE_RESPOND, REDGE_NO_DECISION } redge_outcome;

typedef struct redge_policy {
    redge_rule rule;
    redge_score score; /* ignored by the paper rules, which are on the vocabulary by definition */
    redge_fallback fallback;
    double temperature;      /* > 0; divides the logits */
    double min_control_mass; /* in [0, 1]; ignored by the paper rules, whose scripts have none */
    double sum_threshold;    /* in [0, 1]; REDGE_RULE_SUM only */
    int32_t respond_token_id;
    uint32_t n_categories; /* in [1, REDGE_MAX_CATEGORIES] */
    int32_t token_ids[REDGE_MAX_CATEGORIES];
    double thresholds[REDGE_MAX_CATEGORIES]; /* [0, 1], REDGE_THRESHOLD_MODEL or REDGE_THRESHOLD_OFF */
} redge_policy;

typedef struct redge_decision {
    redge_outcome outcome;
    int32_t category;       /* index into the policy's categories, -1 for none */
    int32_t token_id;       /* the token to emit; -1: none is forced (NO_DECISION with REDGE_FALLBACK_MODEL) */
    int32_t model_token_id; /* argmax of the whole vocabulary, lowest id on ties */
    uint32_t n_categories;
    double respond_score;
    double control_mass;                /* sum of the vocabulary softmax over the control tokens */
    double log_normalizer;              /* log of the sum of exp(z/T) over the vocabulary */
    float respond_logit;                /* raw logit, before temperature */
    float logits[REDGE_MAX_CATEGORIES]; /* raw, per category: with log_normalizer any other policy can be replayed */
    double scores[REDGE_MAX_CATEGORIES];
} redge_decision;

/* One static English sentence per status, never NULL. */
const char * redge_status_message(redge_status status);

/* Fills a policy with the defaults: rule THRESHOLD, score CONTROL, fallback MODEL, temperature 1, min_control_mass 0.5,
 * sum_threshold 0.5, no categories, every threshold MODEL. */
void redge_policy_default(redge_policy * policy);

/* Checks every field; n_vocab > 0 also checks the ids against it, n_vocab == 0 leaves that to the decision. */
redge_status redge_policy_validate(const redge_policy * policy, int32_t n_vocab);

/* The rule on raw logits (f32, n_vocab of them; -Inf allowed, NaN and +Inf are an error).
 * One pass over memory, no allocation. The sum over the vocabulary, and with it `log_normalizer` and the scores on the
 * vocabulary, is within 1e-6 of float64, relatively, on every instruction set; all else is exact, or in double.
 * On error *decision is zeroed, with outcome NO_DECISION, category and token_id -1. */
redge_status redge_decide_f32(const float * logits, int32_t n_vocab, const redge_policy * policy,
                              redge_decision * decision);

/* ---- instruction sets ---------------------------------------------------------------- */

/* Names of the kernels compiled in ("serial", "avx2", ...); NULL past the end. */
const char * redge_isa_name(size_t index);
bool redge_isa_available(const char * name); /* compiled in, and runnable on this machine */
const char * redge_isa_active(void);
/* Forces one for the whole process; NULL returns to the best. REFUSAL_EDGE_ISA in the environment is read once,
 * at the first use; a name there that is unknown or cannot run makes every decision fail with REDGE_ERR_ISA. Not
 * thread-safe. */
redge_status redge_isa_force(const char * name);

/* ---- the sampler --------------------------------------------------------------------- */

struct llama_sampler;
struct llama_context;
typedef struct redge_host_api redge_host_api; /* llama_abi.h: a table of the llama.cpp and ggml functions used */

/* Binds the library to the host's llama.cpp; the table is copied. Binding again replaces it. */
redge_status redge_bind(const redge_host_api * api);
bool redge_is_bound(void);

typedef enum redge_phase {
    REDGE_PHASE_DECIDE = 0, /* collapse the candidates to the decided token, then guard */
    REDGE_PHASE_GUARD       /* mask the control tokens, so that none can appear mid-answer */
} redge_phase;

typedef struct redge_sampler_options {
    redge_phase phase; /* the phase after init and after every reset */
    int32_t n_vocab;   /* of the model: candidates of any other size are an error */
} redge_sampler_options;

/* Makes a sampler that belongs at the head of a chain. It is owned by the caller until it is added to a chain, which
 * then frees it. NULL on error, with the reason in *status (may be NULL). The policy is copied. Supports accept, reset,
 * clone and copy_state as llama.cpp's own samplers do. A DECIDE sampler ignores tokens accepted before it was first
 * applied (the prompt). On an error while applying it fails closed: the token of the first category is emitted, and
 * redge_sampler_decision returns the error.
 *
 * In a chain attached with llama_set_sampler the rule runs inside the backend's graph, where the device and the rule
 * allow it (its name then begins with '+', else '-'); put greedy or dist behind it, since llama.cpp expects a chain to
 * select. */
struct llama_sampler * redge_sampler_init(const redge_policy * policy, const redge_sampler_options * options,
                                          redge_status * status);

/* Reads what the sampler (ours, or a chain that holds ours) decided since init or reset. REDGE_ERR_NOT_DECIDED if it
 * was never applied: the host must treat that as a failure, not as "respond". */
redge_status redge_sampler_decision(const struct llama_sampler * smpl, redge_decision * decision);

/* Replaces the policy of a live sampler (ours, or a chain that holds ours): same control tokens in the same order
 * (REDGE_ERR_TOKEN_CHANGED), nothing rebuilt. Takes effect at the next decision. */
redge_status redge_sampler_set_policy(struct llama_sampler * smpl, const redge_policy * policy);

/* Same token as llama_sampler_sample(chain, ctx, idx), for the same seed and logits, always; faster where the chain
 * allows it. The chain must hold a sampler of this library. -1, with the reason in *status (may be NULL) and nothing
 * accepted, where the decision failed, where every candidate is masked, and where llama.cpp would abort. */
int32_t redge_sampler_sample(struct llama_sampler * chain, struct llama_context * ctx, int32_t idx,
                             redge_status * status);

#ifdef __cplusplus
}
#endif

#endif /* REFUSAL_EDGE_H */
