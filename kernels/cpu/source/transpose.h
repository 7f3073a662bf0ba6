/* Rows and columns of one image change places; see transpose.c. */

#ifndef VAEBENCH_TRANSPOSE_H
#define VAEBENCH_TRANSPOSE_H

#include <stdint.h>

/* out (columns, rows) from x (rows, columns), whose rows lie `out_step` and `step` floats apart. */
void transpose(const float *x, int64_t step, int64_t rows, int64_t columns, float *out, int64_t out_step);

#endif
