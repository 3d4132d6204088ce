/* Every operation of the backend graph, with its types, is one that llama.cpp's published table lists for Metal
 * (docs/ops/Metal.csv at the build this project is made for: rows with F32 or I32 operands, contiguous, support "yes").
 */
#include "check.h"

#include "llama.h"

#include "ggml-backend.h"
#include "ggml.h"

#include "sampler.h"

#include <string.h>

typedef struct entry {
    const char * op;
    enum ggml_type source;
    enum ggml_type result;
} entry;

static const entry on_metal[] = {
    {"ADD", GGML_TYPE_F32, GGML_TYPE_F32},      {"SUB", GGML_TYPE_F32, GGML_TYPE_F32},
    {"MUL", GGML_TYPE_F32, GGML_TYPE_F32},      {"SCALE", GGML_TYPE_F32, GGML_TYPE_F32},
    {"CLAMP", GGML_TYPE_F32, GGML_TYPE_F32},    {"STEP", GGML_TYPE_F32, GGML_TYPE_F32},
    {"SUM", GGML_TYPE_F32, GGML_TYPE_F32},      {"ARGMAX", GGML_TYPE_F32, GGML_TYPE_I32},
    {"SOFT_MAX", GGML_TYPE_F32, GGML_TYPE_F32}, {"GET_ROWS", GGML_TYPE_F32, GGML_TYPE_F32},
    {"SET_ROWS", GGML_TYPE_F32, GGML_TYPE_F32}, {"CPY", GGML_TYPE_F32, GGML_TYPE_F32},
    {"CPY", GGML_TYPE_I32, GGML_TYPE_F32},
};

/* Views of memory: nothing is computed. */
static bool is_view(const struct ggml_tensor * node) {
    return node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_NONE;
}

static bool is_on_metal(const struct ggml_tensor * node) {
    for (size_t i = 0; i < sizeof on_metal / sizeof on_metal[0]; ++i) {
        if (strcmp(on_metal[i].op, ggml_op_desc(node)) == 0 && on_metal[i].source == node->src[0]->type &&
            on_metal[i].result == node->type) {
            return ggml_is_contiguous(node->src[0]);
        }
    }
    return false;
}

int main(void) {
    const redge_host_api api = REDGE_HOST_API_FROM_LLAMA;
    CHECK(redge_bind(&api) == REDGE_OK && redge_host_has_graphs());
    const struct ggml_init_params params = {.mem_size = 1 << 20, .mem_buffer = NULL, .no_alloc = true};
    struct ggml_context * ctx = ggml_init(params);
    struct ggml_cgraph * nodes = ggml_new_graph(ctx);
    const redge_report report = {.tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, REDGE_OUT_ROWS * REDGE_ROW)};
    struct ggml_tensor * logits = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 128256);
    redge_graph graph;
    redge_graph_build(&graph, &report, ctx, 7, &logits);
    ggml_build_forward_expand(nodes, logits);
    CHECK(ggml_nelements(logits) == 128256);
    CHECK(ggml_graph_n_nodes(nodes) > 50);
    for (int i = 0; i < ggml_graph_n_nodes(nodes); ++i) {
        const struct ggml_tensor * node = ggml_graph_node(nodes, i);
        if (!is_view(node)) {
            CHECK(is_on_metal(node));
            if (!is_on_metal(node)) {
                printf("not on Metal: %s %s\n", ggml_op_desc(node), ggml_type_name(node->src[0]->type));
            }
        }
    }
    ggml_free(ctx);
    return REPORT();
}
