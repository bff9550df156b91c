/* Sparse inference: a whole pruned network as one operator of ONNX Runtime.
 *
 * A plane (one channel of an activation) is stored as its rows, each followed by `pad` zeros, and planes are separated by
 * at least `pad` rows of zeros. Those zeros serve as the padding on every side, so a convolution over the flattened plane
 * has no borders: each weight that is not zero is one offset, and
 *
 *     out[i] += weight * in[i + offset]        for all i of the plane
 *
 * is its part of every output at once; what comes out between the rows is masked to zeros. N vectors of M output
 * channels stay in registers while their weights stream by: M = 1 for sparse filters, where a weight costs one load;
 * M = TOGETHER for layers that are too dense for that, where one load serves so many filters.
 *
 * A convolution of stride s reads s * s planes made before, (row mod s, column mod s) of its input, at stride 1.
 * Weights arrive coded as the model stores them (pack.py) and are decoded once, when a session is made.
 *
 * A `number` is what is computed in: a float, or a half of one where the compiler is told that the processor computes
 * in these, twice as many at a time.
 */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
typedef _Float16 number;
typedef int16_t lane;
#else
typedef float number;
typedef int32_t lane; /* as wide as a number */
#endif

#if defined(__AVX512F__)
enum { LANES = 16, MOST = 28, MOST_TOGETHER = 6 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX2__)
enum { LANES = 8, MOST = 12, MOST_TOGETHER = 2 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
enum { LANES = 8, MOST = 24, MOST_TOGETHER = 6 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
enum { LANES = 4, MOST = 24, MOST_TOGETHER = 6 };
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#endif
enum { TOGETHER = 4 }; /* filters; MOST vectors of sums of one filter fit into the registers, MOST_TOGETHER of four */

/* What a tap of several filters or of a vector of them costs, in taps of one: docs/kernels.md. */
static const double TAP_OF_FOUR = 2.3, TAP_OF_LANES = LANES / 4.0;

typedef number vector __attribute__((vector_size(sizeof(number) * LANES), aligned(sizeof(number)), may_alias));
typedef lane lanes __attribute__((vector_size(sizeof(lane) * LANES), aligned(sizeof(lane)), may_alias));
typedef float floats __attribute__((vector_size(sizeof(float) * LANES))); /* for long sums */

/* Where a is no number they give b: what comes out between the rows ends as zeros whatever the image. */
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
static inline vector larger(vector a, vector b) { return (vector)vmaxnmq_f16((float16x8_t)a, (float16x8_t)b); }
static inline vector smaller(vector a, vector b) { return (vector)vminnmq_f16((float16x8_t)a, (float16x8_t)b); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
static inline vector larger(vector a, vector b) { return (vector)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
static inline vector smaller(vector a, vector b) { return (vector)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
#else /* compilers see one instruction in each on x86 */
static inline vector chosen(lanes condition, vector yes, vector no) {
    return (vector)((condition & (lanes)yes) | (~condition & (lanes)no));
}
static inline vector larger(vector a, vector b) { return chosen(a > b, a, b); }
static inline vector smaller(vector a, vector b) { return chosen(a < b, a, b); }
#endif

/* ---- ONNX Runtime's interface, as far as it is used: its headers are in no package, and its table only ever grows ---- */

typedef struct status status;
typedef struct value value;
typedef struct tensor_shape tensor_shape;
typedef struct kernel_info kernel_info;
typedef struct kernel_context kernel_context;
typedef struct domain domain;
typedef struct session_options session_options;
typedef struct custom_operator custom_operator;

typedef struct {
    status *(*create_status)(int code, const char *message);
    void *to_26[25];
    status *(*create_domain)(const char *name, domain **);
    status *(*domain_add)(domain *, const custom_operator *);
    status *(*add_domain)(session_options *, domain *);
    void *to_51[22];
    status *(*tensor_data)(value *, void **);
    void *to_60[8];
    status *(*element_type)(const tensor_shape *, int *);
    status *(*dimension_count)(const tensor_shape *, size_t *);
    status *(*dimensions)(const tensor_shape *, int64_t *, size_t);
    void *to_64;
    status *(*element_count)(const tensor_shape *, size_t *);
    status *(*shape_of)(const value *, tensor_shape **);
    void *to_90[24];
    status *(*input)(const kernel_context *, size_t, const value **);
    status *(*output)(kernel_context *, size_t, const int64_t *dimensions, size_t, value **);
    void *to_99[7];
    void (*release_shape)(tensor_shape *);
    void *to_163[63];
    status *(*integers)(const kernel_info *, const char *name, int64_t *, size_t *);
    void *to_230[66];
    status *(*input_count)(const kernel_info *, size_t *);
    void *to_249[18];
    status *(*constant_input)(const kernel_info *, size_t, int *is_constant, const value **);
    void *to_274[24];
    status *(*parallel_for)(const kernel_context *, void (*)(void *, size_t), size_t count, size_t batches, void *);
} api;

_Static_assert(offsetof(api, create_domain) == 26 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, tensor_data) == 51 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, element_type) == 60 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, shape_of) == 65 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, output) == 91 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, release_shape) == 99 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, integers) == 163 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, constant_input) == 249 * sizeof(void *), "place in ONNX Runtime's table");
_Static_assert(offsetof(api, parallel_for) == 274 * sizeof(void *), "place in ONNX Runtime's table");

typedef struct {
    const api *(*api_of)(uint32_t version);
    const char *(*version)(void);
} api_base;

struct custom_operator { /* as of version 16 */
    uint32_t version;
    void *(*create)(const custom_operator *, const api *, const kernel_info *);
    const char *(*name)(const custom_operator *);
    const char *(*provider)(const custom_operator *);
    int (*input_type)(const custom_operator *, size_t);
    size_t (*input_count)(const custom_operator *);
    int (*output_type)(const custom_operator *, size_t);
    size_t (*output_count)(const custom_operator *);
    void (*compute)(void *, kernel_context *);
    void (*destroy)(void *);
    int (*input_characteristic)(const custom_operator *, size_t);
    int (*output_characteristic)(const custom_operator *, size_t);
    int (*memory_type)(const custom_operator *, size_t);
    int (*fewest_inputs)(const custom_operator *);
    int (*inputs_of_one_type)(const custom_operator *);
    int (*fewest_outputs)(const custom_operator *);
    int (*outputs_of_one_type)(const custom_operator *);
    status *(*create_or_fail)(const custom_operator *, const api *, const kernel_info *, void **);
    status *(*compute_or_fail)(void *, kernel_context *);
};

enum { INTERFACE = 17, OPERATOR_INTERFACE = 16, FAILED = 1, REQUIRED = 0, VARIADIC = 2 };
enum type { ANY = 0, FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6 };

/* ---- The program: what Python writes (program.py), in integers ---- */

enum kind { INPUT, OUTPUT, SPLIT, CONVOLUTION, LINEAR, ADD, MAX_POOL, AVERAGE_POOL, MEAN, FLATTEN };
enum coding { PLAIN, MASK, GAPS, RICE };

typedef struct { /* an activation; height 0: a plain vector of so many channels */
    int64_t channels, height, width, pad;
} shape;

typedef struct {
    int64_t kind, from, to, residual; /* activations; residual: one more than its number, 0: none */
    int64_t kernel_height, kernel_width, stride, pad, groups;
    int64_t count_padding;             /* zeros of the padding count in an average */
    int64_t relu, ceiling;             /* nothing below 0; nothing above: bits of a float32, 0: none */
    int64_t coding, weights, low_bits; /* of the weights, the first input that has them, Rice's k */
    int64_t is_int8, scale, bias, bias_scale; /* inputs; 0: none */
} step;

enum { SHAPE_FIELDS = sizeof(shape) / 8, STEP_FIELDS = sizeof(step) / 8 };

typedef struct { /* numbers from row to row, from plane to plane, before the first element, and in all */
    shape shape;
    int64_t row, plane, first, size;
    lanes *inside; /* of a plane's vectors: all ones in the rows, zero between them */
} layout;

typedef struct { /* filters, `rows` at a time: group g has the taps starts[g] to starts[g + 1] */
    int64_t rows, outputs;
    int64_t *starts;
    int32_t *offsets; /* of a tap, from the output that it is for */
    number *weights;  /* taps x rows */
    number *bias;
    vector *caps; /* with a Relu: what each place of a plane may be at most; 0 between the rows */
} layer;

typedef struct workspace {
    struct workspace *next;
    number *memory, **activations;
} workspace;

typedef struct {
    const api *api;
    int64_t activation_count, step_count;
    layout *layouts;
    step *steps;
    layer *layers;
    pthread_mutex_t lock;
    workspace *idle; /* one for every inference that has run at the same time as others */
} network;

static int64_t rounded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

/* Planes begin where vectors do: what a 1x1 convolution loads crosses no line of the cache. */
static layout laid_out(shape s) {
    if (!s.height) return (layout){s, 0, 1, 0, rounded(s.channels), NULL};
    int64_t row = s.width + s.pad, margin = s.pad * row;
    int64_t plane = rounded(rounded(s.height * row) + margin), first = rounded(margin + s.pad);
    return (layout){s, row, plane, first, rounded(first + s.channels * plane + margin + LANES), NULL};
}

static int64_t elements(shape s) { return s.channels * (s.height ? s.height * s.width : 1); }

static int64_t vectors_of(const layout *l) { return rounded(l->shape.height * l->row) / LANES; }

static int masked(layout *l) {
    lane *inside = calloc(vectors_of(l) * LANES + 1, sizeof *inside);
    l->inside = (lanes *)inside;
    for (int64_t y = 0; inside && y < l->shape.height; y++)
        for (int64_t x = 0; x < l->shape.width; x++) inside[y * l->row + x] = -1;
    return inside != NULL;
}

/* ---- Weights: from the model's codings to lists of taps ---- */

typedef struct {
    const void *data;
    int64_t count;
    int type;
} constant;

static int bit(const void *stream, int64_t place) { return ((const uint8_t *)stream)[place >> 3] >> (place & 7) & 1; }

static float value_at(const step *s, const constant *values, int64_t i) {
    return s->is_int8 ? (float)((const int8_t *)values->data)[i] : ((const float *)values->data)[i];
}

/* Writes the dense tensor; 0 if a stream does not fit to it. */
static int decoded(const step *s, const constant *inputs, float *dense, int64_t size) {
    const constant *values = inputs + s->weights, *stream = values + 1, *low = values + 2;
    if (values->type != (s->is_int8 ? INT8 : FLOAT)) return 0;
    if ((s->coding != PLAIN && stream->type != UINT8) || (s->coding == RICE && low->type != UINT8)) return 0;
    memset(dense, 0, sizeof(float) * size);
    if (s->coding == PLAIN) {
        if (values->count != size) return 0;
        for (int64_t i = 0; i < size; i++) dense[i] = value_at(s, values, i);
        return 1;
    }
    if (s->coding == MASK) {
        if (stream->count * 8 < size) return 0;
        int64_t next = 1; /* the first value is the zero of all pruned weights */
        for (int64_t i = 0; i < size; i++) {
            if (!bit(stream->data, i)) continue;
            if (next >= values->count) return 0;
            dense[i] = value_at(s, values, next++);
        }
        return next == values->count;
    }
    for (int64_t i = 0, at = -1, high = 0; i < values->count; i++) {
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
        dense[at] = value_at(s, values, i);
    }
    return 1;
}

static int64_t floored(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

/* Where the tap (channel, y, x) of a filter reads, from the output that it is for; `channels` of each phase. */
static int64_t offset_of(const step *s, const layout *from, int64_t channels, int64_t channel, int64_t y, int64_t x) {
    int64_t up = floored(y - s->pad, s->stride), left = floored(x - s->pad, s->stride);
    int64_t phase = (y - s->pad - up * s->stride) * s->stride + (x - s->pad - left * s->stride);
    return (phase * channels + channel) * from->plane + up * from->row + left;
}

/* Lists the taps of groups of `rows` filters, each that any filter of the group has; into `made`, or null: counts them. */
static int64_t taps(const step *s, const layout *from, const float *dense, int64_t outputs, int64_t inputs, int64_t rows,
                    layer *made) {
    int64_t count = 0, area = s->kernel_height * s->kernel_width, filter = inputs * area;
    for (int64_t first = 0; first < outputs; first += rows) {
        if (made) made->starts[first / rows] = count;
        for (int64_t tap = 0; tap < filter; tap++) {
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
        if (made) made->starts[first / rows + 1] = count;
    }
    return count;
}

static int made_of(const step *s, const layout *from, const float *dense, int64_t outputs, int64_t inputs, layer *made) {
    int64_t rows = s->kind == LINEAR ? LANES : TOGETHER;
    int64_t count = taps(s, from, dense, outputs, inputs, 1, NULL);
    if (s->groups == 1) {
        int64_t joined = taps(s, from, dense, outputs, inputs, rows, NULL);
        if (joined * (s->kind == LINEAR ? TAP_OF_LANES : TAP_OF_FOUR) < count) made->rows = rows, count = joined;
    }
    if (!made->rows) made->rows = 1;
    made->outputs = outputs;
    int64_t groups = (outputs + made->rows - 1) / made->rows;
    made->starts = malloc(sizeof(int64_t) * (groups + 1));
    made->offsets = malloc(sizeof(int32_t) * (count + 1));
    made->weights = malloc(sizeof(number) * (count * made->rows + 1));
    made->bias = calloc(groups * made->rows, sizeof(number));
    if (!made->starts || !made->offsets || !made->weights || !made->bias) return 0;
    taps(s, from, dense, outputs, inputs, made->rows, made);
    return 1;
}

static float ceiling_of(const step *s) {
    uint32_t word = (uint32_t)s->ceiling;
    float result;
    memcpy(&result, &word, 4);
    return s->ceiling ? result : INFINITY;
}

static int capped(const step *s, const layout *to, layer *made) {
    if (!s->relu || !to->shape.height) return 1;
    int64_t size = vectors_of(to) * LANES;
    number *caps = malloc(sizeof(number) * size);
    made->caps = (vector *)caps;
    for (int64_t i = 0; caps && i < size; i++) caps[i] = ((lane *)to->inside)[i] ? ceiling_of(s) : 0;
    return caps != NULL;
}

/* Decodes and lists the weights of a step; 0 if its inputs do not fit to it. */
static int weighted(const network *net, const step *s, const constant *inputs, layer *made) {
    const layout *from = net->layouts + s->from;
    int64_t outputs = net->layouts[s->to].shape.channels, area = s->kernel_height * s->kernel_width;
    int64_t phases = area == 1 ? 1 : s->stride * s->stride, channels = from->shape.channels / phases / s->groups;
    int64_t filter = channels * area;
    const constant *scale = !s->scale ? NULL : inputs + s->scale, *bias = !s->bias ? NULL : inputs + s->bias;
    const constant *bias_scale = !s->bias_scale ? NULL : inputs + s->bias_scale;
    if (scale && (scale->type != FLOAT || (scale->count != 1 && scale->count != outputs))) return 0;
    if (bias && (bias->type != (bias_scale ? INT32 : FLOAT) || bias->count != outputs)) return 0;
    if (bias_scale && (bias_scale->type != FLOAT || (bias_scale->count != 1 && bias_scale->count != outputs))) return 0;
    float *dense = malloc(sizeof(float) * (outputs * filter + 1));
    int fits = dense && decoded(s, inputs, dense, outputs * filter);
    if (fits && scale)
        for (int64_t i = 0; i < outputs * filter; i++)
            dense[i] *= ((const float *)scale->data)[scale->count == 1 ? 0 : i / filter];
    fits = fits && made_of(s, from, dense, outputs, channels, made) && capped(s, net->layouts + s->to, made);
    free(dense);
    if (!fits) return 0;
    for (int64_t o = 0; bias && o < outputs; o++)
        made->bias[o] = bias_scale ? ((const int32_t *)bias->data)[o] *
                                         ((const float *)bias_scale->data)[bias_scale->count == 1 ? 0 : o]
                                   : ((const float *)bias->data)[o];
    return 1;
}

/* ---- Convolution ---- */

typedef struct { /* N vectors of the outputs of one group of filters */
    const number *in, *weights, *bias, *residual;
    const int32_t *offsets;
    const vector *caps;
    const lanes *inside;
    int64_t taps, rows, plane;
    number *out;
} block;

#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 28")
#endif

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
    vector x[MOST_TOGETHER];
    UNROLLED for (int n = 0; n < N; n++) x[n] = *(const vector *)(in + n * LANES);
    UNROLLED for (int m = 0; m < M; m++) {
        UNROLLED for (int n = 0; n < N; n++) sums[m * N + n] += weights[m] * x[n];
    }
}

static inline __attribute__((always_inline)) void computed(const int M, const int N, const block *b) {
    vector sums[MOST];
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
    for (int64_t pairs = b->taps / 2; pairs > 0; pairs--, offsets += 2, weights += 2 * M) { /* half the counting */
        tapped(M, N, sums, in + offsets[0], weights);
        tapped(M, N, sums, in + offsets[1], weights + M);
    }
    if (b->taps % 2) tapped(M, N, sums, in + offsets[0], weights);
    UNROLLED for (int m = 0; m < M; m++) {
        if (m >= b->rows) return;
        vector *sum = sums + m * N, *out = (vector *)(b->out + m * b->plane);
        if (b->caps) {
            UNROLLED for (int n = 0; n < N; n++) sum[n] = smaller(larger(sum[n], (vector){0}), b->caps[n]);
        } else {
            UNROLLED for (int n = 0; n < N; n++) sum[n] = (vector)((lanes)sum[n] & b->inside[n]);
        }
        UNROLLED for (int n = 0; n < N; n++) out[n] = sum[n];
    }
}

#define BLOCK(M, N) \
    static void block_##M##_##N(const block *b) { computed(M, N, b); }
#define TWO(DO, M) DO(M, 1) DO(M, 2)
#define SIX(DO, M) TWO(DO, M) DO(M, 3) DO(M, 4) DO(M, 5) DO(M, 6)
#define TWELVE(DO, M) SIX(DO, M) DO(M, 7) DO(M, 8) DO(M, 9) DO(M, 10) DO(M, 11) DO(M, 12)
#define TWENTY_FOUR(DO, M)                                                                                                \
    TWELVE(DO, M) DO(M, 13) DO(M, 14) DO(M, 15) DO(M, 16) DO(M, 17) DO(M, 18) DO(M, 19) DO(M, 20) DO(M, 21) DO(M, 22) \
        DO(M, 23) DO(M, 24)
#define TWENTY_EIGHT(DO, M) TWENTY_FOUR(DO, M) DO(M, 25) DO(M, 26) DO(M, 27) DO(M, 28)
#if defined(__AVX512F__)
#define TO_MOST TWENTY_EIGHT
#define TO_MOST_TOGETHER SIX
#elif defined(__AVX2__)
#define TO_MOST TWELVE
#define TO_MOST_TOGETHER TWO
#else
#define TO_MOST TWENTY_FOUR
#define TO_MOST_TOGETHER SIX
#endif
TO_MOST(BLOCK, 1)
TO_MOST_TOGETHER(BLOCK, 4)
#define NAME(M, N) block_##M##_##N,
static void (*const ALONE[MOST])(const block *) = {TO_MOST(NAME, 1)};
static void (*const JOINED[MOST_TOGETHER])(const block *) = {TO_MOST_TOGETHER(NAME, 4)};

/* Groups `begin` to `end` of a convolution: outside pieces of the plane, whose inputs stay near, inside filters. */
static void convolved(const network *net, const step *s, const layer *l, number **activations, int64_t begin, int64_t end) {
    const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
    const number *in = activations[s->from] + from->first;
    const number *residual = s->residual ? activations[s->residual - 1] + to->first : NULL;
    number *out = activations[s->to] + to->first;
    int64_t vectors = vectors_of(to), most = l->rows == 1 ? MOST : MOST_TOGETHER;
    int64_t pieces = (vectors + most - 1) / most;
    block b = {.plane = to->plane};
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t v = vectors * piece / pieces, count = vectors * (piece + 1) / pieces - v, at = v * LANES;
        b.in = in + at;
        b.inside = to->inside + v;
        b.caps = l->caps ? l->caps + v : NULL;
        for (int64_t group = begin; group < end; group++) {
            int64_t first = group * l->rows, start = l->starts[group];
            b.weights = l->weights + start * l->rows;
            b.offsets = l->offsets + start;
            b.taps = l->starts[group + 1] - start;
            b.bias = l->bias + first;
            b.rows = l->outputs - first < l->rows ? l->outputs - first : l->rows;
            b.out = out + first * to->plane + at;
            b.residual = residual ? residual + first * to->plane + at : NULL;
            if (l->rows == 1)
                ALONE[count - 1](&b);
            else
                JOINED[count - 1](&b);
        }
    }
}

/* ---- Linear layers ---- */

static float clamped(const step *s, float value) { return s->relu ? fminf(fmaxf(value, 0), ceiling_of(s)) : value; }

static void multiplied(const network *net, const step *s, const layer *l, number **activations, int64_t begin, int64_t end) {
    const number *in = activations[s->from];
    number *out = activations[s->to];
    for (int64_t group = begin; group < end; group++) {
        const int32_t *offsets = l->offsets + l->starts[group];
        const number *weights = l->weights + l->starts[group] * l->rows;
        int64_t count = l->starts[group + 1] - l->starts[group], tap = 0;
        if (l->rows == 1) {
            number sums[4] = {l->bias[group]};
            for (; tap + 4 <= count; tap += 4)
                for (int i = 0; i < 4; i++) sums[i] += weights[tap + i] * in[offsets[tap + i]];
            for (; tap < count; tap++) sums[0] += weights[tap] * in[offsets[tap]];
            out[group] = clamped(s, sums[0] + sums[1] + (sums[2] + sums[3]));
            continue;
        }
        vector sums[4] = {*(const vector *)(l->bias + group * LANES)};
        for (; tap + 4 <= count; tap += 4)
            for (int i = 0; i < 4; i++) sums[i] += in[offsets[tap + i]] * *(const vector *)(weights + (tap + i) * LANES);
        for (; tap < count; tap++) sums[0] += in[offsets[tap]] * *(const vector *)(weights + tap * LANES);
        vector sum = sums[0] + sums[1] + (sums[2] + sums[3]);
        for (int64_t o = group * LANES; o < (group + 1) * LANES && o < l->outputs; o++)
            out[o] = clamped(s, sum[o - group * LANES]);
    }
}

/* ---- All that has no weights, for channels `begin` to `end` of the result; split and flattened: of what they read ---- */

static void copied_in(const layout *to, const float *in, number *out) {
    int64_t rows = to->shape.height ? to->shape.height : 1, width = to->shape.height ? to->shape.width : 1;
    for (int64_t c = 0; c < to->shape.channels; c++)
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < width; x++)
                out[to->first + c * to->plane + y * to->row + x] = in[(c * rows + y) * width + x];
}

static vector every_second(const number *in) {
    const vector *pair = (const vector *)in;
    return __builtin_shufflevector(pair[0], pair[1], EVEN_LANES);
}

/* A row to the rows of its phases, `next` numbers apart. */
static inline void dealt(const number *restrict in, number *restrict out, int64_t width, int64_t stride, int64_t phases,
                         int64_t next) {
    const number *end = in + width;
    if (stride == 2 && phases == 2)
        for (; in + 2 * LANES <= end; in += 2 * LANES, out += LANES) {
            const vector *pair = (const vector *)in;
            *(vector *)out = __builtin_shufflevector(pair[0], pair[1], EVEN_LANES);
            *(vector *)(out + next) = __builtin_shufflevector(pair[0], pair[1], ODD_LANES);
        }
    for (int64_t phase = 0; phase < phases; phase++) {
        number *written = out + phase * next;
        for (const number *read = in + phase; read < end; read += stride) *written++ = *read;
    }
}

static void split(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin,
                  int64_t end) {
    const int64_t stride = s->stride, width = from->shape.width, height = from->shape.height;
    const int64_t phases = to->shape.channels == from->shape.channels ? 1 : stride;
    const int64_t next = from->shape.channels * to->plane, step_in = stride * from->row, step_out = to->row;
    for (int64_t c = begin; c < end; c++)
        for (int64_t top = 0; top < phases; top++) {
            const number *row = in + from->first + c * from->plane + top * from->row;
            number *written = out + to->first + c * to->plane + top * phases * next;
            for (int64_t y = top; y < height; y += stride, row += step_in, written += step_out)
                dealt(row, written, width, stride, phases, next);
        }
}

static void added(const step *s, const layout *to, const number *in, const number *other, number *out, int64_t begin,
                  int64_t end) {
    for (int64_t c = begin; c < end; c++)
        for (int64_t y = 0; y < (to->shape.height ? to->shape.height : 1); y++) {
            int64_t at = to->first + c * to->plane + y * to->row, width = to->shape.height ? to->shape.width : 1;
            for (int64_t i = at; i < at + width; i++) out[i] = clamped(s, in[i] + (other ? other[i] : 0));
        }
}

static number joined(int maximum, number a, number b) { return !maximum ? a + b : a > b ? a : b; }

/* One row of a window's column: out[x] joined with in[x * stride]. */
static void swept(int maximum, int64_t stride, const number *in, number *out, int64_t count) {
    int64_t x = 0;
    if (maximum && stride <= 2)
        for (; x + LANES <= count; x += LANES) {
            vector given = stride == 1 ? *(const vector *)(in + x) : every_second(in + 2 * x);
            *(vector *)(out + x) = larger(*(vector *)(out + x), given);
        }
    for (; x < count; x++) out[x] = joined(maximum, out[x], in[stride * x]);
}

static int64_t within(int64_t begin, int64_t length, int64_t size) { /* how much of a window lies in the plane */
    int64_t end = begin + length < size ? begin + length : size;
    return end - (begin < 0 ? 0 : begin);
}

static void pooled(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin,
                   int64_t end) {
    int maximum = s->kind == MAX_POOL;
    int64_t high = from->shape.height, wide = from->shape.width, area = s->kernel_height * s->kernel_width;
    for (int64_t c = begin; c < end; c++)
        for (int64_t y = 0; y < to->shape.height; y++) {
            number *row = out + to->first + c * to->plane + y * to->row;
            const number *plane = in + from->first + c * from->plane;
            int64_t top = y * s->stride - s->pad;
            for (int64_t x = 0; x < to->shape.width; x++) row[x] = maximum ? -INFINITY : 0;
            for (int64_t v = top < 0 ? 0 : top; v < top + s->kernel_height && v < high; v++)
                for (int64_t u = -s->pad; u < s->kernel_width - s->pad; u++) {
                    int64_t first = u < 0 ? (s->stride - 1 - u) / s->stride : 0;
                    int64_t last = u < wide ? (wide - 1 - u) / s->stride : -1;
                    if (last >= to->shape.width) last = to->shape.width - 1;
                    swept(maximum, s->stride, plane + v * from->row + first * s->stride + u, row + first, last - first + 1);
                }
            for (int64_t x = 0; x < to->shape.width; x++) {
                int64_t count = within(top, s->kernel_height, high) *
                                within(x * s->stride - s->pad, s->kernel_width, wide);
                row[x] = clamped(s, maximum ? row[x] : row[x] / (s->count_padding ? area : count));
            }
        }
}

static void averaged(const step *s, const layout *from, const number *in, number *out, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
        const vector *plane = (const vector *)(in + from->first + c * from->plane);
        floats sums = {0}; /* between the rows are zeros */
        for (int64_t v = 0; v < vectors_of(from); v++) sums += __builtin_convertvector(plane[v], floats);
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += sums[i];
        out[c] = clamped(s, sum / (from->shape.height * from->shape.width));
    }
}

static void flattened(const layout *from, const number *in, number *out, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++)
        for (int64_t y = 0; y < from->shape.height; y++)
            memcpy(out + (c * from->shape.height + y) * from->shape.width, in + from->first + c * from->plane + y * from->row,
                   sizeof(number) * from->shape.width);
}

/* ---- A whole inference ---- */

typedef struct { /* one step of one inference, in parts for several threads */
    const network *net;
    const step *step;
    const layer *layer;
    number **activations;
    int64_t units, parts;
} work;

static void worked(void *given, size_t part) {
    const work *w = given;
    const step *s = w->step;
    const layout *from = w->net->layouts + s->from, *to = w->net->layouts + s->to;
    const number *in = w->activations[s->from], *other = s->residual ? w->activations[s->residual - 1] : NULL;
    number *out = w->activations[s->to];
    int64_t begin = w->units * (int64_t)part / w->parts, end = w->units * ((int64_t)part + 1) / w->parts;
    switch (s->kind) {
        case SPLIT: split(s, from, to, in, out, begin, end); break;
        case CONVOLUTION: convolved(w->net, s, w->layer, w->activations, begin, end); break;
        case LINEAR: multiplied(w->net, s, w->layer, w->activations, begin, end); break;
        case ADD: added(s, to, in, other, out, begin, end); break;
        case MAX_POOL:
        case AVERAGE_POOL: pooled(s, from, to, in, out, begin, end); break;
        case MEAN: averaged(s, from, in, out, begin, end); break;
        case FLATTEN: flattened(from, in, out, begin, end); break;
    }
}

enum { PARTS = 16, WORTH_A_THREAD = 1 << 18 }; /* multiply-adds below which a step stays on its thread */

/* From `in` (input of one image) to `out` (its scores). With a context, long steps are shared among its threads. */
static status *inferred(const network *net, number **activations, const float *in, float *out, const kernel_context *context) {
    for (int64_t i = 0; i < net->step_count; i++) {
        const step *s = net->steps + i;
        const layer *l = net->layers + i;
        const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
        if (s->kind == INPUT) {
            copied_in(to, in, activations[s->to]);
            continue;
        }
        if (s->kind == OUTPUT) {
            for (int64_t o = 0; o < from->shape.channels; o++) out[o] = activations[s->from][o];
            continue;
        }
        int64_t units = s->kind == FLATTEN || s->kind == SPLIT ? from->shape.channels : to->shape.channels;
        int64_t cost = units * to->plane;
        if (l->rows) {
            units = (l->outputs + l->rows - 1) / l->rows;
            cost = l->starts[units] * l->rows * to->plane;
        }
        work w = {net, s, l, activations, units, 1};
        if (!context || cost < WORTH_A_THREAD) {
            worked(&w, 0);
            continue;
        }
        w.parts = units < PARTS ? units : PARTS;
        status *failed = net->api->parallel_for(context, worked, w.parts, 0, &w);
        if (failed) return failed;
    }
    return NULL;
}

static workspace *borrowed(network *net) {
    pthread_mutex_lock(&net->lock);
    workspace *found = net->idle;
    if (found) net->idle = found->next;
    pthread_mutex_unlock(&net->lock);
    if (found) return found;
    int64_t size = 0;
    for (int64_t i = 0; i < net->activation_count; i++) size += net->layouts[i].size;
    workspace *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    made->memory = aligned_alloc(sizeof(vector), sizeof(number) * size);
    made->activations = calloc(net->activation_count, sizeof(number *));
    if (!made->memory || !made->activations) {
        free(made->memory), free(made->activations), free(made);
        return NULL;
    }
    memset(made->memory, 0, sizeof(number) * size); /* the zeros of all padding, for good */
    for (int64_t i = 0, at = 0; i < net->activation_count; at += net->layouts[i++].size)
        made->activations[i] = made->memory + at;
    return made;
}

static void returned(network *net, workspace *space) {
    pthread_mutex_lock(&net->lock);
    space->next = net->idle;
    net->idle = space;
    pthread_mutex_unlock(&net->lock);
}

typedef struct {
    network *net;
    const float *in;
    float *out;
    int64_t input_size, output_size;
    int failed;
} batch;

static void one_of(void *given, size_t i) {
    batch *b = given;
    workspace *space = borrowed(b->net);
    if (!space) {
        __atomic_store_n(&b->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    inferred(b->net, space->activations, b->in + i * b->input_size, b->out + i * b->output_size, NULL);
    returned(b->net, space);
}

static status *compute(void *kernel, kernel_context *context) {
    network *net = kernel;
    const api *api = net->api;
    const value *input;
    value *output;
    tensor_shape *shape;
    int64_t dimensions[4] = {0};
    size_t count;
    batch b = {.net = net,
               .input_size = elements(net->layouts[net->steps[0].to].shape),
               .output_size = elements(net->layouts[net->steps[net->step_count - 1].from].shape)};
    status *failed = api->input(context, 0, &input);
    if (failed || (failed = api->shape_of(input, &shape))) return failed;
    failed = api->dimension_count(shape, &count);
    if (!failed) failed = api->dimensions(shape, dimensions, count < 4 ? count : 4);
    size_t size = 0;
    if (!failed) failed = api->element_count(shape, &size);
    api->release_shape(shape);
    if (failed) return failed;
    if ((int64_t)size != dimensions[0] * b.input_size)
        return api->create_status(FAILED, "rewind sparse engine: the input has another shape than the network takes");
    int64_t scores[2] = {dimensions[0], b.output_size};
    if ((failed = api->output(context, 0, scores, 2, &output))) return failed;
    if ((failed = api->tensor_data((value *)input, (void **)&b.in))) return failed;
    if ((failed = api->tensor_data(output, (void **)&b.out))) return failed;
    if (dimensions[0] > 1) {
        failed = api->parallel_for(context, one_of, dimensions[0], 0, &b);
    } else if (dimensions[0] == 1) {
        workspace *space = borrowed(net);
        b.failed = !space;
        if (space) failed = inferred(net, space->activations, b.in, b.out, context), returned(net, space);
    }
    if (!failed && b.failed) failed = api->create_status(FAILED, "rewind sparse engine: out of memory");
    return failed;
}

static void destroy(void *kernel) {
    network *net = kernel;
    for (int64_t i = 0; net->layers && i < net->step_count; i++)
        free(net->layers[i].starts), free(net->layers[i].offsets), free(net->layers[i].weights), free(net->layers[i].bias),
            free(net->layers[i].caps);
    for (int64_t i = 0; net->layouts && i < net->activation_count; i++) free(net->layouts[i].inside);
    for (workspace *space = net->idle, *next; space; space = next) {
        next = space->next;
        free(space->memory), free(space->activations), free(space);
    }
    pthread_mutex_destroy(&net->lock);
    free(net->layers), free(net->steps), free(net->layouts), free(net);
}

static int in_range(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

static int same(shape a, shape b) { return !memcmp(&a, &b, sizeof a); }

static int possible(shape s) {
    return in_range(s.channels, 1, 1 << 24) && in_range(s.height, 0, 1 << 14) && in_range(s.width, 0, 1 << 14) &&
           in_range(s.pad, 0, 64) && !s.height == !s.width && laid_out(s).size < INT32_MAX;
}

/* Every tap of the kernel must be in a phase that is there, and reach no further than the zeros around a plane. */
static int reaches(const step *s, const layout *from) {
    int64_t pad = from->shape.pad;
    if (s->kernel_height * s->kernel_width == 1 && s->pad % s->stride) return 0;
    return floored(-s->pad, s->stride) >= -pad && floored(s->kernel_height - 1 - s->pad, s->stride) <= pad &&
           floored(s->kernel_width - 1 - s->pad, s->stride) <= pad;
}

static int fitting(const step *s, const network *net, int64_t inputs) {
    const layout *from = net->layouts + s->from;
    shape in = from->shape, out = net->layouts[s->to].shape;
    int64_t streams = s->coding == PLAIN ? 1 : s->coding == RICE ? 3 : 2, area = s->kernel_height * s->kernel_width;
    int64_t phases = area == 1 ? 1 : s->stride * s->stride, part = phases * s->groups;
    int weighted = s->kind == CONVOLUTION || s->kind == LINEAR;
    if (s->residual && !same(net->layouts[s->residual - 1].shape, out)) return 0;
    if (s->ceiling && !s->relu) return 0;
    if (weighted && out.channels * (in.channels / part) >= INT32_MAX / area) return 0;
    if (weighted && (s->weights < 1 || s->weights + streams > inputs || !in_range(s->scale, 0, inputs - 1) ||
                     !in_range(s->bias, 0, inputs - 1) || !in_range(s->bias_scale, 0, inputs - 1)))
        return 0;
    switch (s->kind) {
        case SPLIT:
            return in.height && out.height == (in.height + s->stride - 1) / s->stride &&
                   out.width == (in.width + s->stride - 1) / s->stride &&
                   (out.channels == in.channels || out.channels == in.channels * s->stride * s->stride);
        case CONVOLUTION:
            return in.height && in.height == out.height && in.width == out.width && in.pad == out.pad &&
                   in.channels % part == 0 && out.channels % s->groups == 0 && reaches(s, from);
        case LINEAR: return !in.height && !out.height && area == 1 && s->stride == 1 && !s->pad && s->groups == 1;
        case ADD: return same(in, out);
        case MAX_POOL:
        case AVERAGE_POOL:
            return in.height && in.channels == out.channels && s->pad < s->kernel_height && s->pad < s->kernel_width &&
                   in.height + 2 * s->pad >= s->kernel_height && in.width + 2 * s->pad >= s->kernel_width &&
                   out.height == (in.height + 2 * s->pad - s->kernel_height) / s->stride + 1 &&
                   out.width == (in.width + 2 * s->pad - s->kernel_width) / s->stride + 1;
        case MEAN: return in.height && !out.height && in.channels == out.channels;
        case FLATTEN: return in.height && !out.height && out.channels == elements(in);
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
            !in_range(s->kernel_width, 1, 64) || !in_range(s->stride, 1, 64) || !in_range(s->pad, 0, 64) ||
            !in_range(s->groups, 1, 1 << 24) || !in_range(s->coding, PLAIN, RICE) || !in_range(s->low_bits, 0, 30) ||
            !in_range(s->weights, 0, inputs - 1))
            return 0;
        if (i == 0 ? s->kind != INPUT : i == net->step_count - 1 ? s->kind != OUTPUT : !fitting(s, net, inputs)) return 0;
    }
    return net->layouts[net->steps[net->step_count - 1].from].shape.height == 0;
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

static status *create(const custom_operator *self, const api *api, const kernel_info *info, void **kernel) {
    size_t size = 0, inputs = 0;
    status *failed = api->integers(info, "program", NULL, &size);
    if (failed || (failed = api->input_count(info, &inputs))) return failed;
    int64_t *program = calloc(size + 2, sizeof *program);
    constant *constants = calloc(inputs, sizeof *constants);
    network *net = calloc(1, sizeof *net);
    const char *wrong = "rewind sparse engine: out of memory";
    if (!program || !constants || !net) goto refuse;
    pthread_mutex_init(&net->lock, NULL);
    if ((failed = api->integers(info, "program", program, &size))) goto refuse;
    net->api = api;
    net->activation_count = program[0], net->step_count = program[1];
    wrong = "rewind sparse engine: the program is not one that this library knows";
    if (!in_range(program[0], 1, 1 << 16) || !in_range(program[1], 2, 1 << 16)) goto refuse;
    net->layouts = calloc(net->activation_count, sizeof *net->layouts);
    net->steps = calloc(net->step_count, sizeof *net->steps);
    net->layers = calloc(net->step_count, sizeof *net->layers);
    if (!net->layouts || !net->steps || !net->layers) goto refuse;
    const int64_t *at = program + 2, *end = program + size;
    for (int64_t i = 0; i < net->activation_count; i++) at = told(at, end, &net->layouts[i].shape, SHAPE_FIELDS);
    for (int64_t i = 0; i < net->step_count; i++) at = told(at, end, net->steps + i, STEP_FIELDS);
    if (at != end || !fits(net, inputs)) goto refuse;
    for (int64_t i = 0; i < net->activation_count; i++) {
        net->layouts[i] = laid_out(net->layouts[i].shape);
        if (!masked(net->layouts + i)) goto refuse;
    }
    for (size_t i = 1; i < inputs; i++) {
        const value *tensor = NULL;
        tensor_shape *shape;
        int is_constant = 0;
        size_t count;
        if ((failed = api->constant_input(info, i, &is_constant, &tensor))) goto refuse;
        if (!is_constant) goto refuse;
        if ((failed = api->shape_of(tensor, &shape))) goto refuse;
        failed = api->element_count(shape, &count);
        if (!failed) failed = api->element_type(shape, &constants[i].type);
        api->release_shape(shape);
        if (failed || (failed = api->tensor_data((value *)tensor, (void **)&constants[i].data))) goto refuse;
        constants[i].count = (int64_t)count;
    }
    wrong = "rewind sparse engine: weights do not fit to the program";
    for (int64_t i = 0; i < net->step_count; i++)
        if ((net->steps[i].kind == CONVOLUTION || net->steps[i].kind == LINEAR) &&
            !weighted(net, net->steps + i, constants, net->layers + i))
            goto refuse;
    free(program), free(constants);
    *kernel = net;
    return NULL;
refuse:
    free(program), free(constants);
    if (net) destroy(net);
    return failed ? failed : api->create_status(FAILED, wrong);
}

static const char *name(const custom_operator *self) { return "Net"; }
static const char *provider(const custom_operator *self) { return NULL; }
static size_t two(const custom_operator *self) { return 2; }
static size_t one(const custom_operator *self) { return 1; }
static int input_type(const custom_operator *self, size_t i) { return i ? ANY : FLOAT; }
static int output_type(const custom_operator *self, size_t i) { return FLOAT; }
static int input_characteristic(const custom_operator *self, size_t i) { return i ? VARIADIC : REQUIRED; }
static int output_characteristic(const custom_operator *self, size_t i) { return REQUIRED; }
static int in_memory(const custom_operator *self, size_t i) { return 0; }
static int at_least_one(const custom_operator *self) { return 1; }
static int never(const custom_operator *self) { return 0; }

static const custom_operator NET = {
    .version = OPERATOR_INTERFACE,
    .name = name,
    .provider = provider,
    .input_type = input_type,
    .input_count = two,
    .output_type = output_type,
    .output_count = one,
    .destroy = destroy,
    .input_characteristic = input_characteristic,
    .output_characteristic = output_characteristic,
    .memory_type = in_memory,
    .fewest_inputs = at_least_one,
    .inputs_of_one_type = never,
    .fewest_outputs = at_least_one,
    .outputs_of_one_type = never,
    .create_or_fail = create,
    .compute_or_fail = compute,
};

__attribute__((visibility("default"))) status *RegisterCustomOps(session_options *options, const api_base *base) {
    const api *api = base->api_of(INTERFACE);
    domain *ours;
    if (!api) return NULL; /* too old: the operator's body in the model computes */
    status *failed = api->create_domain("rewind.engine", &ours);
    if (failed || (failed = api->domain_add(ours, &NET))) return failed;
    return api->add_domain(options, ours);
}
