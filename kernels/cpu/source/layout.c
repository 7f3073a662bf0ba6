/* Sizes and places of padded maps and packed weights. */

#include "layout.h"

#include "vector.h"

/* Padding keeps the resolution at stride 1. */
static int64_t padding(const Layer *layer) { return (int64_t)layer->dilation * (layer->kernel - 1) / 2; }

Geometry forward_geometry(const Layer *layer)
{
    int64_t around = 2 * padding(layer), pixel = layer->depthwise ? WIDE : layer->c_in;
    return (Geometry){layer->height * layer->repeat + around, layer->width * layer->repeat + around, layer->c_in, pixel,
                      layer->out_height, layer->out_width, layer->kernel, layer->stride, layer->dilation};
}

Geometry backward_geometry(const Layer *layer)
{
    int64_t around = 2 * padding(layer), height = layer->height * layer->repeat, width = layer->width * layer->repeat;
    int64_t pixel = layer->depthwise ? WIDE : round_up(layer->c_out, panel_width(layer->c_out));
    return (Geometry){height + around, width + around, layer->c_out, pixel,
                      height, width, layer->kernel, 1, layer->dilation};
}

int64_t map_size(const Geometry *g) { return g->height * g->width * round_up(g->channels, g->pixel); }

int64_t first_inside(const Layer *layer, const Geometry *g) { return padding(layer) * (g->width + 1) * g->pixel; }

int64_t vector_step(const Layer *layer, const Geometry *g)
{
    return layer->depthwise ? g->height * g->width * WIDE : WIDE;
}

/* The width that pads the channels least; wider panels use the registers better, hence the weights 16, 17 and 20. */
int64_t panel_width(int64_t channels)
{
    int64_t three = round_up(channels, 3 * WIDE) * 16, two = round_up(channels, 2 * WIDE) * 17;
    int64_t one = round_up(channels, WIDE) * 20;
    return (three <= two && three <= one ? 3 : two <= one ? 2 : 1) * WIDE;
}

int64_t packed_size(const Layer *layer)
{
    if (layer->depthwise) return round_up(layer->c_in, WIDE) * taps_of(layer);
    int64_t forward = round_up(layer->c_out, panel_width(layer->c_out)) * layer->c_in;
    int64_t backward = round_up(layer->c_in, panel_width(layer->c_in)) * layer->c_out;
    return taps_of(layer) * (forward > backward ? forward : backward);
}
