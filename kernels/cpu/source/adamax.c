/* Adamax (Kingma & Ba 2015, algorithm 2) in one pass over memory; the reference is `torch.optim.Adamax`. */

#include <stdint.h>

/* A parameter of `count` floats: value, gradient, averaged gradient and largest gradient (exp_avg and exp_inf in
 * PyTorch), and the step size with its bias correction. */
typedef struct {
    float *value;
    const float *gradient;
    float *average, *largest;
    int64_t count;
    double rate;
} Parameter;

/* One step on all parameters, with weight decay as an L2 term. */
void vaebench_adamax(const Parameter *parameters, int64_t count, float beta_1, float beta_2, float epsilon, float decay,
                     int32_t threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int64_t at = 0; at < count; at++) {
        Parameter p = parameters[at];
        float rate = (float)p.rate;
        for (int64_t i = 0; i < p.count; i++) {
            float gradient = p.gradient[i] + decay * p.value[i];
            float kept = beta_2 * p.largest[i], size = (gradient < 0.0f ? -gradient : gradient) + epsilon;
            p.average[i] += (1.0f - beta_1) * (gradient - p.average[i]);
            p.largest[i] = kept > size ? kept : size;
            p.value[i] -= rate * (p.average[i] / p.largest[i]);
        }
    }
}
