/* Functions of single values, and what joins two activations place by place */

typedef int32_t integers __attribute__((vector_size(sizeof(int32_t) * LANES)));

static inline floats selected(integers condition, floats yes, floats no) {
    return (floats)((condition & (integers)yes) | (~condition & (integers)no));
}

static inline floats all(float value) { return (floats){0} + value; }

static inline floats between(floats x, float low, float high) { /* no number stays none */
    x = selected(x < low, all(low), x);
    return selected(x > high, all(high), x);
}

/* e^x to two units in the last place: 2^n e^r, with |r| at most half of ln 2 (Cephes' polynomial). Added to `round`, a number
 * has its nearest integer in its last bits. */
static inline __attribute__((always_inline)) floats exponential(floats x) {
    const float round = 12582912.0f; /* 1.5 x 2^23 */
    x = between(x, -87.0f, 88.0f);
    floats shifted = x * 1.44269504f + round, n = shifted - round;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f, p = p * r + 4.1665795894e-2f, p = p * r + 1.6666665459e-1f, p = p * r + 5.0000001201e-1f;
    floats result = p * r * r + r + 1.0f;
    return (floats)((integers)result + ((integers)shifted << 23));
}

static inline floats sigmoid(floats x) { return 1.0f / (1.0f + exponential(-x)); }

/* Near zero a polynomial (Cephes'): there the difference of two numbers near 1 has lost its last digits. */
static inline floats tangent(floats x) {
    floats square = x * x, p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f, p = p * square + 1.33314422036e-1f, p = p * square - 3.33332819422e-1f;
    return selected(square < 0.390625f, p * square * x + x, 2.0f * sigmoid(2.0f * x) - 1.0f);
}

/* Abramowitz and Stegun 1964, 7.1.26: 1.5e-7 off at most. */
static inline floats error_function(floats x) {
    floats size = selected(x < 0, -x, x), t = 1.0f / (1.0f + 0.3275911f * size);
    floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f, p = p * t - 0.284496736f, p = p * t + 0.254829592f;
    floats positive = 1.0f - p * t * exponential(-size * size);
    return selected(x < 0, -positive, positive);
}

static inline __attribute__((always_inline)) floats value_of(const step *s, floats x) {
    floats y = x;
    float most = s->gate ? float_of(s->gate) : 1;
    switch (s->function) {
        case SIGMOID: y = sigmoid(x); break;
        case SILU: y = s->gate ? x * between(sigmoid(x), 0, most) : x / (1.0f + exponential(-x)); break;
        case HARD_SIGMOID: y = between(x * float_of(s->first) + float_of(s->second), 0, 1); break;
        case HARD_SWISH: y = x * between(x * float_of(s->first) + float_of(s->second), 0, most); break;
        case LEAKY: y = selected(x < 0, x * float_of(s->first), x); break;
        case TANH: y = tangent(x); break;
        case GELU: y = 0.5f * x * (1.0f + error_function(x * 0.70710678f)); break;
    }
    return s->relu ? between(y, 0, ceiling_of(s)) : y;
}

static float single(const step *s, float x) { return value_of(s, all(x))[0]; }

/* What a step makes of sums: its function, or nothing below 0 and above its ceiling. */
static inline __attribute__((always_inline)) vector resulting(const step *s, vector sum) {
    if (s->function) return __builtin_convertvector(value_of(s, __builtin_convertvector(sum, floats)), vector);
    return s->relu ? smaller((vector){0} + (number)ceiling_of(s), larger((vector){0}, sum)) : sum;
}

/* What lies between rows is zeros again. Not inlined: the loop around it would hold the constants of all functions for those without. */
static __attribute__((noinline)) void valued(const step *s, number *at, const lanes *inside, int64_t vectors) {
    for (int64_t v = 0; v < vectors; v++) {
        vector *place = (vector *)at + v;
        vector result = __builtin_convertvector(value_of(s, __builtin_convertvector(*place, floats)), vector);
        *place = (vector)((lanes)result & inside[v]);
    }
}

/* A value of each channel of the result from one of the input, and one of the other, if there is one. */
static inline floats of_two(const step *s, floats a, floats b) {
    return s->kind == MULTIPLY ? a * b : s->kind == SUBTRACT ? a - b : a + b;
}

/* Channels `begin` to `end`: a function of one activation; the sum, difference or product of two; a channel's scale and shift. The
 * other may have one value for a channel. What lies between rows is zeros again. */
static void placed(const step *s, const layer *l, const layout *to, const layout *beside, const number *in, const number *other,
                   number *out, int64_t begin, int64_t end) {
    int each = beside && to->shape.height && beside->shape.height * beside->shape.width <= 1;
    for (int64_t c = begin; c < end; c++) {
        int64_t at = to->first + c * to->plane, count = to->shape.height ? vectors_of(to) : 1;
        const number *factor = each ? other + beside->first + c * beside->plane : NULL;
        for (int64_t v = 0; v < count; v++) {
            int64_t i = at + v * LANES;
            floats a = to->shape.height ? __builtin_convertvector(*(const vector *)(in + i), floats) : all(in[at]);
            if (other && to->shape.height && !each)
                a = of_two(s, a, __builtin_convertvector(*(const vector *)(other + i), floats));
            else if (other)
                a = of_two(s, a, all(each ? *factor : other[at]));
            if (s->kind == AFFINE) a = a * all(l->weights[c]) + all(l->bias[c]);
            vector result = __builtin_convertvector(value_of(s, a), vector);
            if (to->shape.height)
                *(vector *)(out + i) = (vector)((lanes)result & to->inside[v]);
            else
                out[at] = result[0];
        }
    }
}

/* What moves values and computes none */

/* Channels of one activation, and then those of another. */
static void strung(const layout *from, const layout *to, const number *in, const number *other, number *out, int64_t begin,
                   int64_t end) {
    int64_t size = to->shape.height ? to->shape.height * to->row : 1;
    for (int64_t c = begin; c < end; c++) {
        const number *source = c < from->shape.channels ? in + c * to->plane : other + (c - from->shape.channels) * to->plane;
        memcpy(out + to->first + c * to->plane, source + to->first, sizeof(number) * size);
    }
}

static int64_t stride_of(const layout *l, int64_t coded) {
    int64_t strides[] = {l->plane, l->row, 1};
    return coded / 3 * strides[coded % 3];
}

/* The loops of a move from the one at `at` on; of that one, from `begin` to `end`. */
static void looped(const step *s, const layout *from, const layout *to, int at, const number *in, number *out, int64_t begin,
                   int64_t end) {
    int64_t down = stride_of(from, s->loops[at].from), over = stride_of(to, s->loops[at].to);
    if (at + 1 < LOOPS && s->loops[at + 1].count) {
        for (int64_t i = begin; i < end; i++)
            looped(s, from, to, at + 1, in + i * down, out + i * over, 0, s->loops[at + 1].count);
    } else if (down == 1 && over == 1) {
        memcpy(out + begin, in + begin, sizeof(number) * (end - begin));
    } else {
        for (int64_t i = begin; i < end; i++) out[i * over] = in[i * down];
    }
}

static void moved(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin, int64_t end) {
    in += from->first + s->channel * from->plane + s->row * from->row + s->column;
    looped(s, from, to, 0, in, out + to->first, begin, end);
}

typedef struct { /* where a place of a larger or smaller plane lies between two of another, along one side */
    int64_t low, high;
    float share; /* of the higher one */
} between_two;

static between_two lying(int64_t mode, int64_t place, int64_t size, int64_t count) {
    float scale = (float)count / size, at = place / scale;
    if (mode == HALF_PIXEL) at = (place + 0.5f) / scale - 0.5f;
    if (mode == CORNERS) at = count == 1 ? 0 : place * (float)(size - 1) / (count - 1);
    at = at < 0 ? 0 : at > size - 1 ? size - 1 : at;
    int64_t low = (int64_t)at;
    return (between_two){low, low + 1 < size ? low + 1 : low, mode == NEAREST ? 0 : at - low};
}

/* To planes of another size: values between those of neighbours, or the nearest. */
static void resized(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin,
                    int64_t end) {
    enum { AT_ONCE = 64 };
    between_two columns[AT_ONCE];
    for (int64_t left = 0; left < to->shape.width; left += AT_ONCE) {
        int64_t count = to->shape.width - left < AT_ONCE ? to->shape.width - left : AT_ONCE;
        for (int64_t x = 0; x < count; x++) columns[x] = lying(s->mode, left + x, from->shape.width, to->shape.width);
        for (int64_t c = begin; c < end; c++)
            for (int64_t y = 0; y < to->shape.height; y++) {
                between_two row = lying(s->mode, y, from->shape.height, to->shape.height);
                const number *plane = in + from->first + c * from->plane;
                const number *above = plane + row.low * from->row, *below = plane + row.high * from->row;
                number *written = out + to->first + c * to->plane + y * to->row + left;
                for (int64_t x = 0; x < count; x++) {
                    between_two u = columns[x];
                    float top = u.share ? above[u.low] * (1 - u.share) + above[u.high] * u.share : above[u.low];
                    float bottom = u.share ? below[u.low] * (1 - u.share) + below[u.high] * u.share : below[u.low];
                    written[x] = row.share ? top * (1 - row.share) + bottom * row.share : top;
                }
            }
    }
}
