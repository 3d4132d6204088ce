/* Which kernels run: a table from plain to best, the last that this machine can run wins unless one is forced. */
#include "kernels.h"
#include "refusal_edge.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const redge_kernels * const table[] = {
    &redge_kernels_serial,
#ifdef REDGE_X86
    &redge_kernels_avx2,
    &redge_kernels_avx512,
#endif
#ifdef REDGE_NEON
    &redge_kernels_neon,
#endif
};

enum { N_TABLE = sizeof table / sizeof table[0] };

/* Stands for "REFUSAL_EDGE_ISA names something that cannot run", which must stay an error and not become serial. */
static const redge_kernels unusable = {.name = "unusable"};

static _Atomic(const redge_kernels *) active; /* NULL until first asked for; every thread would find the same */

static const redge_kernels * best(void) {
    const redge_kernels * kernels = table[0];
    for (size_t i = 1; i < N_TABLE; ++i) {
        if (table[i]->available()) {
            kernels = table[i];
        }
    }
    return kernels;
}

static const redge_kernels * find(const char * name) {
    for (size_t i = 0; i < N_TABLE; ++i) {
        if (strcmp(table[i]->name, name) == 0) {
            return table[i]->available() ? table[i] : NULL;
        }
    }
    return NULL;
}

static const redge_kernels * choose(void) {
    const char * name = getenv("REFUSAL_EDGE_ISA");
    if (name == NULL || name[0] == '\0') {
        return best();
    }
    const redge_kernels * kernels = find(name);
    return kernels != NULL ? kernels : &unusable;
}

static const redge_kernels * chosen(void) {
    const redge_kernels * kernels = atomic_load_explicit(&active, memory_order_relaxed);
    if (kernels == NULL) {
        kernels = choose();
        atomic_store_explicit(&active, kernels, memory_order_relaxed);
    }
    return kernels;
}

const redge_kernels * redge_kernels_active(void) {
    const redge_kernels * kernels = chosen();
    return kernels == &unusable ? NULL : kernels;
}

const char * redge_isa_name(size_t index) {
    return index < N_TABLE ? table[index]->name : NULL;
}

bool redge_isa_available(const char * name) {
    return name != NULL && find(name) != NULL;
}

const char * redge_isa_active(void) {
    return chosen()->name;
}

redge_status redge_isa_force(const char * name) {
    const redge_kernels * kernels = name == NULL ? best() : find(name);
    if (kernels == NULL) {
        return REDGE_ERR_ISA;
    }
    atomic_store_explicit(&active, kernels, memory_order_relaxed);
    return REDGE_OK;
}
