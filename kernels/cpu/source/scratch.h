/* Scratch memory that stays between calls, so that it stays in the cache and costs no page faults. */

#ifndef VAEBENCH_SCRATCH_H
#define VAEBENCH_SCRATCH_H

#include <stdint.h>

enum {
    PACKED,          /* a layer's weights in the order in which they are read */
    START,           /* the row that a convolution's sums start from: a bias or zeros */
    MAP,             /* padded inputs of a few images */
    PATCHES,         /* patches of a few output pixels, side by side */
    SPREAD,          /* gradients of a few images' outputs, spread by the stride */
    INPUT_GRADIENT,  /* of the activated inputs of a few images */
    SLOPES,          /* of the activation at the inputs of a few images */
    WEIGHT_GRADIENT, /* one thread's part of it */
    SUMS,            /* over pixels, per channel */
    LATENT_MAPS,     /* of one image: noise, terms of its KL */
    COMPONENTS,      /* of a mixture, for a few pixels */
    PLANES,          /* parameters of a few pixels, one by one */
    IMAGE_STATISTICS, /* of a layer's output */
    CELL_END,        /* of a cell's way back: sums and gradients of gate and last norm */
    CELL_SUMS,       /* of a cell's way back: sums of a norm, and the linear form that is its gradient */
    USES,
    CELL_MAPS = SPREAD, /* a cell without gradients: maps between its layers, ... */
    CELL_GATE = SUMS,   /* ... the gate's activations, ... */
    CELL_NORM = START   /* ... and, with gradients or without, last norm and gate as scale and shift */
};

/* Memory of the calling thread for one use, aligned to 64 bytes; valid until the same use asks for more. */
float *scratch(int use, int64_t floats);

#endif
