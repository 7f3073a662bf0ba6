/* Scratch memory: one piece per thread and use, which grows and is never given back. */

#include "scratch.h"

#include <stdlib.h>

float *scratch(int use, int64_t floats)
{
    static __thread float *piece[USES];
    static __thread int64_t size[USES];
    if (size[use] < floats) {
        free(piece[use]);
        size[use] = (floats + floats / 16 + 15) / 16 * 16;
        if (posix_memalign((void **)&piece[use], 64, (size_t)size[use] * sizeof(float))) abort();
    }
    return piece[use];
}
