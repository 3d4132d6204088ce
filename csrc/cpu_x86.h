/* What this x86-64 processor can run, and whether the operating system saves the registers for it. */
#ifndef REDGE_CPU_X86_H
#define REDGE_CPU_X86_H

#include <stdbool.h>

bool redge_cpu_has_avx2(void);   /* AVX2 and FMA */
bool redge_cpu_has_avx512(void); /* AVX-512 F and DQ */

#endif
