/* Only the first sampler that is switched on has to be understood: once it has cut the vocabulary down to what
 * llama.cpp would have left, every other sampler, known or not, is applied as it is. docs/sampling.md has the table. */
#include "fast.h"

#include <float.h>
#include <math.h>

static void put(redge_sampler * s, int32_t n, const float * logits, bool sorted, llama_token_data_array * cur_p) {
    for (int32_t i = 0; i < n; ++i) {
        const int32_t id = s->selector.picks[i];
        s->candidates[i] = (llama_token_data){.id = id, .logit = logits[id], .p = 0.0f};
    }
    *cur_p = (llama_token_data_array){.data = s->candidates, .size = (size_t) n, .selected = -1, .sorted = sorted};
}

static bool greedy(redge_sampler * s, const redge_kernels * kernels, const float * logits,
                   llama_token_data_array * cur_p) {
    const int32_t id = redge_selector_argmax(&s->selector, kernels, logits);
    if (id < 0) {
        return false;
    }
    s->selector.picks[0] = id;
    put(s, 1, logits, false, cur_p);
    cur_p->selected = 0;
    return true;
}

/* A list that says it is sorted is only cut: its length afterwards is k. */
static int32_t ask_k(redge_sampler * s, struct llama_sampler * top_k) {
    llama_token_data_array probe = {
        .data = s->candidates, .size = (size_t) s->options.n_vocab, .selected = -1, .sorted = true};
    redge_host.llama_sampler_apply(top_k, &probe);
    return (int32_t) probe.size;
}

/* llama.cpp sorts longer lists into buckets by a logit cast to int, which huge logits overflow. */
#define BUCKETS_LIMIT 1e6f

static bool top_k(redge_sampler * s, const redge_kernels * kernels, const float * logits, struct llama_sampler * smpl,
                  llama_token_data_array * cur_p) {
    const int32_t k = ask_k(s, smpl);
    if (k >= s->options.n_vocab || !redge_selector_top_k(&s->selector, kernels, logits, k)) {
        return false;
    }
    const int32_t * picks = s->selector.picks;
    if (!(fabsf(logits[picks[0]]) < BUCKETS_LIMIT && fabsf(logits[picks[k - 1]]) < BUCKETS_LIMIT)) {
        return false;
    }
    put(s, k, logits, true, cur_p);
    return true;
}

enum { MAX_PADDING = 8, SMALL_VOCABULARY = 16 * REDGE_CHUNK }; /* below it llama.cpp's own way is as fast */

/* In units of the largest probability: with so much, REDGE_MAX_TOP_K tokens will hardly hold what top-p keeps. */
#define FLAT_SUM 256.0f

/* Appends candidates to the k that bring the float sum of the terms, as the sampler takes it over the list, to exactly
 * `sum`, what the rest of the vocabulary adds, and one that adds nothing, so that there always is one. Returns how long
 * the list is, or 0 if there is no way to do that. */
static int32_t pad_to_sum(llama_token_data * data, int32_t k, float sum) {
    const float max = data[0].logit;
    const float step = (fabsf(max) + 32.0f) * FLT_EPSILON; /* no logit here is so large that it would not change it */
    float so_far = 0.0f;
    for (int32_t i = 0; i < k; ++i) {
        so_far += expf(data[i].logit - max);
    }
    int32_t n = k;
    while (so_far < sum && n < k + MAX_PADDING) { /* what a candidate falls short of, the next one adds */
        float logit = max + logf(sum - so_far);
        for (int tries = 0; so_far + expf(logit - max) > sum && tries < MAX_PADDING; ++tries) {
            logit -= step;
        }
        so_far += expf(logit - max);
        data[n++] = (llama_token_data){.id = -1, .logit = logit, .p = 0.0f};
    }
    data[n++] = (llama_token_data){.id = -1, .logit = -INFINITY, .p = 0.0f};
    return so_far == sum ? n : 0;
}

/* The sampler itself cuts the k largest, in a list that has the whole vocabulary's sum of probabilities: what it keeps
 * of them is what it would keep of all. If it keeps a made-up one too, nothing is known, and more are tried. */
static bool top_p(redge_sampler * s, const redge_kernels * kernels, const float * logits, struct llama_sampler * smpl,
                  llama_token_data_array * cur_p) {
    static const int32_t ks[] = {1, 8, 64, 256, REDGE_MAX_TOP_K};
    const float max = redge_selector_max(&s->selector);
    if (s->options.n_vocab < SMALL_VOCABULARY || !(fabsf(max) < BUCKETS_LIMIT)) {
        return false;
    }
    const float sum = redge_selector_softmax_sum(&s->selector, kernels, logits, max, FLAT_SUM);
    if (sum > FLAT_SUM) {
        return false;
    }
    for (size_t i = 0; i < sizeof ks / sizeof ks[0]; ++i) {
        const int32_t k = ks[i];
        if (!redge_selector_top_k(&s->selector, kernels, logits, k)) {
            return false;
        }
        put(s, k, logits, true, cur_p);
        const int32_t n = pad_to_sum(s->candidates, k, sum);
        if (n == 0) {
            return false;
        }
        cur_p->size = (size_t) n;
        redge_host.llama_sampler_apply(smpl, cur_p);
        if (s->candidates[0].p != 1.0f / sum) { /* llama.cpp has another expf than we have */
            return false;
        }
        if (cur_p->size <= (size_t) k) {
            return true;
        }
    }
    return false;
}

enum { N_RULER = 129 };

/* How far below the maximum min-p drops a logit for sure, told by where it cuts a made-up list, every quarter from 0 to
 * 32 below; since rounding is monotone, what is dropped next to 0 is dropped next to every maximum. 0 if it cannot be
 * told: it drops none of them, or keeps a least number of candidates. */
static float ask_reach(struct llama_sampler * min_p) {
    llama_token_data ruler[N_RULER];
    for (int32_t i = 0; i < N_RULER; ++i) {
        ruler[i] = (llama_token_data){.id = i, .logit = -0.25f * (float) i, .p = 0.0f};
    }
    llama_token_data_array probe = {.data = ruler, .size = N_RULER, .selected = -1, .sorted = true};
    redge_host.llama_sampler_apply(min_p, &probe);
    const size_t n_kept = probe.size;

    llama_token_data far[2] = {{.id = 0, .logit = 0.0f, .p = 0.0f}, {.id = 1, .logit = -INFINITY, .p = 0.0f}};
    llama_token_data_array pair = {.data = far, .size = 2, .selected = -1, .sorted = true};
    redge_host.llama_sampler_apply(min_p, &pair);
    return n_kept < N_RULER && pair.size == 1 ? 0.25f * (float) n_kept : 0.0f;
}

/* The sampler itself filters all that it could keep. It leaves the list unsorted unless it had to keep more than that.
 */
static bool min_p(redge_sampler * s, const redge_kernels * kernels, const float * logits, struct llama_sampler * smpl,
                  llama_token_data_array * cur_p) {
    const float reach = ask_reach(smpl);
    const float max = redge_selector_max(&s->selector);
    if (reach == 0.0f || max == -INFINITY) {
        return false;
    }
    const int32_t n = redge_selector_at_least(&s->selector, kernels, logits, max - reach, REDGE_DENSE_PICKS,
                                              REDGE_DENSE_PICKS_PER_CHUNK);
    if (n < 0) {
        return false;
    }
    put(s, n, logits, false, cur_p);
    redge_host.llama_sampler_apply(smpl, cur_p);
    return !cur_p->sorted;
}

void redge_chain_apply(struct llama_sampler * chain, int32_t first, llama_token_data_array * cur_p) {
    const int32_t n = redge_host.llama_sampler_chain_n(chain);
    for (int32_t i = first; i < n; ++i) {
        struct llama_sampler * smpl = redge_host.llama_sampler_chain_get(chain, i);
        if (smpl->iface->apply != NULL) {
            redge_host.llama_sampler_apply(smpl, cur_p);
        }
    }
}

/* Position of the first sampler after ours that is switched on; n if there is none. */
static int32_t first_active(struct llama_sampler * chain, int32_t n) {
    int32_t i = 1;
    while (i < n && redge_host_kind(redge_host.llama_sampler_chain_get(chain, i)) == REDGE_KIND_EMPTY) {
        ++i;
    }
    return i;
}

static bool select_without_control_tokens(struct llama_sampler * chain, int32_t n, redge_sampler * s,
                                          const float * logits, llama_token_data_array * cur_p) {
    const redge_kernels * kernels = redge_kernels_active();
    const int32_t first = first_active(chain, n);
    if (kernels == NULL || first == n) {
        return false;
    }
    struct llama_sampler * smpl = redge_host.llama_sampler_chain_get(chain, first);
    const redge_kind kind = redge_host_kind(smpl);
    if (kind == REDGE_KIND_OTHER || (kind == REDGE_KIND_GREEDY && first != n - 1)) {
        return false;
    }
    if (!redge_selector_read(&s->selector, kernels, logits)) {
        return false;
    }
    const bool selected = kind == REDGE_KIND_GREEDY  ? greedy(s, kernels, logits, cur_p)
                          : kind == REDGE_KIND_TOP_K ? top_k(s, kernels, logits, smpl, cur_p)
                          : kind == REDGE_KIND_TOP_P ? top_p(s, kernels, logits, smpl, cur_p)
                                                     : min_p(s, kernels, logits, smpl, cur_p);
    if (selected) {
        redge_chain_apply(chain, first + 1, cur_p);
    }
    return selected;
}

bool redge_fast_apply(struct llama_sampler * chain, redge_sampler * s, const float * logits,
                      llama_token_data_array * cur_p) {
    const int32_t n = redge_host.llama_sampler_chain_n(chain);
    if (s->phase == REDGE_PHASE_DECIDE) {
        redge_sampler_decide(s, logits, s->options.n_vocab);
        if (s->status != REDGE_OK || s->decision.token_id >= 0) {
            *cur_p = (llama_token_data_array){.data = s->candidates, .size = 1, .selected = -1, .sorted = false};
            redge_sampler_collapse(s, cur_p);
            redge_chain_apply(chain, 1, cur_p);
            return true;
        }
    }
    return select_without_control_tokens(chain, n, s, logits, cur_p);
}
