/* Whether a program fits together, whoever wrote it: the one place where that is asked. */

static int in_range(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

static int same(shape a, shape b) { return !memcmp(&a, &b, sizeof a); }

static int possible(shape s) {
    return in_range(s.channels, 1, 1 << 24) && in_range(s.height, 0, 1 << 24) && in_range(s.width, 0, 1 << 24) &&
           in_range(s.pad, 0, LARGEST) && !s.height == !s.width && s.height * (s.width + s.pad) < INT32_MAX &&
           laid_out(s).size < INT32_MAX;
}

/* Every tap of the kernel must be in a phase that is there, and reach no further than the zeros around a plane. */
static int reaches(const step *given, const layout *from) {
    step own = plain(given), *s = &own;
    int64_t pad = from->shape.pad;
    if (s->kernel_height < 1 || s->kernel_width < 1) return 0;
    if (s->kernel_height * s->kernel_width == 1 && (s->pad % s->stride || (s->pad + s->left) % across(s))) return 0;
    int64_t down = (s->kernel_height - 1) * (s->spread + 1), right = (s->kernel_width - 1) * (s->spread + 1);
    return floored(-s->pad, s->stride) >= -pad && floored(down - s->pad, s->stride) <= pad &&
           floored(-s->pad - s->left, across(s)) >= -pad && floored(right - s->pad - s->left, across(s)) <= pad;
}

/* The loops of a move stay inside of both. */
static int inside(const step *s, shape in, shape out) {
    int64_t read[] = {s->channel, s->row, s->column}, written[] = {0, 0, 0};
    int64_t there[] = {in.channels, in.height ? in.height : 1, in.height ? in.width : 1};
    int64_t here[] = {out.channels, out.height ? out.height : 1, out.height ? out.width : 1};
    for (int i = 0; i < 3; i++)
        if (!in_range(read[i], 0, 1 << 24)) return 0;
    if (!s->loops[0].count) return 0;
    for (const loop *l = s->loops; l < s->loops + LOOPS && l->count; l++) {
        if (!in_range(l->count, 1, 1 << 28) || !in_range(l->from, 0, 1 << 28) || !in_range(l->to, 0, 1 << 28)) return 0;
        read[l->from % 3] += (l->count - 1) * (l->from / 3), written[l->to % 3] += (l->count - 1) * (l->to / 3);
    }
    for (int i = 0; i < 3; i++)
        if (read[i] >= there[i] || written[i] >= here[i]) return 0;
    return 1;
}

static int constant_or_none(const network *net, int64_t input, int64_t inputs) {
    return !input || in_range(input, net->given, inputs - 1);
}

/* What pixels become, of planes that come in. */
static int from_pixels(const step *s, const network *net, int64_t inputs) {
    if (!in_range(s->pixels, ONE_BY_ONE, BY_IMAGE) || !net->layouts[s->to].shape.height) return 0;
    if (s->pixels == BY_IMAGE) return s->scale && constant_or_none(net, s->scale, inputs);
    for (const loop *l = s->loops; l < s->loops + LOOPS && l->count; l++)
        if (!in_range(l->count, PLUS, OVER) || !in_range(l->from, net->given, inputs - 1)) return 0;
    return 1;
}

static int fitting(const step *s, const network *net, int64_t inputs) {
    const layout *from = net->layouts + s->from;
    shape in = from->shape, out = net->layouts[s->to].shape;
    int64_t streams = s->coding == PLAIN ? 1 : s->coding == RICE ? 3 : 2, area = s->kernel_height * s->kernel_width;
    int64_t pad = s->pad + s->left;
    int64_t places = s->stride * across(s), phases = area == 1 || s->transposed ? 1 : places, part = phases * s->groups;
    int weighted = s->kind == CONVOLUTION || s->kind == LINEAR;
    shape beside = s->residual ? net->layouts[s->residual - 1].shape : out;
    int joins = s->kind == ADD || s->kind == MULTIPLY || s->kind == SUBTRACT, one_each = out.height && beside.height * beside.width <= 1;
    if (s->kind != CONCAT && !same(beside, out) && !(joins && one_each && beside.channels == out.channels)) return 0;
    if (s->ceiling && !s->relu) return 0;
    if (weighted && out.channels * (in.channels / part) >= INT32_MAX / area) return 0;
    if (weighted && (s->weights < net->given || s->weights + streams > inputs || !constant_or_none(net, s->scale, inputs) ||
                     !constant_or_none(net, s->bias, inputs)))
        return 0;
    switch (s->kind) {
        case SPLIT:
            return in.height && out.height == (in.height + s->stride - 1) / s->stride &&
                   out.width == (in.width + across(s) - 1) / across(s) &&
                   (out.channels == in.channels || out.channels == in.channels * places);
        case CONVOLUTION:
            return in.height && in.height == out.height && in.width == out.width && in.pad == out.pad &&
                   in.channels % part == 0 && out.channels % (s->groups * (s->transposed ? places : 1)) == 0 &&
                   !(s->transposed && s->spread) && reaches(s, from);
        case LINEAR: return !in.height && !out.height && area == 1 && s->stride == 1 && !s->pad && !s->left && s->groups == 1;
        case ADD:
        case FUNCTION: return same(in, out);
        case SUBTRACT:
        case MULTIPLY: return same(in, out) && s->residual;
        case AFFINE:
            return same(in, out) && (!s->weights || constant_or_none(net, s->weights, inputs)) &&
                   constant_or_none(net, s->scale, inputs) && constant_or_none(net, s->bias, inputs) &&
                   constant_or_none(net, s->variance, inputs);
        case CONCAT:
            return s->residual && out.channels == in.channels + beside.channels && in.height == out.height &&
                   in.width == out.width && in.pad == out.pad && beside.height == out.height && beside.width == out.width &&
                   beside.pad == out.pad;
        case RESIZE:
            return in.height && in.channels == out.channels && out.height;
        case MAX_POOL:
        case AVERAGE_POOL:
            return in.height && in.channels == out.channels && s->pad < s->kernel_height && pad < s->kernel_width &&
                   in.height + 2 * s->pad >= s->kernel_height && in.width + 2 * pad >= s->kernel_width &&
                   in_range(out.height, 1, (in.height + s->pad - 1) / s->stride + 1) &&
                   in_range(out.width, 1, (in.width + pad - 1) / across(s) + 1);
        case MEAN: return in.height && !out.height && in.channels == out.channels;
        case MOVE: return inside(s, in, out);
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
            !in_range(s->residual, 0, net->activation_count) || !in_range(s->kernel_height, 1, LARGEST) ||
            !in_range(s->kernel_width, 1, LARGEST) || !in_range(s->left, -LARGEST, LARGEST) ||
            !in_range(s->pad + s->left, 0, LARGEST) || !in_range(s->spread, 0, LARGEST) ||
            !in_range(s->function, NONE, GELU) || !in_range(s->mode, HALF_PIXEL, NEAREST) ||
            !in_range(s->stride, 1, LARGEST) || !in_range(across(s), 1, LARGEST) || !in_range(s->pad, 0, LARGEST) ||
            !in_range(s->transposed, 0, 1) || !in_range(s->groups, 1, 1 << 24) || !in_range(s->coding, PLAIN, RICE) ||
            !in_range(s->low_bits, 0, 30) || !in_range(s->more, 0, LARGEST) || !in_range(s->weights, 0, inputs > net->asked ? inputs - 1 : net->asked - 1))
            return 0;
        int64_t last = i - (net->step_count - net->asked);
        if (s->pixels && (s->kind != INPUT || !from_pixels(s, net, inputs))) return 0;
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
