/* Weights: from the model's codings to lists of taps */

typedef struct {
    const void *data;
    int64_t count;
    int type;
} constant;

static int bit(const void *stream, int64_t place) { return ((const uint8_t *)stream)[place >> 3] >> (place & 7) & 1; }

static float value_at(const step *s, const constant *values, int64_t i) {
    return s->is_int8 ? (float)((const int8_t *)values->data)[i] : ((const float *)values->data)[i];
}

/* Writes the values at the place `at` of a coding, number `i`: one, or those of a block, whose filters are `behind` apart. */
static void set_at(const step *s, const constant *values, int64_t i, int64_t at, int64_t behind, float *dense) {
    int64_t length = s->more + 1, first = length == 1 ? at : at / behind * length * behind + at % behind;
    for (int64_t j = 0; j < length; j++) dense[first + j * behind] = value_at(s, values, i * length + j);
}

/* Writes the dense tensor, (filters, behind) from some axis on; 0 if a stream does not fit to it. */
static int decoded(const step *s, const constant *inputs, float *dense, int64_t size, int64_t behind) {
    const constant *values = inputs + s->weights, *stream = values + 1, *low = values + 2;
    int64_t length = s->more + 1, count = values->count / length;
    if (values->count % length || size % (length * behind)) return 0;
    if (values->type != (s->is_int8 ? INT8 : FLOAT)) return 0;
    if ((s->coding != PLAIN && stream->type != UINT8) || (s->coding == RICE && low->type != UINT8)) return 0;
    memset(dense, 0, sizeof(float) * size);
    if (s->coding == PLAIN) {
        if (values->count != size) return 0;
        for (int64_t i = 0; i < size; i++) dense[i] = value_at(s, values, i);
        return 1;
    }
    size /= length;
    if (s->coding == MASK) {
        if (stream->count * 8 < size) return 0;
        int64_t next = 1; /* the first value is the zero of all pruned weights */
        for (int64_t i = 0; i < size; i++) {
            if (!bit(stream->data, i)) continue;
            if (next >= count) return 0;
            set_at(s, values, next++, i, behind, dense);
        }
        return next == count;
    }
    for (int64_t i = 0, at = -1, high = 0; i < count; i++) {
        int64_t gap = 0;
        if (s->coding == GAPS) {
            if (i >= stream->count) return 0;
            gap = ((const uint8_t *)stream->data)[i];
        } else {
            for (; high < stream->count * 8 && !bit(stream->data, high); high++)
                if ((gap += 1LL << s->low_bits) > size) return 0;
            if (++high > stream->count * 8 || (i + 1) * s->low_bits > low->count * 8) return 0;
            for (int64_t b = 0; b < s->low_bits; b++) gap += (int64_t)bit(low->data, i * s->low_bits + b) << b;
        }
        at += gap + 1;
        if (at >= size) return 0;
        set_at(s, values, i, at, behind, dense);
    }
    return 1;
}

static int64_t floored(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

/* A transposed convolution as a plain one, whose filters make a plane for each place of the stride: how far its taps reach on
 * one side of the kernel, as `last` and returned are. */
static int64_t turned_side(int64_t side, int64_t stride, int64_t pad, int64_t *last) {
    *last = floored(stride - 1 + pad, stride);
    return -floored(side - 1 - pad, stride);
}

/* A step as a convolution without a stride, of what it reads. */
static step plain(const step *s) {
    step made = *s;
    if (s->kind == STRIDED) made.stride = 1, made.wider = 0;
    if (!s->transposed) return made;
    int64_t bottom, right, left = turned_side(s->kernel_width, across(s), s->pad + s->left, &right);
    made.pad = -turned_side(s->kernel_height, s->stride, s->pad, &bottom);
    made.left = -left - made.pad;
    made.kernel_height = bottom + made.pad + 1, made.kernel_width = right - left + 1;
    made.stride = 1, made.wider = 0;
    return made;
}

/* From inputs x filters x kernel to those of the plain convolution, of one group after another: filters x stride x inputs. */
static void turned(const step *s, const step *made, int64_t inputs, int64_t filters, const float *dense, float *result) {
    int64_t high = s->stride, wide = across(s), area = s->kernel_height * s->kernel_width;
    for (int64_t i = 0; i < s->groups * filters * high * wide; i++, result += inputs * made->kernel_height * made->kernel_width) {
        int64_t filter = i / (high * wide), group = filter / filters, down = i / wide % high, right = i % wide;
        for (int64_t c = 0; c < inputs; c++)
            for (int64_t tap = 0; tap < area; tap++) {
                int64_t y = down + s->pad - tap / s->kernel_width, x = right + s->pad + s->left - tap % s->kernel_width;
                if (y % high || x % wide) continue;
                int64_t v = y / high + made->pad, u = x / wide + made->pad + made->left;
                result[(c * made->kernel_height + v) * made->kernel_width + u] =
                    dense[((group * inputs + c) * filters + filter % filters) * area + tap];
            }
    }
}

/* Where the tap (channel, y, x) of a filter reads, from the output that it is for; `channels` of each phase. */
static int64_t offset_of(const step *s, const layout *from, int64_t channels, int64_t channel, int64_t y, int64_t x) {
    int64_t down = y * (s->spread + 1) - s->pad, right = x * (s->spread + 1) - s->pad - s->left;
    int64_t up = floored(down, s->stride), left = floored(right, across(s));
    int64_t phase = (down - up * s->stride) * across(s) + (right - left * across(s));
    return (phase * channels + channel) * from->plane + up * from->row + left;
}

/* Lists the taps of groups of `rows` filters, each that any filter of the group has; into `made`, or null: counts them. */
static int64_t taps(const step *s, const layout *from, const float *dense, int64_t outputs, int64_t inputs, int64_t rows,
                    layer *made) {
    int64_t count = 0, area = s->kernel_height * s->kernel_width, filter = inputs * area, chunks = made ? made->chunks : 1;
    int64_t groups = (outputs + rows - 1) / rows;
    for (int64_t part = 0; part < chunks * groups; part++) {
        int64_t chunk = part / groups, first = part % groups * rows;
        if (made) made->starts[part] = count;
        for (int64_t tap = inputs * chunk / chunks * area; tap < inputs * (chunk + 1) / chunks * area; tap++) {
            int used = 0;
            for (int64_t o = first; o < first + rows && o < outputs; o++) used |= dense[o * filter + tap] != 0;
            if (used && made) {
                int64_t channel = first / (outputs / s->groups) * inputs + tap / area;
                made->offsets[count] = offset_of(s, from, inputs * s->groups, channel, tap % area / s->kernel_width,
                                                 tap % s->kernel_width);
                for (int64_t r = 0; r < rows; r++)
                    made->weights[count * rows + r] = first + r < outputs ? dense[(first + r) * filter + tap] : 0;
            }
            count += used;
        }
        if (made) made->starts[part + 1] = count;
    }
    return count;
}

/* How many parts the inputs are taken in: what a piece reads of one shall stay in the first cache, and is worth it where it has
 * many taps, for sums go to memory and back between them. */
static int64_t chunks_of(const step *s, const layout *from, int64_t inputs, double taps, int64_t most) {
    int64_t vectors = vectors_of(from) < most ? vectors_of(from) : most, planes = from->shape.channels / inputs;
    int64_t rows = (s->kernel_height - 1) * (s->spread + 1) / s->stride, read = vectors * LANES + rows * from->row;
    int64_t wanted = (inputs * planes * read * (int64_t)sizeof(number) + NEAR - 1) / NEAR;
    int64_t worth = (int64_t)(taps * vectors / WORTH_A_CHUNK), chunks = wanted < worth ? wanted : worth;
    return chunks < 1 ? 1 : chunks < inputs ? chunks : inputs;
}

static int made_of(const step *s, const layout *from, int alone, const float *dense, int64_t outputs, int64_t inputs, layer *made) {
    typedef struct { int64_t rows; double tap; } way;
    const way filters[] = {{2, TAP_OF_TWO}, {4, TAP_OF_FOUR}, {0}}, vectors[] = {{LANES, TAP_OF_LANES}, {0}};
    int64_t count = taps(s, from, dense, outputs, inputs, 1, NULL);
    double least = count;
    made->rows = 1, made->outputs = outputs;
    for (const way *w = s->kind == LINEAR ? vectors : filters; s->groups == 1 && w->rows; w++) {
        int64_t together = taps(s, from, dense, outputs, inputs, w->rows, NULL);
        if (together * w->tap < least) made->rows = w->rows, count = together, least = together * w->tap;
    }
    if (CROSSWISE && s->kind == CONVOLUTION && s->groups == 1 && alone) {
        int64_t together = taps(s, from, dense, outputs, inputs, ACROSS, NULL), results = quotient_up(outputs, ACROSS);
        double places = (double)(from->four_count * AT_ONCE) / vectors_of(from);
        made->crosswise = (together * TAP_OF_PLACE + results * RESULTS_OF_PLACE) * places < least;
        if (made->crosswise) made->rows = ACROSS, count = together;
    }
    int64_t groups = groups_of(made);
    made->chunks = 1;
    if (s->kind == CONVOLUTION && s->groups == 1 && !made->crosswise)
        made->chunks = chunks_of(s, from, inputs, (double)count / groups, most_of(made->rows));
    made->starts = malloc(sizeof(int64_t) * (made->chunks * groups + 1));
    made->offsets = malloc(sizeof(int32_t) * (count + 1));
    made->weights = malloc(sizeof(number) * (count * made->rows + 1));
    made->bias = calloc(groups * made->rows, sizeof(number));
    if (!made->starts || !made->offsets || !made->weights || !made->bias) return 0;
    taps(s, from, dense, outputs, inputs, made->rows, made);
    return 1;
}

static float float_of(int64_t bits) {
    uint32_t word = (uint32_t)bits;
    float result;
    memcpy(&result, &word, 4);
    return result;
}

static float ceiling_of(const step *s) { return s->ceiling ? float_of(s->ceiling) : INFINITY; }

/* Decodes and lists the weights of a step; 0 if its inputs do not fit to it. */
static int weighted(const network *net, const step *s, const constant *inputs, layer *made) {
    const layout *from = net->layouts + s->from;
    int64_t outputs = net->layouts[s->to].shape.channels, area = s->kernel_height * s->kernel_width;
    int64_t phases = area == 1 || s->transposed || s->kind == STRIDED ? 1 : s->stride * across(s), channels = from->shape.channels / phases / s->groups;
    int64_t places = s->transposed ? s->stride * across(s) : 1, filters = outputs / places;
    int64_t size = filters * channels * area;
    const constant *scale = !s->scale ? NULL : inputs + s->scale, *bias = !s->bias ? NULL : inputs + s->bias;
    if (scale && (scale->type != FLOAT || (scale->count != 1 && scale->count != filters))) return 0;
    if (bias && (bias->type != FLOAT || bias->count != filters)) return 0;
    float *dense = malloc(sizeof(float) * (size + 1));
    int fits = dense && decoded(s, inputs, dense, size, s->transposed ? area : channels * area);
    for (int64_t i = 0; fits && scale && i < size; i++) {
        int64_t filter = s->transposed ? i / area % (filters / s->groups) : i / (channels * area);
        dense[i] *= ((const float *)scale->data)[scale->count == 1 ? 0 : filter];
    }
    step own = plain(s);
    if (fits && s->transposed) {
        float *given = dense;
        dense = calloc(outputs * channels * own.kernel_height * own.kernel_width + 1, sizeof(float));
        if (dense) turned(s, &own, channels, filters / s->groups, given, dense);
        fits = dense != NULL;
        free(given);
    }
    fits = fits && made_of(&own, from, !is_window(from) && !is_window(net->layouts + s->to), dense, outputs, channels, made);
    free(dense);
    if (!fits) return 0;
    for (int64_t o = 0; bias && o < outputs; o++) made->bias[o] = ((const float *)bias->data)[o / places];
    return 1;
}

static int numbers_of(const constant *c, int64_t count) { return c->type == FLOAT && (c->count == 1 || c->count == count); }

static float number_at(const constant *c, int64_t i) { return ((const float *)c->data)[c->count == 1 ? 0 : i]; }

/* A scale and a shift for each channel: those of the inputs, times `first` and `second` where these are not 0; or of a
 * normalisation with mean (scale) and variance, to which `first` is added. */
static int scaled(const network *net, const step *s, const constant *inputs, layer *made) {
    int64_t channels = net->layouts[s->to].shape.channels, given[] = {s->weights, s->bias, s->scale, s->variance};
    for (int i = 0; i < 4; i++)
        if (given[i] && !numbers_of(inputs + given[i], channels)) return 0;
    made->weights = malloc(sizeof(number) * channels);
    made->bias = malloc(sizeof(number) * channels);
    if (!made->weights || !made->bias) return 0;
    for (int64_t c = 0; c < channels; c++) {
        double scale = s->weights ? number_at(inputs + s->weights, c) : 1, shift = s->bias ? number_at(inputs + s->bias, c) : 0;
        if (s->variance) scale /= sqrt((double)number_at(inputs + s->variance, c) + float_of(s->first));
        if (s->scale) shift -= number_at(inputs + s->scale, c) * scale;
        if (!s->variance && s->first) scale *= float_of(s->first);
        if (!s->variance && s->second) shift *= float_of(s->second);
        made->weights[c] = scale, made->bias[c] = shift;
    }
    return 1;
}
