// D2DET_CLONES before a hot function compiles it for x86-64-v4 (AVX-512), v3 (AVX2) and the plain
// architecture, chosen by the processor at load time; everything it calls is inlined into each.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define D2DET_CLONES \
  __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define D2DET_CLONES
#endif
