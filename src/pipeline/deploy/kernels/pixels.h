/* Pixels: bytes to numbers, as the network's preprocessing rounds them. There are 256, so each is computed once */

enum { PIXELS = 256 };
enum pixels { NO_PIXELS, ONE_BY_ONE, BY_IMAGE };
enum operation { PLUS = 1, MINUS, TIMES, OVER };

/* In float32, one rounding an operation. */
static float prepared(const step *s, const constant *inputs, int64_t channel, float value) {
    for (const loop *l = s->loops; l < s->loops + LOOPS && l->count; l++) {
        float other = number_at(inputs + l->from, channel);
        switch (l->count) {
            case PLUS: value += other; break;
            case MINUS: value -= other; break;
            case TIMES: value *= other; break;
            default: value /= other;
        }
    }
    return clamped(s, value);
}

/* Of an input of pixels: what each value of each channel becomes, or the least deviation of an image. */
static int tabled(const network *net, const step *s, const constant *inputs, layer *made) {
    int64_t channels = net->layouts[s->to].shape.channels;
    if (s->pixels == BY_IMAGE) {
        const constant *least = inputs + s->scale;
        if (least->type != DOUBLE || least->count != 1) return 0;
        made->least = *(const double *)least->data;
        return 1;
    }
    for (const loop *l = s->loops; l < s->loops + LOOPS && l->count; l++)
        if (!numbers_of(inputs + l->from, channels)) return 0;
    if (!(made->weights = malloc(sizeof(number) * PIXELS * channels))) return 0;
    for (int64_t i = 0; i < PIXELS * channels; i++) made->weights[i] = prepared(s, inputs, i / PIXELS, i % PIXELS);
    return 1;
}

/* An image's own mean and deviation taken out, in float64: sums of whole numbers are exact in any order. */
static void standardised(const step *s, double least, const uint8_t *in, int64_t count, number *table) {
    uint64_t total = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) total += in[i], squares += (uint32_t)in[i] * in[i];
    double mean = (double)total / count;
    volatile double square = mean * mean; /* rounded on its own */
    double variance = (double)squares / count - square, deviation = sqrt(variance < 0 ? 0 : variance);
    if (deviation < least) deviation = least;
    for (int i = 0; i < PIXELS; i++) table[i] = clamped(s, (float)((i - mean) / deviation));
}

static void seen(const step *s, const layer *l, const layout *to, const uint8_t *in, number *out) {
    number own[PIXELS];
    shape plane = to->shape;
    if (s->pixels == BY_IMAGE) standardised(s, l->least, in, elements(plane), own);
    for (int64_t c = 0; c < plane.channels; c++) {
        const number *table = s->pixels == BY_IMAGE ? own : l->weights + PIXELS * c;
        for (int64_t y = 0; y < plane.height; y++, in += plane.width) {
            number *row = out + to->first + c * to->plane + y * to->row;
            for (int64_t x = 0; x < plane.width; x++) row[x] = table[in[x]];
        }
    }
}
