/* Which chains the fast front takes (the table of docs/sampling.md), and that what it leaves is what llama.cpp leaves,
 * byte for byte: ids, logits, probabilities, order, selection. */
#include "check.h"

#include "llama.h"

#include "fast.h"

#include <stdlib.h>
#include <string.h>

enum { N_VOCAB = 70000, SAFETY = 40, RESPOND = 69990 }; /* more lanes than the largest k */

typedef struct llama_sampler sampler;

static float logits[N_VOCAB];
static llama_token_data data[N_VOCAB];
static size_t longest; /* list of survivors that was compared */

static sampler * chain_of(sampler * first, sampler * second, sampler * third) {
    redge_policy policy;
    redge_policy_default(&policy);
    policy.n_categories = 1;
    policy.token_ids[0] = SAFETY;
    policy.respond_token_id = RESPOND;
    const redge_sampler_options options = {.phase = REDGE_PHASE_GUARD, .n_vocab = N_VOCAB};
    sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, redge_sampler_init(&policy, &options, NULL));
    sampler * const tail[] = {first, second, third};
    for (int i = 0; i < 3; ++i) {
        if (tail[i] != NULL) {
            llama_sampler_chain_add(chain, tail[i]);
        }
    }
    return chain;
}

static void fill(void) {
    srand(7);
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        const double u = (double) rand() / RAND_MAX;
        logits[i] = (float) (12.0 * pow(u, 28.0)); /* few near the top, and no ties among them */
    }
    logits[SAFETY] = 50.0f;
    logits[RESPOND] = 60.0f;
}

static bool is_fast(sampler * chain, llama_token_data_array * cur_p) {
    redge_sampler * s = redge_sampler_of(redge_sampler_find(chain));
    return redge_fast_apply(chain, s, logits, cur_p);
}

static llama_token_data_array stock(sampler * chain) {
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        data[i] = (llama_token_data){.id = i, .logit = logits[i], .p = 0.0f};
    }
    llama_token_data_array array = {.data = data, .size = N_VOCAB, .selected = -1, .sorted = false};
    llama_sampler_apply(chain, &array);
    return array;
}

static void expect_same(sampler * chain) {
    sampler * copy = llama_sampler_clone(chain);
    llama_token_data_array fast = {0};
    CHECK(is_fast(chain, &fast));
    longest = fast.size > longest ? fast.size : longest;
    const llama_token_data_array expected = stock(copy);
    CHECK(fast.size == expected.size && fast.selected == expected.selected && fast.sorted == expected.sorted);
    for (size_t i = 0; i < expected.size && i < fast.size; ++i) {
        CHECK(memcmp(&fast.data[i], &expected.data[i], sizeof expected.data[i]) == 0);
    }
    llama_sampler_free(copy);
    llama_sampler_free(chain);
}

static void expect_same_token(sampler * chain) {
    sampler * copy = llama_sampler_clone(chain);
    llama_token_data_array fast = {.data = data};
    CHECK(is_fast(chain, &fast));
    const llama_token_data_array expected = stock(copy);
    CHECK(fast.data[fast.selected].id == expected.data[expected.selected].id);
    llama_sampler_free(copy);
    llama_sampler_free(chain);
}

/* Where the front does not take the chain there is nothing to compare; returns whether it did. */
static bool same_if_fast(sampler * chain) {
    llama_token_data_array ignored;
    sampler * probe = llama_sampler_clone(chain);
    const bool fast = is_fast(probe, &ignored);
    llama_sampler_free(probe);
    if (fast) {
        expect_same(chain);
    } else {
        llama_sampler_free(chain);
    }
    return fast;
}

static void expect_slow(sampler * chain) {
    llama_token_data_array ignored;
    CHECK(!is_fast(chain, &ignored));
    llama_sampler_free(chain);
}

static void test_fast_chains(void) {
    expect_same_token(chain_of(llama_sampler_init_greedy(), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_k(40), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_k(1), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_k(200), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_k(REDGE_MAX_TOP_K), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_p(0.3f, 1), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_p(0.3f, 1), llama_sampler_init_typical(0.5f, 1), NULL));
    expect_same(chain_of(llama_sampler_init_min_p(0.05f, 1), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_min_p(2e-5f, 1), NULL, NULL)); /* a twelfth of the vocabulary */
    expect_same(chain_of(llama_sampler_init_temp(1.0f), llama_sampler_init_top_k(40), llama_sampler_init_dist(3)));
    expect_same(chain_of(llama_sampler_init_top_k(40), llama_sampler_init_top_p(0.9f, 1), llama_sampler_init_dist(3)));
    expect_same(chain_of(llama_sampler_init_top_k(40), llama_sampler_init_typical(0.5f, 1), NULL));
    expect_same(chain_of(llama_sampler_init_top_k(40), llama_sampler_init_mirostat_v2(1, 5.0f, 0.1f), NULL));
    expect_same(
        chain_of(llama_sampler_init_min_p(0.05f, 1), llama_sampler_init_temp(0.8f), llama_sampler_init_dist(3)));
}

/* Logits of the given spread, `n_high` of them raised by up to `height`: from flat to one certain token. */
static void fill_random(double spread, int n_high, double height) {
    static const double offsets[] = {0.0, -25.0, 3.0, 400.0, 1e5};
    const double offset = offsets[rand() % 5];
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        double sum = 0.0; /* close to normal */
        for (int k = 0; k < 12; ++k) {
            sum += (double) rand() / RAND_MAX;
        }
        logits[i] = (float) (offset + spread * (sum - 6.0));
    }
    for (int k = 0; k < n_high; ++k) {
        logits[rand() % N_VOCAB] += (float) (height * rand() / RAND_MAX);
    }
    for (int32_t i = 0; i < N_VOCAB / 10; ++i) {
        logits[rand() % N_VOCAB] = -INFINITY;
    }
}

/* The number of probabilities that llama.cpp keeps depends on how floats round over the whole vocabulary. */
static void test_top_p(void) {
    static const double spreads[] = {0.01, 1.0, 3.0, 8.0};
    static const int n_high[] = {0, 1, 3, 20, 300, 2000};
    static const float ps[] = {0.0f, 0.1f, 0.5f, 0.9f, 0.95f, 0.99f, 0.999f, 0.99999994f};
    static const size_t min_keeps[] = {0, 2, 10, 100, 600};
    int n_fast = 0;
    int n_all = 0;
    longest = 0;
    for (size_t a = 0; a < sizeof spreads / sizeof spreads[0]; ++a) {
        for (size_t b = 0; b < sizeof n_high / sizeof n_high[0]; ++b) {
            fill_random(spreads[a], n_high[b], 10.0 + 20.0 * rand() / RAND_MAX);
            for (size_t c = 0; c < sizeof ps / sizeof ps[0]; ++c) {
                const size_t min_keep = min_keeps[rand() % 5];
                n_fast += same_if_fast(chain_of(llama_sampler_init_top_p(ps[c], 1), NULL, NULL));
                n_fast += same_if_fast(chain_of(llama_sampler_init_top_p(ps[c], min_keep), llama_sampler_init_temp(0.8f),
                                                llama_sampler_init_dist(3)));
                n_all += 2;
            }
        }
    }
    printf("top-p first: %d of %d fast\n", n_fast, n_all);
    CHECK(n_fast > n_all / 2 && n_fast < n_all);
    CHECK(longest > 256);
}

/* One token has all the probability that float sees: what is kept beyond it is still llama.cpp's to say. */
static void test_top_p_of_a_certain_token(void) {
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        logits[i * 7919 % N_VOCAB] = -20.0f - (float) i * 1e-3f;
    }
    logits[7] = 0.0f;
    for (size_t min_keep = 0; min_keep < 70; min_keep += 10) {
        same_if_fast(chain_of(llama_sampler_init_top_p(0.9f, min_keep), llama_sampler_init_temp(10.0f),
                              llama_sampler_init_dist(3)));
    }
    same_if_fast(chain_of(llama_sampler_init_top_p(0.99999994f, 1), NULL, NULL));
    expect_same(chain_of(llama_sampler_init_top_p(0.9f, 10), NULL, NULL));
}

static void test_chains_that_go_the_stock_way(void) {
    expect_slow(chain_of(NULL, NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_dist(1), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_temp(0.5f), llama_sampler_init_greedy(), NULL));
    expect_slow(chain_of(llama_sampler_init_typical(0.9f, 1), llama_sampler_init_dist(1), NULL));
    expect_slow(
        chain_of(llama_sampler_init_penalties(N_VOCAB, 64, 1.1f, 0.0f, 0.0f), llama_sampler_init_greedy(), NULL));
    expect_slow(chain_of(llama_sampler_init_greedy(), llama_sampler_init_dist(1), NULL));
    expect_slow(chain_of(llama_sampler_init_min_p(0.05f, 500), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_min_p(1e-6f, 1), NULL, NULL)); /* nearly all of it */
    expect_slow(chain_of(llama_sampler_init_top_k(N_VOCAB), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_top_k(REDGE_MAX_TOP_K + 1), NULL, NULL));
}

static void test_logits_that_go_the_stock_way(void) {
    fill();
    int32_t best = 0;
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        best = i != SAFETY && i != RESPOND && logits[i] > logits[best] ? i : best;
    }
    logits[best == 5 ? 6 : 5] = logits[best]; /* a tie among the k largest */
    expect_slow(chain_of(llama_sampler_init_top_k(40), NULL, NULL));
    expect_same_token(chain_of(llama_sampler_init_greedy(), NULL, NULL)); /* the lowest id: not ambiguous */
    fill();
    logits[100] = NAN;
    expect_slow(chain_of(llama_sampler_init_top_k(40), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_greedy(), NULL, NULL));
    fill();
    logits[100] = 1e9f;
    expect_slow(chain_of(llama_sampler_init_top_k(40), NULL, NULL));
    for (int32_t i = 0; i < N_VOCAB; ++i) {
        logits[i] = -INFINITY;
    }
    expect_slow(chain_of(llama_sampler_init_top_k(40), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_greedy(), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_top_p(0.9f, 1), NULL, NULL));
    expect_slow(chain_of(llama_sampler_init_min_p(0.05f, 1), NULL, NULL));
}

int main(void) {
    const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    CHECK(redge_bind(&api) == REDGE_OK);
    for (size_t i = 0; redge_isa_name(i) != NULL; ++i) {
        if (redge_isa_force(redge_isa_name(i)) == REDGE_OK) {
            fill();
            test_fast_chains();
            test_top_p();
            test_top_p_of_a_certain_token();
            fill();
            test_chains_that_go_the_stock_way();
            test_logits_that_go_the_stock_way();
        }
    }
    return REPORT();
}
