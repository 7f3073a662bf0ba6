/* Adamax (Kingma & Ba 2015, algorithm 2) in one pass over memory; the reference is `torch.optim.Adamax`. */

#include <math.h>
#include <stdint.h>

/* A parameter of `count` floats: value, gradient, averaged gradient, largest gradient and number of steps taken
 * (exp_avg, exp_inf and step in PyTorch). */
typedef struct {
    float *value;
    const float *gradient;
    float *average, *largest, *steps;
    int64_t count;
} Parameter;

/* One step on all parameters, with weight decay as an L2 term. */
void vaebench_adamax(const Parameter *parameters, int64_t count, double learning_rate, double beta_1, float beta_2,
                     float epsilon, float decay, int32_t threads)
{
    float share = 1.0f - (float)beta_1;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
    for (int64_t at = 0; at < count; at++) {
        Parameter p = parameters[at];
        float rate = (float)(learning_rate / (1.0 - pow(beta_1, *p.steps += 1.0f)));
        for (int64_t i = 0; i < p.count; i++) {
            float gradient = p.gradient[i] + decay * p.value[i];
            float kept = beta_2 * p.largest[i], size = (gradient < 0.0f ? -gradient : gradient) + epsilon;
            p.average[i] += share * (gradient - p.average[i]);
            p.largest[i] = kept > size ? kept : size;
            p.value[i] -= rate * (p.average[i] / p.largest[i]);
        }
    }
}
