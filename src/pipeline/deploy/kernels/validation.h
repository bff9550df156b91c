/* Whether a program fits together, whoever wrote it: the one place where that is asked. */

static int in_range(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

static int same(shape a, shape b) { return !memcmp(&a, &b, sizeof a); }

static int possible(shape s) {
    return in_range(s.channels, 1, 1 << 24) && in_range(s.height, 0, 1 << 14) && in_range(s.width, 0, 1 << 14) &&
           in_range(s.pad, 0, 64) && !s.height == !s.width && laid_out(s).size < INT32_MAX;
}

/* Every tap of the kernel must be in a phase that is there, and reach no further than the zeros around a plane. */
static int reaches(const step *s, const layout *from) {
    int64_t pad = from->shape.pad;
    if (s->kernel_height * s->kernel_width == 1 && (s->pad % s->stride || s->left % s->stride)) return 0;
    int64_t down = (s->kernel_height - 1) * (s->spread + 1), right = (s->kernel_width - 1) * (s->spread + 1);
    return floored(-s->pad, s->stride) >= -pad && floored(down - s->pad, s->stride) <= pad &&
           floored(-s->pad - s->left, s->stride) >= -pad && floored(right - s->pad - s->left, s->stride) <= pad;
}

static int constant_or_none(const network *net, int64_t input, int64_t inputs) {
    return !input || in_range(input, net->given, inputs - 1);
}

static int fitting(const step *s, const network *net, int64_t inputs) {
    const layout *from = net->layouts + s->from;
    shape in = from->shape, out = net->layouts[s->to].shape;
    int64_t streams = s->coding == PLAIN ? 1 : s->coding == RICE ? 3 : 2, area = s->kernel_height * s->kernel_width;
    int64_t pad = s->pad + s->left;
    int64_t phases = area == 1 ? 1 : s->stride * s->stride, part = phases * s->groups;
    int weighted = s->kind == CONVOLUTION || s->kind == LINEAR;
    shape beside = s->residual ? net->layouts[s->residual - 1].shape : out;
    int places = s->kind == ADD || s->kind == MULTIPLY, one_each = out.height && beside.height * beside.width <= 1;
    if (s->kind != CONCAT && !same(beside, out) && !(places && one_each && beside.channels == out.channels)) return 0;
    if (s->ceiling && !s->relu) return 0;
    if (weighted && out.channels * (in.channels / part) >= INT32_MAX / area) return 0;
    if (weighted && (s->weights < net->given || s->weights + streams > inputs || !constant_or_none(net, s->scale, inputs) ||
                     !constant_or_none(net, s->bias, inputs) || !constant_or_none(net, s->bias_scale, inputs)))
        return 0;
    switch (s->kind) {
        case SPLIT:
            return in.height && out.height == (in.height + s->stride - 1) / s->stride &&
                   out.width == (in.width + s->stride - 1) / s->stride &&
                   (out.channels == in.channels || out.channels == in.channels * s->stride * s->stride);
        case CONVOLUTION:
            return in.height && in.height == out.height && in.width == out.width && in.pad == out.pad &&
                   in.channels % part == 0 && out.channels % s->groups == 0 && reaches(s, from);
        case LINEAR: return !in.height && !out.height && area == 1 && s->stride == 1 && !s->pad && !s->left && s->groups == 1;
        case ADD:
        case FUNCTION: return same(in, out);
        case MULTIPLY: return same(in, out) && s->residual;
        case AFFINE:
            return same(in, out) && (!s->weights || constant_or_none(net, s->weights, inputs)) &&
                   constant_or_none(net, s->scale, inputs) && constant_or_none(net, s->bias, inputs) &&
                   constant_or_none(net, s->bias_scale, inputs);
        case CONCAT:
            return s->residual && out.channels == in.channels + beside.channels && in.height == out.height &&
                   in.width == out.width && in.pad == out.pad && beside.height == out.height && beside.width == out.width &&
                   beside.pad == out.pad;
        case RESIZE:
            return in.height && in.channels == out.channels && out.height && out.height <= in.height * s->stride &&
                   out.width <= in.width * s->stride;
        case MAX_POOL:
        case AVERAGE_POOL:
            return in.height && in.channels == out.channels && s->pad < s->kernel_height && pad < s->kernel_width &&
                   in.height + 2 * s->pad >= s->kernel_height && in.width + 2 * pad >= s->kernel_width &&
                   out.height == (in.height + 2 * s->pad - s->kernel_height) / s->stride + 1 &&
                   out.width == (in.width + 2 * pad - s->kernel_width) / s->stride + 1;
        case MEAN: return in.height && !out.height && in.channels == out.channels;
        case FLATTEN:
            return !in.height == !!out.height && elements(out) == elements(in) && (in.height || out.channels == in.channels);
    }
    return 0;
}

/* Whether all that the program says fits together, whoever wrote the file: nothing behind this checks again. */
static int fits(const network *net, int64_t inputs) {
    for (int64_t i = 0; i < net->activation_count; i++)
        if (!possible(net->layouts[i].shape)) return 0;
    for (int64_t i = 0; i < net->step_count; i++) {
        const step *s = net->steps + i;
        if (!in_range(s->from, 0, net->activation_count - 1) || !in_range(s->to, 0, net->activation_count - 1) ||
            !in_range(s->residual, 0, net->activation_count) || !in_range(s->kernel_height, 1, 64) ||
            !in_range(s->kernel_width, 1, 64) || !in_range(s->left, -64, 64) || !in_range(s->pad + s->left, 0, 64) ||
            !in_range(s->spread, 0, 63) || !in_range(s->function, NONE, GELU) || !in_range(s->stride, 1, 64) || !in_range(s->pad, 0, 64) ||
            !in_range(s->groups, 1, 1 << 24) || !in_range(s->coding, PLAIN, RICE) || !in_range(s->low_bits, 0, 30) ||
            !in_range(s->weights, 0, inputs > net->asked ? inputs - 1 : net->asked - 1))
            return 0;
        int64_t last = i - (net->step_count - net->asked);
        if (i < net->given ? s->kind != INPUT || s->weights != i
            : last >= 0    ? s->kind != OUTPUT || s->weights != last ||
                               (s->kernel_height == 3 && net->layouts[s->from].shape.height != 1)
                           : !fitting(s, net, inputs))
            return 0;
    }
    return 1;
}

/* Reads a record: which of its fields are not 0, a bit each, and then those. Returns where the next one is; null at the end. */
static const int64_t *told(const int64_t *at, const int64_t *end, void *record, int fields) {
    if (!at || at >= end) return NULL;
    for (int64_t i = 0, present = *at++; i < fields; i++) {
        if (!(present >> i & 1)) continue;
        if (at >= end) return NULL;
        memcpy((int64_t *)record + i, at++, sizeof *at);
    }
    return at;
}
