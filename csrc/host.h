/* The llama.cpp that the host bound us to. */
#ifndef REDGE_HOST_H
#define REDGE_HOST_H

#include "llama_abi.h"

/* Valid only after redge_bind succeeded, which every maker of a sampler checks. */
extern redge_host_api redge_host;

#endif
