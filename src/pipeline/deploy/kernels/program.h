/* The program: what Python writes (program.py), in integers */

enum kind { INPUT, OUTPUT, SPLIT, CONVOLUTION, LINEAR, ADD, MAX_POOL, AVERAGE_POOL, MEAN, MOVE, MULTIPLY, FUNCTION,
            AFFINE, CONCAT, RESIZE, SUBTRACT,
            STRIDED /* in no file: a convolution of single channels that takes every second value itself */ };
enum function { NONE, SIGMOID, SILU, HARD_SIGMOID, HARD_SWISH, LEAKY, TANH, GELU };
enum coding { PLAIN, MASK, GAPS, RICE };
enum mode { HALF_PIXEL, CORNERS, ASYMMETRIC, NEAREST }; /* of RESIZE: linear by one of three rules, or nearest */
enum { LOOPS = 6, LARGEST = 4096 }; /* LARGEST: kernel, stride, padding and spread along a side */

typedef struct { /* an activation; height 0: a plain vector of so many channels */
    int64_t channels, height, width, pad;
} shape;

typedef struct { /* of MOVE: from 0 to `count`; how far each goes, 3 times that and 0 for channels, 1 for rows, 2 for columns */
    int64_t count, from, to;
} loop;

typedef struct {
    int64_t kind, from, to, residual; /* activations; residual: one more than its number, 0: none */
    int64_t kernel_height, kernel_width, stride, pad, groups; /* of OUTPUT, a height of 3: rows without a height */
    int64_t count_padding;             /* zeros of the padding count in an average */
    int64_t relu, ceiling;             /* nothing below 0; nothing above: bits of a float32, 0: none */
    int64_t coding, weights, low_bits; /* of the weights, the first input that has them (of INPUT and OUTPUT: which), Rice's k */
    int64_t more; /* filters behind each, whose values stand at its places: a block */
    int64_t is_int8, scale, bias, variance; /* inputs; 0: none */
    int64_t left, spread;                   /* more zeros on the left than on top; places between taps */
    int64_t function, first, second;          /* of single values; bits of float32 that it takes */
    int64_t mode, wider, transposed; /* wider: more stride to the right than down; transposed: inputs before outputs */
    int64_t gate;                    /* of SILU and HARD_SWISH: what their other factor is at most; bits of a float32, 0: 1 */
    int64_t channel, row, column;    /* of MOVE: where it begins to read */
    int64_t pixels; /* of INPUT: bytes, and how they become numbers (pixels.h) */
    loop loops[LOOPS]; /* of INPUT: an operation, and the input that it has its other number from */
} step;

enum { SHAPE_FIELDS = sizeof(shape) / 8, STEP_FIELDS = sizeof(step) / 8 };

typedef struct { /* numbers from row to row, from plane to plane, before the first element, and in all */
    shape shape;
    int64_t row, plane, first, size;
    lanes *inside;   /* of a plane's vectors: all ones in the rows, zero between them */
    int32_t *gaps;   /* what is between them, from a plane's begin on, */
    int32_t *before; /* and how many of these are before a vector */
    int32_t *fours;  /* where each four of its places begins: crosswise.h */
    int64_t four_count;
} layout;

/* Filters, `rows` at a time, and inputs in chunks: group g has the taps starts[c * groups + g] to the next of chunk c. */
typedef struct {
    int64_t rows, outputs, chunks;
    int crosswise; /* crosswise.h */
    int64_t *starts;
    int32_t *offsets; /* of a tap, from the output that it is for */
    number *weights;  /* taps x rows */
    number *bias;
    double least; /* deviation of an image */
} layer;

typedef struct { /* so many steps from one on that are computed together, in so many bands: chains.h */
    int64_t steps, bands;
} chain;

typedef struct workspace {
    struct workspace *next;
    number *memory, *windows, **activations; /* of each part of a chain */
} workspace;

typedef struct {
    const api *api;
    int64_t activation_count, step_count, given, asked; /* inputs that are no constants; outputs */
    layout *layouts;
    step *steps;
    layer *layers;
    chain *chains; /* by the step that begins it */
    int64_t windows; /* numbers that the windows of a chain take, at most */
    pthread_mutex_t lock;
    workspace *idle; /* one for every inference that has run at the same time as others */
} network;

static int64_t groups_of(const layer *l) { return (l->outputs + l->rows - 1) / l->rows; }

static int64_t across(const step *s) { return s->stride + s->wider; }

static int64_t quotient_up(int64_t a, int64_t b) { return a <= 0 ? -(-a / b) : (a - 1) / b + 1; }

static int64_t rounded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

/* Planes begin where vectors do: what a 1x1 convolution loads crosses no line of the cache. */
static layout laid_out(shape s) {
    if (!s.height) return (layout){s, 0, 1, 0, rounded(s.channels), NULL, NULL, NULL, NULL, 0};
    int64_t row = s.width + s.pad, margin = s.pad * row;
    int64_t plane = rounded(rounded(s.height * row) + margin), first = rounded(margin + s.pad);
    return (layout){s, row, plane, first, rounded(first + s.channels * plane + margin + 2 * LANES), NULL, NULL, NULL, NULL, 0};
}

/* A part of planes that moves along them: chains.h. */
static int is_window(const layout *l) { return !l->size; }

static int64_t elements(shape s) { return s.channels * (s.height ? s.height * s.width : 1); }

static int64_t vectors_of(const layout *l) { return rounded(l->shape.height * l->row) / LANES; }

static double bytes_of(const network *net, int64_t activation) {
    const layout *l = net->layouts + activation;
    return (double)l->shape.channels * l->shape.height * l->row * sizeof(number);
}

/* Bytes of what a step makes that do not stay in the second cache. */
static double bytes_beyond(const network *net, const step *s) {
    double bytes = bytes_of(net, s->to);
    return bytes > FAR / 2 ? bytes : 0;
}

/* A plane's places, four at once: row by row, or in one line with what lies between rows where that takes fewer. */
static int fours(layout *l) {
    int64_t high = l->shape.height, wide = quotient_up(l->shape.width, AT_ONCE), line = (high - 1) * l->row;
    int64_t whole = high ? quotient_up(line + l->shape.width, AT_ONCE) : 0;
    int by_rows = high * wide < whole && line + wide * AT_ONCE <= rounded(high * l->row);
    l->four_count = by_rows ? high * wide : whole;
    l->fours = malloc(sizeof(int32_t) * (l->four_count + 1));
    for (int64_t i = 0; l->fours && i < l->four_count; i++)
        l->fours[i] = by_rows ? i / wide * l->row + i % wide * AT_ONCE : i * AT_ONCE;
    return l->fours != NULL;
}

static int masked(layout *l) {
    int64_t vectors = vectors_of(l), size = vectors * LANES, found = 0;
    lane *inside = calloc(size + 1, sizeof *inside);
    l->inside = (lanes *)inside;
    l->gaps = malloc(sizeof(int32_t) * (size - l->shape.height * l->shape.width + 1));
    l->before = malloc(sizeof(int32_t) * (vectors + 1));
    if (!inside || !l->gaps || !l->before || !fours(l)) return 0;
    for (int64_t y = 0; y < l->shape.height; y++)
        for (int64_t x = 0; x < l->shape.width; x++) inside[y * l->row + x] = -1;
    for (int64_t i = 0; i < size; i++) {
        if (i % LANES == 0) l->before[i / LANES] = found;
        if (!inside[i]) l->gaps[found++] = i;
    }
    l->before[vectors] = found;
    return 1;
}
