/* The llama.cpp that the host bound us to. */
#ifndef REDGE_HOST_H
#define REDGE_HOST_H

#include "llama_abi.h"

/* Valid only after redge_bind succeeded, which every maker of a sampler checks. */
extern redge_host_api redge_host;

/* Whether the table has all that a graph of ours needs. */
bool redge_host_has_graphs(void);

/* llama.cpp's own samplers that the fast front knows, told apart by the address of their interface: a name could be
 * anybody's. */
typedef enum redge_kind {
    REDGE_KIND_OTHER = 0,
    REDGE_KIND_EMPTY, /* switched off: top-k with k <= 0, temperature 1, ... */
    REDGE_KIND_GREEDY,
    REDGE_KIND_TOP_K,
    REDGE_KIND_TOP_P,
    REDGE_KIND_MIN_P,
    REDGE_N_KINDS
} redge_kind;

redge_kind redge_host_kind(const struct llama_sampler * smpl);

#endif
