/* The rule as a ggml graph. Only operations that Metal, CUDA, Vulkan and the CPU all have; no infinity anywhere, since
 * 0 * Inf is NaN; no trust in which of several equal values argmax returns, only in the value. */
#include "backend.h"

#define HUGE_LOGIT 1e20f    /* control logits are clamped to +- this */
#define MASKED     (-1e30f) /* what a masked token's logit becomes */

enum { MAX_NODES = 256 };

typedef struct ggml_tensor tensor;

/* The graph under construction, so that a line of it reads as a formula. */
typedef struct builder {
    struct ggml_context * ctx;
    tensor * params;
    tensor * report;
    int32_t n;
} builder;

/* Intermediate results that several formulas need. */
typedef struct results {
    tensor * control_logits;
    tensor * control_probs;
    tensor * good;
    tensor * enough;
    tensor * choice;
    tensor * forced;
} results;

static tensor * add(const builder * b, tensor * x, tensor * y) {
    return redge_host.ggml_add(b->ctx, x, y);
}

static tensor * sub(const builder * b, tensor * x, tensor * y) {
    return redge_host.ggml_sub(b->ctx, x, y);
}

static tensor * mul(const builder * b, tensor * x, tensor * y) {
    return redge_host.ggml_mul(b->ctx, x, y);
}

static tensor * affine(const builder * b, tensor * x, float scale, float bias) {
    return redge_host.ggml_scale_bias(b->ctx, x, scale, bias);
}

static tensor * step(const builder * b, tensor * x) {
    return redge_host.ggml_step(b->ctx, x);
}

static tensor * invert(const builder * b, tensor * x) { /* 1 - x */
    return affine(b, x, -1.0f, 1.0f);
}

/* Clamping works in place, so it is given a copy. */
static tensor * clamp(const builder * b, tensor * x, float limit) {
    return redge_host.ggml_clamp(b->ctx, affine(b, x, 1.0f, 0.0f), -limit, limit);
}

static tensor * pick(const builder * b, tensor * x, int64_t n, tensor * indices, int64_t n_indices) {
    tensor * rows = redge_host.ggml_reshape_2d(b->ctx, x, 1, n);
    return redge_host.ggml_reshape_1d(b->ctx, redge_host.ggml_get_rows(b->ctx, rows, indices), n_indices);
}

static tensor * largest(const builder * b, tensor * x) {
    return pick(b, x, b->n, redge_host.ggml_argmax(b->ctx, x), 1);
}

/* 1 where x is the largest, also for several. */
static tensor * is_largest(const builder * b, tensor * x) {
    return invert(b, step(b, affine(b, sub(b, x, largest(b, x)), -1.0f, 0.0f)));
}

/* 1 at the one largest; its neighbours differ by at least 1. */
static tensor * one_hot(const builder * b, tensor * ranks) {
    return step(b, affine(b, sub(b, ranks, largest(b, ranks)), 1.0f, 0.5f));
}

static tensor * input_row(const builder * b, int row) {
    return redge_host.ggml_view_1d(b->ctx, b->params, b->n, (size_t) row * REDGE_ROW * sizeof(float));
}

static tensor * input_scalar(const builder * b, int scalar) {
    return redge_host.ggml_view_1d(b->ctx, b->params, 1,
                                   (size_t) (REDGE_IN_SCALARS * REDGE_ROW + scalar) * sizeof(float));
}

/* Writes x to a place in the report, and is x from there: whoever uses it makes the backend write it. */
static tensor * save(const builder * b, tensor * x, int64_t n, int place) {
    tensor * there = redge_host.ggml_view_1d(b->ctx, b->report, n, (size_t) place * sizeof(float));
    return redge_host.ggml_cpy(b->ctx, x, there);
}

static tensor * save_row(const builder * b, tensor * x, int row) {
    return save(b, x, b->n, row * REDGE_ROW);
}

static tensor * save_scalar(const builder * b, tensor * x, int scalar) {
    return save(b, x, 1, REDGE_OUT_SCALARS * REDGE_ROW + scalar);
}

static tensor * scores(const builder * b, const results * r) {
    tensor * z = mul(b, r->control_logits, input_scalar(b, REDGE_SCALAR_INV_TEMPERATURE));
    tensor * on_control = redge_host.ggml_soft_max(b->ctx, z);
    tensor * difference = sub(b, r->control_probs, on_control);
    return add(b, on_control, mul(b, difference, input_scalar(b, REDGE_SCALAR_VOCAB)));
}

/* 1 for each category that asks for a refusal. */
static tensor * passing(const builder * b, const results * r) {
    tensor * q = scores(b, r);
    tensor * rank = input_row(b, REDGE_IN_RANK);
    tensor * summed = input_row(b, REDGE_IN_SUMMED);
    tensor * by_threshold = step(b, sub(b, q, input_row(b, REDGE_IN_BELOW)));
    tensor * models_choice = one_hot(b, mul(b, is_largest(b, r->control_logits), rank));
    tensor * by_model = mul(b, models_choice, input_row(b, REDGE_IN_MODEL));
    tensor * sum = redge_host.ggml_sum(b->ctx, mul(b, q, summed));
    tensor * by_sum = mul(b, summed, step(b, sub(b, sum, input_scalar(b, REDGE_SCALAR_BELOW_SUM))));
    tensor * passes = add(b, add(b, by_threshold, by_model), by_sum);
    tensor * on_low = input_row(b, REDGE_IN_ON_LOW);
    return add(b, on_low, mul(b, sub(b, passes, on_low), r->enough));
}

/* Those that pass keep their logit, respond comes next, the others are last; ties go to the earlier. */
static tensor * choose(const builder * b, const results * r) {
    tensor * passes = passing(b, r);
    tensor * kept = add(b, mul(b, r->control_logits, passes), affine(b, passes, -MASKED, MASKED));
    tensor * order = add(b, kept, input_row(b, REDGE_IN_LIFT));
    tensor * ranks = mul(b, is_largest(b, order), input_row(b, REDGE_IN_RANK));
    tensor * on_error = mul(b, input_row(b, REDGE_IN_ON_ERROR), invert(b, r->good));
    return one_hot(b, add(b, ranks, on_error));
}

/* 1 when the chosen token is to be the only one: when deciding, unless the mass is low and the fallback is the model.
 * Logits that cannot be decided on always force. */
static tensor * force(const builder * b, const results * r) {
    tensor * low = mul(b, invert(b, r->enough), r->good);
    tensor * is_free = mul(b, low, input_scalar(b, REDGE_SCALAR_FREE_ON_LOW));
    return mul(b, invert(b, is_free), input_scalar(b, REDGE_SCALAR_DECIDE));
}

/* x, once y is computed. step keeps NaN out. */
static tensor * after(const builder * b, tensor * x, tensor * y) {
    return add(b, x, affine(b, step(b, y), 0.0f, 0.0f));
}

/* The model's own choice is only reported. Of logits without NaN and -Inf there is one on every device. */
static tensor * after_model_report(const builder * b, tensor * x, tensor * finite, tensor * p, int64_t n_vocab) {
    tensor * token = redge_host.ggml_argmax(b->ctx, finite);
    x = after(b, x, save_scalar(b, pick(b, finite, n_vocab, token, 1), REDGE_SCALAR_MODEL_LOGIT));
    x = after(b, x, save_scalar(b, pick(b, p, n_vocab, token, 1), REDGE_SCALAR_MODEL_PROB));
    return after(b, x, save_scalar(b, token, REDGE_SCALAR_MODEL_TOKEN));
}

static tensor * leave(const builder * b, const results * r, tensor * ids, tensor * finite, int64_t n_vocab) {
    tensor * others = add(b, mul(b, finite, invert(b, r->forced)), affine(b, r->forced, MASKED, 0.0f));
    tensor * controls = affine(b, mul(b, r->choice, r->forced), -MASKED, MASKED);
    tensor * rows = redge_host.ggml_reshape_2d(b->ctx, others, 1, n_vocab);
    tensor * values = redge_host.ggml_reshape_2d(b->ctx, controls, 1, b->n);
    return redge_host.ggml_reshape_1d(b->ctx, redge_host.ggml_set_rows(b->ctx, rows, values, ids), n_vocab);
}

static tensor * input(struct ggml_context * ctx, enum ggml_type type, int64_t n, const char * name) {
    tensor * t = redge_host.ggml_new_tensor_1d(ctx, type, n);
    redge_host.ggml_set_input(t);
    return redge_host.ggml_set_name(t, name);
}

void redge_graph_build(redge_graph * g, const redge_report * report, struct ggml_context * ctx, int32_t n_control,
                       struct ggml_tensor ** logits) {
    const int64_t n_vocab = redge_host.ggml_nelements(*logits);
    g->ids = input(ctx, GGML_TYPE_I32, n_control, "redge_ids");
    g->params = input(ctx, GGML_TYPE_F32, REDGE_IN_ROWS * REDGE_ROW, "redge_params");
    const builder ground = {.ctx = ctx, .params = g->params, .report = report->tensor, .n = n_control};
    const builder * b = &ground;
    results found;
    results * r = &found;

    tensor * z = redge_host.ggml_reshape_1d(ctx, *logits, n_vocab);
    tensor * p = redge_host.ggml_soft_max(ctx, mul(b, z, input_scalar(b, REDGE_SCALAR_INV_TEMPERATURE)));
    tensor * control_logits = clamp(b, pick(b, z, n_vocab, g->ids, n_control), HUGE_LOGIT);
    r->control_logits = save_row(b, control_logits, REDGE_OUT_LOGITS);
    r->control_probs = save_row(b, pick(b, p, n_vocab, g->ids, n_control), REDGE_OUT_PROBS);

    /* NaN or +Inf anywhere makes the softmax, and so the mass, NaN, which is not greater than anything. */
    tensor * mass = redge_host.ggml_sum(ctx, r->control_probs);
    tensor * any_control = step(b, affine(b, largest(b, r->control_logits), 1.0f, HUGE_LOGIT / 2));
    tensor * good = mul(b, step(b, affine(b, mass, 1.0f, 1.0f)), any_control);
    tensor * enough = step(b, sub(b, mass, input_scalar(b, REDGE_SCALAR_BELOW_MASS)));
    r->good = save_scalar(b, good, REDGE_SCALAR_GOOD);
    r->enough = save_scalar(b, enough, REDGE_SCALAR_ENOUGH);
    r->choice = save_row(b, choose(b, r), REDGE_OUT_CHOICE);
    tensor * finite = clamp(b, z, -MASKED);
    tensor * forced = after_model_report(b, force(b, r), finite, p, n_vocab);
    r->forced = save_scalar(b, forced, REDGE_SCALAR_FORCED);
    *logits = redge_host.ggml_set_name(leave(b, r, g->ids, finite, n_vocab), "redge_logits");
}

static struct ggml_context * new_context(size_t size) {
    return redge_host.ggml_init((struct ggml_init_params){.mem_size = size, .mem_buffer = NULL, .no_alloc = true});
}

bool redge_report_init(redge_report * report, struct ggml_backend_buffer_type * buft) {
    report->ctx = new_context(redge_host.ggml_tensor_overhead());
    if (report->ctx == NULL) {
        return false;
    }
    report->tensor = redge_host.ggml_new_tensor_1d(report->ctx, GGML_TYPE_F32, REDGE_OUT_ROWS * REDGE_ROW);
    report->buffer = redge_host.ggml_backend_alloc_ctx_tensors_from_buft(report->ctx, buft);
    return report->buffer != NULL;
}

void redge_report_free(redge_report * report) {
    if (report->buffer != NULL) {
        redge_host.ggml_backend_buffer_free(report->buffer);
    }
    if (report->ctx != NULL) {
        redge_host.ggml_free(report->ctx);
    }
    *report = (redge_report){0};
}

bool redge_graph_is_supported(struct ggml_backend_device * device, const redge_report * report, int32_t n_vocab,
                              int32_t n_control) {
    if (device == NULL) {
        return true;
    }
    const size_t size =
        MAX_NODES * redge_host.ggml_tensor_overhead() + redge_host.ggml_graph_overhead_custom(MAX_NODES, false);
    struct ggml_context * ctx = new_context(size);
    if (ctx == NULL) {
        return false;
    }
    struct ggml_cgraph * nodes = redge_host.ggml_new_graph_custom(ctx, MAX_NODES, false);
    redge_graph graph;
    tensor * logits = redge_host.ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_vocab);
    redge_graph_build(&graph, report, ctx, n_control, &logits);
    redge_host.ggml_build_forward_expand(nodes, logits);
    bool supported = true;
    for (int i = 0; i < redge_host.ggml_graph_n_nodes(nodes); ++i) {
        supported &= redge_host.ggml_backend_dev_supports_op(device, redge_host.ggml_graph_node(nodes, i));
    }
    redge_host.ggml_free(ctx);
    return supported;
}
