/* Convolutions: blocks of outputs in registers, taps streaming by */

typedef struct { /* N vectors of the outputs of one group of filters */
    const number *in, *weights, *bias, *residual;
    const int32_t *offsets;
    const int32_t *gaps; /* between rows, from where the plane begins */
    int64_t taps, rows, plane, relu, at, gap_count;
    number ceiling; /* with a Relu: nothing above */
    number *out;
} block;

#if defined(__aarch64__)
#define KEPT(weight) __asm__("" : "+w"(weight)) /* loaded in pairs, multiplied by from there */
#else
#define KEPT(weight)
#endif

/* M and N are constants, so that all sums are registers. */
static inline __attribute__((always_inline)) void tapped(const int M, const int N, vector *sums, const number *in,
                                                         const number *weights) {
    __asm__("" : "+r"(in)); /* one pointer, not N of them */
    if (M == 1) {
        number weight = weights[0];
        KEPT(weight);
        UNROLLED for (int n = 0; n < N; n++) sums[n] += weight * *(const vector *)(in + n * LANES);
        return;
    }
#if defined(__AVX2__) && !defined(__AVX512F__)
    if (M == 4) { /* sixteen registers: twelve sums, three vectors, and one weight after another */
        vector x[N];
        UNROLLED for (int n = 0; n < N; n++) {
            x[n] = *(const vector *)(in + n * LANES);
            __asm__("" : "+x"(x[n]));
        }
        UNROLLED for (int m = 0; m < M; m++) {
            UNROLLED for (int n = 0; n < N; n++) sums[m * N + n] += weights[m] * x[n];
            __asm__("" : "+x"(sums[m * N + N - 1]), "+r"(weights));
        }
        return;
    }
#endif
    UNROLLED for (int n = 0; n < N; n++) {
        vector x = *(const vector *)(in + n * LANES);
        UNROLLED for (int m = 0; m < M; m++) sums[m * N + n] += weights[m] * x;
    }
}

static inline __attribute__((always_inline)) void computed(const int M, const int N, const block *b) {
    /* few vectors: several sums of each, for one has to wait for the tap before */
    const int held = M * N, most = M * most_of(M);
    const int chains = 4 * held <= most ? 4 : 2 * held <= most ? 2 : 1, ahead = chains == 1 ? 2 : chains;
    vector sums[MOST];
    UNROLLED for (int i = held; i < chains * held; i++) sums[i] = (vector){0};
    UNROLLED for (int m = 0; m < M; m++) {
        vector bias;
        UNROLLED for (int i = 0; i < LANES; i++) bias[i] = b->bias[m];
        if (b->residual) {
            const vector *residual = (const vector *)(b->residual + (m < b->rows ? m : 0) * b->plane);
            UNROLLED for (int n = 0; n < N; n++) sums[m * N + n] = residual[n] + bias;
        } else {
            UNROLLED for (int n = 0; n < N; n++) sums[m * N + n] = bias;
        }
    }
    const number *in = b->in, *weights = b->weights;
    const int32_t *offsets = b->offsets;
    for (int64_t rounds = b->taps / ahead; rounds > 0; rounds--, offsets += ahead, weights += ahead * M) {
        UNROLLED for (int i = 0; i < ahead; i++) tapped(M, N, sums + i % chains * held, in + offsets[i], weights + i * M);
    }
    for (int64_t left = b->taps % ahead; left > 0; left--, offsets++, weights += M) tapped(M, N, sums, in + *offsets, weights);
    UNROLLED for (int i = held; i < chains * held; i++) sums[i % held] += sums[i];
    UNROLLED for (int m = 0; m < M; m++) {
        if (m >= b->rows) return;
        vector *sum = sums + m * N, *out = (vector *)(b->out + m * b->plane);
        if (b->relu) {
            UNROLLED for (int n = 0; n < N; n++) sum[n] = larger((vector){0}, sum[n]);
            if (b->ceiling < (number)INFINITY) {
                vector ceiling = (vector){0} + b->ceiling;
                UNROLLED for (int n = 0; n < N; n++) sum[n] = smaller(ceiling, sum[n]);
            }
        }
        UNROLLED for (int n = 0; n < N; n++) out[n] = sum[n];
        for (int64_t i = 0; i < b->gap_count; i++) (b->out + m * b->plane - b->at)[b->gaps[i]] = 0;
    }
}

#define BLOCK(M, N) \
    static void block_##M##_##N(const block *b) { computed(M, N, b); }
#define THREE(DO, M) DO(M, 1) DO(M, 2) DO(M, 3)
#define SIX(DO, M) THREE(DO, M) DO(M, 4) DO(M, 5) DO(M, 6)
#define TWELVE(DO, M) SIX(DO, M) DO(M, 7) DO(M, 8) DO(M, 9) DO(M, 10) DO(M, 11) DO(M, 12)
#define TWENTY_FOUR(DO, M)                                                                                                \
    TWELVE(DO, M) DO(M, 13) DO(M, 14) DO(M, 15) DO(M, 16) DO(M, 17) DO(M, 18) DO(M, 19) DO(M, 20) DO(M, 21) DO(M, 22) \
        DO(M, 23) DO(M, 24)
#define TWENTY_EIGHT(DO, M) TWENTY_FOUR(DO, M) DO(M, 25) DO(M, 26) DO(M, 27) DO(M, 28)
#if defined(__AVX512F__)
#define TO_MOST TWENTY_EIGHT
#define TO_MOST_OF_TWO TWELVE
#define TO_MOST_OF_FOUR SIX
#elif defined(__AVX2__)
#define TO_MOST TWELVE
#define TO_MOST_OF_TWO SIX
#define TO_MOST_OF_FOUR THREE
#else
#define TO_MOST TWENTY_FOUR
#define TO_MOST_OF_TWO TWELVE
#define TO_MOST_OF_FOUR SIX
#endif
TO_MOST(BLOCK, 1)
TO_MOST_OF_TWO(BLOCK, 2)
TO_MOST_OF_FOUR(BLOCK, 4)
#define NAME(M, N) block_##M##_##N,
typedef void (*computing)(const block *);
static const computing ALONE[MOST] = {TO_MOST(NAME, 1)}, OF_TWO[MOST_OF_TWO] = {TO_MOST_OF_TWO(NAME, 2)},
                       OF_FOUR[MOST_OF_FOUR] = {TO_MOST_OF_FOUR(NAME, 4)};

/* Pieces that a plane is computed in: as many vectors of each as registers hold. */
static int64_t pieces_of(const layout *to, const layer *l) {
    if (l->crosswise) return quotient_up(to->four_count, PLACES / AT_ONCE);
    return (vectors_of(to) + most_of(l->rows) - 1) / most_of(l->rows);
}

static const number NO_BIAS[4];

/* Has `count` vectors of each of the next filters, of which there are `left`, on their way from memory. Not inlined: the loop around it
 * has no register to spare. */
static __attribute__((noinline)) void on_their_way(const number *next, int64_t rows, int64_t left, int64_t plane, int64_t count) {
    for (int64_t row = 0; row < rows && row < left; row++)
        for (int64_t i = 0; i < count * LANES; i += LINE) __builtin_prefetch(next + row * plane + i);
}

/* One piece: `count` vectors from `v` on, of the groups of filters `begin` to `end`. Outside are chunks of inputs, which stay near;
 * what the chunks before have summed up is where the next begins. */
static void piece_of(const network *net, const step *s, const layer *l, number **activations, int64_t v, int64_t count,
                     int64_t begin, int64_t end) {
    const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
    const number *residual = s->residual ? activations[s->residual - 1] + to->first : NULL;
    number *out = activations[s->to] + to->first;
    int64_t groups = groups_of(l), at = v * LANES;
    int far = residual && bytes_beyond(net, s); /* a residual is as large as what is made of it */
    const computing *computed = l->rows == 1 ? ALONE : l->rows == 2 ? OF_TWO : OF_FOUR;
    block b = {.in = activations[s->from] + from->first + at, .plane = to->plane, .ceiling = ceiling_of(s), .at = at};
    b.gaps = to->gaps + to->before[v];
    for (int64_t chunk = 0; chunk < l->chunks; chunk++) {
        int ends = chunk == l->chunks - 1;
        b.gap_count = ends ? to->before[v + count] - to->before[v] : 0;
        b.relu = ends && s->relu && !s->function;
        for (int64_t group = begin; group < end; group++) {
            int64_t first = group * l->rows, listed = chunk * groups + group, start = l->starts[listed];
            b.weights = l->weights + start * l->rows;
            b.offsets = l->offsets + start;
            b.taps = l->starts[listed + 1] - start;
            b.bias = chunk ? NO_BIAS : l->bias + first;
            b.rows = l->outputs - first < l->rows ? l->outputs - first : l->rows;
            b.out = out + first * to->plane + at;
            b.residual = chunk ? b.out : residual ? residual + first * to->plane + at : NULL;
            if (far && !chunk) on_their_way(b.residual + l->rows * to->plane, l->rows, l->outputs - first - l->rows, to->plane, count);
            computed[count - 1](&b);
            for (int64_t row = 0; ends && s->function && row < b.rows; row++)
                valued(s, b.out + row * b.plane, to->inside + v, count);
        }
    }
}

/* Units `begin` to `end` of a convolution: groups of filters inside, pieces of the plane outside. Crosswise it is the other way round:
 * pieces are so small there that each would read all weights anew from far away. */
static void convolved(const network *net, const step *s, const layer *l, number **activations, int64_t begin, int64_t end) {
    const layout *to = net->layouts + s->to;
    int64_t whole = l->crosswise ? to->four_count : vectors_of(to), pieces = pieces_of(to, l), groups = groups_of(l);
    for (; CROSSWISE && l->crosswise && begin < end; begin++) {
        int64_t piece = begin % pieces, first = whole * piece / pieces, last = whole * (piece + 1) / pieces;
        crosswise(net, s, l, activations, first, last, begin / pieces);
    }
    while (begin < end) {
        int64_t piece = begin / groups, group = begin % groups, first = whole * piece / pieces, last = whole * (piece + 1) / pieces;
        int64_t until = end - piece * groups < groups ? end - piece * groups : groups;
        piece_of(net, s, l, activations, first, last - first, group, until);
        begin += until - group;
    }
}
