/* The rule in a plain llama.cpp chain, in a C host that has its own llama.h and libllama: build with
 *
 *     cmake -B build/c -DREFUSAL_EDGE_PYTHON=OFF && cmake --build build/c
 *     cc -std=c11 -Icsrc -I$LLAMA/include examples/sampler.c build/c/libredge.a \
 *         -L$LLAMA/lib -lllama -lggml-base -lm -o sampler
 *     ./sampler model.gguf 'templated prompt, up to and including the generation prompt'
 *
 * The policy is read from the scalar `refusal_edge.*` keys that `refusal-edge convert` wrote. */
#include <llama.h>
#include <llama_abi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPT = 512, MAX_ANSWER = 48 };

static const char * const RULES[] = {"threshold", "sum", "paper-single", "paper-argmax", "paper-category"};
static const char * const SCORES[] = {"control", "vocab"};
static const char * const FALLBACKS[] = {"model", "respond", "refuse"};
static const char * const OUTCOMES[] = {"refuse", "respond", "no decision"};

static double number(const struct llama_model * model, const char * key, double otherwise) {
    char value[64];
    return llama_model_meta_val_str(model, key, value, sizeof value) < 0 ? otherwise : atof(value);
}

/* Index of the key's value among `names`: 0 where the key is absent, n where the value is none of them. */
static int choice(const struct llama_model * model, const char * key, const char * const * names, int n) {
    char value[64];
    int i = 0;
    if (llama_model_meta_val_str(model, key, value, sizeof value) >= 0) {
        while (i < n && strcmp(value, names[i]) != 0) {
            ++i;
        }
    }
    return i;
}

/* What no value can be is left to redge_sampler_init, which refuses it. */
static redge_policy read_policy(const struct llama_model * model) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.rule = (redge_rule) choice(model, "refusal_edge.rule", RULES, REDGE_RULE_COUNT);
    policy.score = (redge_score) choice(model, "refusal_edge.score", SCORES, REDGE_SCORE_COUNT);
    policy.fallback = (redge_fallback) choice(model, "refusal_edge.fallback", FALLBACKS, REDGE_FALLBACK_COUNT);
    policy.temperature = number(model, "refusal_edge.temperature", policy.temperature);
    policy.min_control_mass = number(model, "refusal_edge.min_control_mass", policy.min_control_mass);
    policy.sum_threshold = number(model, "refusal_edge.threshold", policy.sum_threshold);
    policy.respond_token_id = (int32_t) number(model, "refusal_edge.respond_token_id", -1);
    policy.n_categories = (uint32_t) number(model, "refusal_edge.category.count", 0);
    for (uint32_t c = 0; c < policy.n_categories && c < REDGE_MAX_CATEGORIES; ++c) {
        char key[64];
        snprintf(key, sizeof key, "refusal_edge.category.%u.token_id", c);
        policy.token_ids[c] = (int32_t) number(model, key, -1);
        snprintf(key, sizeof key, "refusal_edge.category.%u.threshold", c);
        policy.thresholds[c] = number(model, key, REDGE_THRESHOLD_MODEL);
    }
    return policy;
}

static int fail(const char * what, const char * why) {
    fprintf(stderr, "%s: %s\n", what, why);
    return 2;
}

static void silent(enum ggml_log_level level, const char * text, void * data) {
    (void) level, (void) text, (void) data;
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        return fail(argv[0], "expected MODEL.gguf and a prompt");
    }
    llama_log_set(silent, NULL);
    llama_backend_init();
    const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    redge_status status = redge_bind(&api);
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (status != REDGE_OK || model == NULL) {
        return fail(argv[1], model == NULL ? "cannot be loaded" : redge_status_message(status));
    }
    struct llama_context * ctx = llama_init_from_model(model, llama_context_default_params());
    const struct llama_vocab * vocab = llama_model_get_vocab(model);

    const redge_policy policy = read_policy(model);
    const redge_sampler_options options = {.phase = REDGE_PHASE_DECIDE, .n_vocab = llama_vocab_n_tokens(vocab)};
    struct llama_sampler * rule = redge_sampler_init(&policy, &options, &status);
    if (rule == NULL) {
        return fail("policy", redge_status_message(status));
    }
    struct llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, rule); /* at the head: it must see the raw logits */
    llama_sampler_chain_add(chain, llama_sampler_init_greedy());

    llama_token tokens[MAX_PROMPT];
    const int32_t n = llama_tokenize(vocab, argv[2], (int32_t) strlen(argv[2]), tokens, MAX_PROMPT, false, true);
    if (n <= 0 || llama_decode(ctx, llama_batch_get_one(tokens, n)) != 0) {
        return fail("prompt", "empty, longer than 512 tokens, or not decodable");
    }
    for (int i = 0; i < MAX_ANSWER; ++i) {
        llama_token token = redge_sampler_sample(chain, ctx, -1, &status);
        if (status != REDGE_OK) {
            return fail("sampling", redge_status_message(status));
        }
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        bool is_text = true;
        if (i == 0) {
            redge_decision decision;
            if (redge_sampler_decision(chain, &decision) != REDGE_OK) {
                return fail("decision", "none was made");
            }
            printf("%s, control mass %.3f:", OUTCOMES[decision.outcome], decision.control_mass);
            is_text = decision.token_id < 0;
        }
        if (is_text) {
            char piece[64];
            const int32_t length = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
            printf("%.*s", length > 0 ? length : 0, piece);
        }
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0) {
            return fail("decoding", "failed");
        }
    }
    printf("\n");
    llama_sampler_free(chain); /* and with it the rule */
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
