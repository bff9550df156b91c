/* Convolutions of small planes, crosswise: a vector has one place of LANES filters, not LANES places of one filter, so that hardly a
 * lane is spent on what lies between rows and behind a plane. A tap is a vector of weights and one number for each place. It is for
 * layers whose filters have the same taps, as dense ones have. */

typedef struct { /* of ACROSS filters */
    const number *in, *weights, *bias;
    const int32_t *offsets, *fours;
    int64_t taps;
} crossing;

/* One tap: a number of each of N places times the weights of FILTER_VECTORS vectors. */
static inline __attribute__((always_inline)) void crossed_once(const int N, vector *sums, const number *in, const int64_t *at,
                                                               const number *weights) {
    UNROLLED for (int n = 0; n < N; n++) {
        number value = in[at[n / AT_ONCE] + n % AT_ONCE];
        UNROLLED for (int f = 0; f < FILTER_VECTORS; f++) sums[f * N + n] += ((const vector *)weights)[f] * value;
    }
}

/* The sums of N places. Few of them: several sums of each, for one has to wait for the tap before. */
static inline __attribute__((always_inline)) void crossed(const int N, const crossing *c, vector *found) {
    const int held = N * FILTER_VECTORS, most = PLACES * FILTER_VECTORS;
    const int chains = 4 * held <= most ? 4 : 2 * held <= most ? 2 : 1, ahead = chains == 1 ? 2 : chains;
    vector sums[PLACES * FILTER_VECTORS];
    UNROLLED for (int i = 0; i < chains * held; i++) sums[i] = i < held ? ((const vector *)c->bias)[i / N] : (vector){0};
    int64_t at[N / AT_ONCE];
    UNROLLED for (int i = 0; i < N / AT_ONCE; i++) at[i] = c->fours[i];
    const number *weights = c->weights;
    const int32_t *offsets = c->offsets, *whole = offsets + c->taps / ahead * ahead, *end = offsets + c->taps;
    for (; offsets < whole; offsets += ahead, weights += ahead * ACROSS) {
        UNROLLED for (int i = 0; i < ahead; i++)
            crossed_once(N, sums + i % chains * held, c->in + offsets[i], at, weights + i * ACROSS);
    }
    for (; offsets < end; offsets++, weights += ACROSS) crossed_once(N, sums, c->in + *offsets, at, weights);
    UNROLLED for (int i = held; i < chains * held; i++) sums[i % held] += sums[i];
    UNROLLED for (int i = 0; i < held; i++) found[i] = sums[i];
}

#define CROSSED(N) \
    static IN_WHOLE_VECTORS void crossed_##N(const crossing *c, vector *found) { crossed(N, c, found); }
#define CROSSED_NAME(N) crossed_##N,
#if defined(__AVX512F__)
#define TO_PLACES(DO) DO(4) DO(8) DO(12) DO(16) DO(20) DO(24) DO(28)
#else
#define TO_PLACES(DO) DO(4)
#endif
TO_PLACES(CROSSED)
static void (*const CROSSINGS[PLACES / AT_ONCE])(const crossing *, vector *) = {TO_PLACES(CROSSED_NAME)};

/* What AT_ONCE places side by side have of LANES filters, to their planes: of those that are `inside`, a bit each. */
static void put(const step *s, const vector *sums, int inside, int64_t plane, int64_t rows, const number *residual, number *out) {
    number values[LANES * AT_ONCE];
    for (int m = 0; m < LANES; m++)
        UNROLLED for (int n = 0; n < AT_ONCE; n++) values[m * AT_ONCE + n] = ((const number *)sums)[n * LANES + m];
    for (int64_t m = 0; residual && m < rows; m++)
        UNROLLED for (int n = 0; n < AT_ONCE; n++) values[m * AT_ONCE + n] += residual[m * plane + n];
    UNROLLED for (int i = 0; i < AT_ONCE; i++) ((vector *)values)[i] = resulting(s, ((vector *)values)[i]);
    for (int64_t m = 0; m < rows; m++) {
        const number *row = values + m * AT_ONCE;
        if (inside == (1 << AT_ONCE) - 1)
            memcpy(out + m * plane, row, sizeof(number) * AT_ONCE);
        else
            for (int n = 0; n < AT_ONCE; n++)
                if (inside >> n & 1) out[m * plane + n] = row[n];
    }
}

/* Fours of places `first` to `last` of a group of filters. */
static void crosswise(const network *net, const step *s, const layer *l, number **activations, int64_t first, int64_t last,
                      int64_t group) {
    const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
    const number *residual = s->residual ? activations[s->residual - 1] : NULL;
    int64_t count = (last - first) * AT_ONCE, start = l->starts[group];
    crossing c = {.in = activations[s->from] + from->first, .fours = to->fours + first, .taps = l->starts[group + 1] - start};
    c.offsets = l->offsets + start, c.weights = l->weights + start * ACROSS, c.bias = l->bias + group * ACROSS;
    vector found[PLACES * FILTER_VECTORS];
    CROSSINGS[last - first - 1](&c, found);
    for (int64_t filter = group * ACROSS, f = 0; f < FILTER_VECTORS && filter < l->outputs; f++, filter += LANES) {
        int64_t rows = l->outputs - filter < LANES ? l->outputs - filter : LANES;
        for (int64_t n = 0; n < count; n += AT_ONCE) {
            int64_t place = c.fours[n / AT_ONCE], at = to->first + filter * to->plane + place;
            int inside = 0;
            for (int i = 0; i < AT_ONCE; i++)
                inside |= ((place + i) / to->row < to->shape.height && (place + i) % to->row < to->shape.width) << i;
            put(s, found + f * count + n, inside, to->plane, rows, residual ? residual + at : NULL, activations[s->to] + at);
        }
    }
}
