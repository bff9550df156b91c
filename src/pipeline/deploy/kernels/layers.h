/* Linear layers */

static float clamped(const step *s, float value) { /* no number stays none */
    if (s->relu && value < 0) return 0;
    return s->relu && value > ceiling_of(s) ? ceiling_of(s) : value;
}

static float result_of(const step *s, float value) { return s->function ? single(s, value) : clamped(s, value); }

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
            out[group] = result_of(s, sums[0] + sums[1] + (sums[2] + sums[3]));
            continue;
        }
        vector sums[4] = {*(const vector *)(l->bias + group * LANES)};
        for (; tap + 4 <= count; tap += 4)
            for (int i = 0; i < 4; i++) sums[i] += in[offsets[tap + i]] * *(const vector *)(weights + (tap + i) * LANES);
        for (; tap < count; tap++) sums[0] += in[offsets[tap]] * *(const vector *)(weights + tap * LANES);
        vector sum = sums[0] + sums[1] + (sums[2] + sums[3]);
        for (int64_t o = group * LANES; o < (group + 1) * LANES && o < l->outputs; o++)
            out[o] = result_of(s, sum[o - group * LANES]);
    }
}

/* All that has no weights, for channels `begin` to `end` of the result; split: of what it reads */

static void copied_in(const step *s, const layout *to, const float *in, number *out) {
    int64_t rows = to->shape.height ? to->shape.height : 1, width = to->shape.height ? to->shape.width : 1;
    for (int64_t c = 0; c < to->shape.channels; c++)
        for (int64_t y = 0; y < rows; y++, in += width) {
            number *row = out + to->first + c * to->plane + y * to->row;
            for (int64_t x = 0; x < width; x++) row[x] = in[x];
            for (int64_t x = 0; s->relu && x < width; x++) row[x] = clamped(s, in[x]);
        }
}

static void copied_out(const layout *from, const number *in, float *out) {
    int64_t rows = from->shape.height ? from->shape.height : 1, width = from->shape.height ? from->shape.width : 1;
    for (int64_t c = 0; c < from->shape.channels; c++)
        for (int64_t y = 0; y < rows; y++)
            for (int64_t x = 0; x < width; x++)
                out[(c * rows + y) * width + x] = in[from->first + c * from->plane + y * from->row + x];
}

typedef struct { /* of as many pairs as a vector has numbers: their first ones, and their second ones */
    vector first, second;
} pairs;

#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
static inline pairs pairs_at(const number *in) {
    float16x8x2_t found = vld2q_f16((const float16_t *)in);
    return (pairs){(vector)found.val[0], (vector)found.val[1]};
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
static inline pairs pairs_at(const number *in) {
    float32x4x2_t found = vld2q_f32(in);
    return (pairs){(vector)found.val[0], (vector)found.val[1]};
}
#else
static inline pairs pairs_at(const number *in) {
    const vector *pair = (const vector *)in;
    return (pairs){__builtin_shufflevector(pair[0], pair[1], EVEN_LANES), __builtin_shufflevector(pair[0], pair[1], ODD_LANES)};
}
#endif

static vector every_second(const number *in) { return pairs_at(in).first; }

/* A row to the rows of its phases, `next` numbers apart. */
static inline void dealt(const number *restrict in, number *restrict out, int64_t width, int64_t stride, int64_t phases,
                         int64_t next) {
    const number *end = in + width;
    if (stride == 2 && phases == 2)
        for (; in + 2 * LANES <= end; in += 2 * LANES, out += LANES) {
            pairs found = pairs_at(in);
            *(vector *)out = found.first, *(vector *)(out + next) = found.second;
        }
    if (stride == 2 && phases == 1)
        for (; in + 2 * LANES <= end; in += 2 * LANES, out += LANES) *(vector *)out = every_second(in);
    for (int64_t phase = 0; phase < phases; phase++) {
        number *written = out + phase * next;
        for (const number *read = in + phase; read < end; read += stride) *written++ = *read;
    }
}

/* Rows `top` to `bottom` of the phases of channels `begin` to `end`. A window holds what was there: what is none is made 0. */
static void split(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin, int64_t end,
                  int64_t top, int64_t bottom) {
    const int64_t stride = s->stride, width = from->shape.width, height = from->shape.height;
    const int64_t alone = to->shape.channels == from->shape.channels, down = alone ? 1 : stride, right = alone ? 1 : across(s);
    const int64_t next = from->shape.channels * to->plane, step_in = stride * from->row, step_out = to->row;
    for (int64_t c = begin; c < end; c++)
        for (int64_t phase = 0; phase < down; phase++) {
            const number *row = in + from->first + c * from->plane + (top * stride + phase) * from->row;
            number *written = out + to->first + c * to->plane + phase * right * next + top * to->row;
            for (int64_t y = top; y < bottom; y++, row += step_in, written += step_out) {
                int there = y * stride + phase < height;
                for (int64_t left = 0; is_window(to) && left < right; left++)
                    for (int64_t x = there ? quotient_up(width - left, across(s)) : 0; x < to->row; x++)
                        written[left * next + x] = 0;
                if (there) dealt(row, written, width, across(s), right, next);
            }
        }
}

/* N vectors of a row, from every second value of the rows that a filter's taps are in: two taps that are side by side are one pair. */
static inline __attribute__((always_inline)) void of_a_row(const int N, const step *s, const layer *l, int64_t filter,
                                                           const number *in, number *out) {
    vector sums[N], bias = (vector){0} + l->bias[filter];
    UNROLLED for (int n = 0; n < N; n++) sums[n] = bias;
    for (int64_t tap = l->starts[filter], end = l->starts[filter + 1]; tap < end; tap++) {
        const number *read = in + l->offsets[tap];
        number first = l->weights[tap];
        if (tap + 1 < end && l->offsets[tap + 1] == l->offsets[tap] + 1) {
            number second = l->weights[++tap];
            UNROLLED for (int n = 0; n < N; n++) {
                pairs found = pairs_at(read + 2 * n * LANES);
                sums[n] += first * found.first, sums[n] += second * found.second;
            }
        } else {
            UNROLLED for (int n = 0; n < N; n++) sums[n] += first * every_second(read + 2 * n * LANES);
        }
    }
    UNROLLED for (int n = 0; n < N; n++) ((vector *)out)[n] = resulting(s, sums[n]);
}

/* Rows `top` to `bottom` of channels `begin` to `end` of a convolution of single channels with a stride of two. A row's last vector
 * may reach into the next rows, which are made after it. */
static void strided(const step *s, const layer *l, const layout *from, const layout *to, const number *in, number *out,
                    int64_t begin, int64_t end, int64_t top, int64_t bottom) {
    const int64_t width = to->shape.width, whole = width / LANES * LANES;
    for (int64_t c = begin; c < end; c++)
        for (int64_t y = top; y < bottom; y++) {
            const number *read = in + from->first + 2 * y * from->row;
            number *row = out + to->first + c * to->plane + y * to->row, last[LANES];
            int64_t x = 0, until = y * to->row + rounded(width) <= bottom * to->row ? rounded(width) : whole;
            for (; x + 8 * LANES <= until; x += 8 * LANES) of_a_row(8, s, l, c, read + 2 * x, row + x);
            for (; x + 4 * LANES <= until; x += 4 * LANES) of_a_row(4, s, l, c, read + 2 * x, row + x);
            for (; x + 2 * LANES <= until; x += 2 * LANES) of_a_row(2, s, l, c, read + 2 * x, row + x);
            for (; x < until; x += LANES) of_a_row(1, s, l, c, read + 2 * x, row + x);
            if (x < width) {
                of_a_row(1, s, l, c, read + 2 * x, last);
                memcpy(row + x, last, sizeof(number) * (width - x));
            }
            for (int64_t i = width; i < to->row; i++) row[i] = 0;
        }
}

static number joined(int maximum, number a, number b) { return !maximum ? a + b : a > b ? a : b; }

static inline vector both(int maximum, vector a, vector b) {
    if (maximum) return larger(a, b);
    return a + b;
}

static number none_of(int maximum) { return maximum ? -INFINITY : 0; }

/* Every so many numbers of as many vectors, from one on. */
static inline __attribute__((always_inline)) vector every(const int stride, const int one, const number *of) {
    if (stride == 1) return *(const vector *)of;
    if (stride == 2) return one ? pairs_at(of).second : pairs_at(of).first;
    vector found;
    UNROLLED for (int i = 0; i < LANES; i++) found[i] = of[i * stride + one];
    return found;
}

enum { FEW = 16 * LANES, STRIDES = 4 }; /* windows of a row at a time, and strides that are taken a vector at a time, at most */

static int64_t within(int64_t begin, int64_t length, int64_t size) { /* how much of a window lies in the plane */
    int64_t end = begin + length < size ? begin + length : size;
    return end - (begin < 0 ? 0 : begin);
}

typedef struct { /* windows of a row: where they begin in the plane, of how many rows, and by how many numbers a sum is divided */
    int64_t top, rows;
    number by;
} windows;

static inline windows windows_at(const step *s, const layout *from, int64_t y) {
    int64_t above = y * s->stride - s->pad, rows = within(above, s->kernel_height, from->shape.height);
    return (windows){above < 0 ? 0 : above, rows, (number)((s->count_padding ? s->kernel_height : rows) * s->kernel_width)};
}

/* Columns `first` to `last` of a channel, whose windows reach beyond no column of the plane: first down, then along. */
static inline __attribute__((always_inline)) void pooled_inside(const int stride, const int maximum, const step *s, const layout *from,
                                                                const layout *to, const number *in, number *out, int64_t first,
                                                                int64_t last) {
    const int64_t width = s->kernel_width, row = from->row;
    number columns[FEW * STRIDES + LARGEST + LANES];
    for (int64_t y = 0; y < to->shape.height; y++) {
        windows w = windows_at(s, from, y);
        for (int64_t begin = first; begin < last; begin += FEW) {
            if (begin > first && begin + LANES > last) begin = last - LANES; /* some twice */
            const int64_t count = last - begin < FEW ? last - begin : FEW;
            const number *read = in + w.top * row + begin * stride - s->pad - s->left;
            number *written = out + y * to->row + begin;
            for (int64_t x = 0; x < (count - 1) * stride + width; x += LANES) {
                vector found = *(const vector *)(read + x);
                const number *below = read + x;
                ROLLED for (int64_t v = 1; v < w.rows; v++) found = both(maximum, found, *(const vector *)(below += row));
                *(vector *)(columns + x) = found;
            }
            for (int64_t x = 0; x < count; x += LANES) {
                if (x && x + LANES > count) x = count - LANES;
                vector found = (vector){0} + none_of(maximum);
                for (int64_t u = 0; u < width; u += stride)
                    UNROLLED for (int i = 0; i < stride; i++)
                        if (u + i < width) found = both(maximum, found, every(stride, i, columns + x * stride + u));
                if (!maximum) found /= w.by;
                if (count < LANES)
                    memcpy(written, &found, sizeof(number) * count);
                else
                    *(vector *)(written + x) = found;
            }
        }
    }
}

static void pooled(const step *s, const layout *from, const layout *to, const number *in, number *out, int64_t begin,
                   int64_t end) {
    const int maximum = s->kind == MAX_POOL;
    const int64_t wide = from->shape.width, pad = s->pad + s->left, width = to->shape.width, stride = across(s);
    /* columns whose windows lie in the plane's, and are taken a vector at a time */
    const int64_t reach = wide + pad - s->kernel_width, behind = reach < 0 ? 0 : reach / stride + 1;
    const int64_t first = stride > STRIDES ? width : quotient_up(pad, stride), last = behind < width ? behind : width;
    for (int64_t c = begin; c < end; c++) {
        const number *read = in + from->first + c * from->plane;
        number *written = out + to->first + c * to->plane;
#define EITHER(STRIDE) \
    if (stride == STRIDE && maximum) pooled_inside(STRIDE, 1, s, from, to, read, written, first, last); \
    if (stride == STRIDE && !maximum) pooled_inside(STRIDE, 0, s, from, to, read, written, first, last);
        EITHER(1) EITHER(2) EITHER(3) EITHER(4)
        if (first == 0 && last == width && !s->relu) continue;
        for (int64_t y = 0; y < to->shape.height; y++, written += to->row) {
            windows w = windows_at(s, from, y);
            for (int64_t x = 0; x < width; x++) {
                if (first < last && x == first) x = last;
                if (x == width) break;
                int64_t left = x * stride - pad, columns = within(left, s->kernel_width, wide);
                number found = none_of(maximum);
                for (int64_t u = left < 0 ? 0 : left, right = u + columns; u < right; u++)
                    for (int64_t v = 0; v < w.rows; v++) found = joined(maximum, found, read[(w.top + v) * from->row + u]);
                written[x] = maximum ? found : found / (s->count_padding ? w.by : w.rows * columns);
            }
            for (int64_t x = 0; s->relu && x < width; x++) written[x] = clamped(s, written[x]);
        }
    }
}

static void averaged(const step *s, const layout *from, const number *in, number *out, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c++) {
        const vector *plane = (const vector *)(in + from->first + c * from->plane);
        floats sums[4] = {{0}}; /* between the rows are zeros */
        int64_t v = 0, vectors = vectors_of(from);
        for (; v + 4 <= vectors; v += 4)
            for (int i = 0; i < 4; i++) sums[i] += __builtin_convertvector(plane[v + i], floats);
        for (; v < vectors; v++) sums[0] += __builtin_convertvector(plane[v], floats);
        floats all = sums[0] + sums[1] + (sums[2] + sums[3]);
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += all[i];
        out[c] = clamped(s, sum / (from->shape.height * from->shape.width));
    }
}
