/* Sparse inference: a pruned network, or as much of it as is known here, as one operator of ONNX Runtime.
 *
 * A plane (one channel of an activation) is stored as its rows, each followed by `pad` zeros, and planes are separated by
 * at least `pad` rows of zeros. Those zeros serve as the padding on every side, so a convolution over the flattened plane
 * has no borders: each weight that is not zero is one offset, and
 *
 *     out[i] += weight * in[i + offset]        for all i of the plane
 *
 * is its part of every output at once; what comes out between the rows is masked to zeros. N vectors of M output
 * channels stay in registers while their weights stream by: M = 1 for sparse filters, where a weight costs one load;
 * M = 2 or 4 where neighbouring filters have the same taps (blocks, layers that are dense): one load serves so many. Of
 * small planes a vector may have one place of many filters instead (crosswise.h).
 *
 * A convolution of stride s reads s * s planes made before, (row mod s, column mod s) of its input, at stride 1.
 * Weights arrive coded as the model stores them (pack.py) and are decoded once, when a session is made.
 *
 * A `number` is what is computed in: a float, or a half of one where the compiler is told that the processor computes
 * in these, twice as many at a time.
 */
#include "numbers.h"
#include "interface.h"
#include "program.h"
#include "weights.h"
#include "functions.h"
#include "crosswise.h"
#include "convolution.h"
#include "layers.h"
#include "chains.h"
#include "pixels.h"
#include "validation.h"

/* A whole inference */

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
        case SPLIT: split(s, from, to, in, out, begin, end, 0, to->shape.height); break;
        case CONVOLUTION: convolved(w->net, s, w->layer, w->activations, begin, end); break;
        case STRIDED: strided(s, w->layer, from, to, in, out, begin, end, 0, to->shape.height); break;
        case LINEAR: multiplied(w->net, s, w->layer, w->activations, begin, end); break;
        case ADD:
        case SUBTRACT:
        case MULTIPLY:
        case FUNCTION:
        case AFFINE:
            placed(s, w->layer, to, other ? w->net->layouts + s->residual - 1 : NULL, in, other, out, begin, end);
            break;
        case CONCAT: strung(from, to, in, other, out, begin, end); break;
        case RESIZE: resized(s, from, to, in, out, begin, end); break;
        case MAX_POOL:
        case AVERAGE_POOL: pooled(s, from, to, in, out, begin, end); break;
        case MEAN: averaged(s, from, in, out, begin, end); break;
        case MOVE: moved(s, from, to, in, out, begin, end); break;
    }
}

/* Multiply-adds below which a step stays on its thread, and of how many a place of a pooling's window takes the time. */
enum { PARTS = 16, WORTH_A_THREAD = 1 << 18, WINDOW = 4 };

enum { SIDE = 64 }; /* inputs that are no constants, and outputs: at most so many */

typedef struct { /* where a network's inputs and outputs lie, and how many numbers an image has in each */
    const void *in[SIDE]; /* floats, or bytes that are pixels */
    float *out[SIDE];
    int64_t in_size[SIDE], out_size[SIDE];
} ends;

/* Multiply-adds of a step, or what takes as long. */
static int64_t cost_of(const network *net, int64_t i) {
    const step *s = net->steps + i;
    const layer *l = net->layers + i;
    const layout *to = net->layouts + s->to;
    int64_t places = to->shape.height ? vectors_of(to) * LANES : 1;
    if (l->rows) return l->starts[l->chunks * groups_of(l)] * l->rows * places;
    int64_t window = s->kind == MAX_POOL || s->kind == AVERAGE_POOL ? WINDOW * s->kernel_height * s->kernel_width : 1;
    return to->shape.channels * places * window;
}

/* One image of a batch. With a context, long steps are shared among its threads. */
static status *inferred(const network *net, const workspace *space, const ends *e, size_t image, const kernel_context *context) {
    number **activations = space->activations;
    for (int64_t i = 0; i < net->step_count; i += net->chains[i].steps) {
        if (net->chains[i].steps > 1) {
            int64_t cost = 0, bands = net->chains[i].bands;
            for (int64_t k = i; k < i + net->chains[i].steps; k++) cost += cost_of(net, k);
            chain_work w = {.net = net, .space = space, .first = i, .parts = bands < CHAIN_PARTS ? bands : CHAIN_PARTS};
            if (!context || cost < WORTH_A_THREAD) {
                w.parts = 1;
                chain_part(&w, 0);
                continue;
            }
            status *failed = net->api->parallel_for(context, chain_part, w.parts, w.parts, &w);
            if (failed) return failed;
            continue;
        }
        const step *s = net->steps + i;
        const layer *l = net->layers + i;
        const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
        if (s->kind == INPUT) {
            int64_t first = image * e->in_size[s->weights];
            if (s->pixels)
                seen(s, l, to, (const uint8_t *)e->in[s->weights] + first, activations[s->to]);
            else
                copied_in(s, to, (const float *)e->in[s->weights] + first, activations[s->to]);
            continue;
        }
        if (s->kind == OUTPUT) {
            copied_out(from, activations[s->from], e->out[s->weights] + image * e->out_size[s->weights]);
            continue;
        }
        int64_t units = s->kind == MOVE ? s->loops[0].count : s->kind == SPLIT ? from->shape.channels : to->shape.channels;
        if (l->rows) units = groups_of(l) * (s->kind == CONVOLUTION ? pieces_of(to, l) : 1);
        work w = {net, s, l, activations, units, 1};
        if (!context || cost_of(net, i) < WORTH_A_THREAD) {
            worked(&w, 0);
            continue;
        }
        w.parts = units < PARTS ? units : PARTS;
        status *failed = net->api->parallel_for(context, worked, w.parts, w.parts, &w);
        if (failed) return failed;
    }
    return NULL;
}

static void discarded(workspace *space) { free(space->memory), free(space->windows), free(space->activations), free(space); }

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
    made->windows = aligned_alloc(sizeof(vector), sizeof(number) * (net->windows * CHAIN_PARTS + 2 * LANES));
    made->activations = calloc(net->activation_count * CHAIN_PARTS, sizeof(number *));
    if (!made->memory || !made->windows || !made->activations) {
        discarded(made);
        return NULL;
    }
    memset(made->memory, 0, sizeof(number) * size); /* the zeros of all padding, for good */
    for (int64_t i = 0, at = 0; i < net->activation_count; at += net->layouts[i++].size)
        for (int part = 0; part < CHAIN_PARTS; part++) made->activations[part * net->activation_count + i] = made->memory + at;
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
    ends ends;
    int failed;
} batch;

static void one_of(void *given, size_t i) {
    batch *b = given;
    workspace *space = borrowed(b->net);
    if (!space) {
        __atomic_store_n(&b->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    inferred(b->net, space, &b->ends, i, NULL);
    returned(b->net, space);
}

/* Where input `i` lies, whose `images` must be those of the first. */
static status *found(network *net, kernel_context *context, int64_t i, ends *e, int64_t *images) {
    const api *api = net->api;
    const value *input;
    tensor_shape *shape;
    int64_t dimensions[4] = {0};
    size_t count, size = 0;
    int type = 0;
    status *failed = api->input(context, i, &input);
    if (failed || (failed = api->shape_of(input, &shape))) return failed;
    failed = api->dimension_count(shape, &count);
    if (!failed) failed = api->dimensions(shape, dimensions, count < 4 ? count : 4);
    if (!failed) failed = api->element_count(shape, &size);
    if (!failed) failed = api->element_type(shape, &type);
    api->release_shape(shape);
    if (failed) return failed;
    if (i == 0) *images = dimensions[0];
    e->in_size[i] = elements(net->layouts[net->steps[i].to].shape);
    int taken = net->steps[i].pixels ? UINT8 : FLOAT;
    if (type != taken || dimensions[0] != *images || (int64_t)size != *images * e->in_size[i])
        return api->create_status(FAILED, "rewind sparse engine: an input has another shape than the network takes");
    return api->tensor_data((value *)input, (void **)&e->in[i]);
}

static status *compute(void *kernel, kernel_context *context) {
    network *net = kernel;
    const api *api = net->api;
    batch b = {.net = net};
    int64_t images = 0;
    status *failed = NULL;
    for (int64_t i = 0; i < net->given && !failed; i++) failed = found(net, context, i, &b.ends, &images);
    for (int64_t i = 0; i < net->asked && !failed; i++) {
        const step *last = net->steps + net->step_count - net->asked + i;
        shape s = net->layouts[last->from].shape;
        int lines = last->kernel_height == 3; /* planes of one row */
        int64_t dimensions[4] = {images, s.channels, lines ? s.width : s.height, s.width};
        value *output;
        b.ends.out_size[i] = elements(s);
        failed = api->output(context, i, dimensions, lines ? 3 : s.height ? 4 : 2, &output);
        if (!failed) failed = api->tensor_data(output, (void **)&b.ends.out[i]);
    }
    if (failed) return failed;
    if (images > 1) {
        failed = api->parallel_for(context, one_of, images, 0, &b);
    } else if (images == 1) {
        workspace *space = borrowed(net);
        b.failed = !space;
        if (space) failed = inferred(net, space, &b.ends, 0, context), returned(net, space);
    }
    if (!failed && b.failed) failed = api->create_status(FAILED, "rewind sparse engine: out of memory");
    return failed;
}

static void destroy(void *kernel) {
    network *net = kernel;
    for (int64_t i = 0; net->layers && i < net->step_count; i++)
        free(net->layers[i].starts), free(net->layers[i].offsets), free(net->layers[i].weights), free(net->layers[i].bias);
    for (int64_t i = 0; net->layouts && i < net->activation_count; i++)
        free(net->layouts[i].inside), free(net->layouts[i].gaps), free(net->layouts[i].before), free(net->layouts[i].fours);
    for (workspace *space = net->idle, *next; space; space = next) {
        next = space->next;
        discarded(space);
    }
    pthread_mutex_destroy(&net->lock);
    free(net->layers), free(net->steps), free(net->layouts), free(net->chains), free(net);
}

static status *create(const custom_operator *self, const api *api, const kernel_info *info, void **kernel) {
    size_t size = 0, inputs = 0;
    status *failed = api->integers(info, "program", NULL, &size);
    if (failed || (failed = api->input_count(info, &inputs))) return failed;
    int64_t *program = calloc(size + 4, sizeof *program);
    constant *constants = calloc(inputs, sizeof *constants);
    network *net = calloc(1, sizeof *net);
    const char *wrong = "rewind sparse engine: out of memory";
    if (!program || !constants || !net) goto refuse;
    pthread_mutex_init(&net->lock, NULL);
    if ((failed = api->integers(info, "program", program, &size))) goto refuse;
    net->api = api;
    net->activation_count = program[0], net->step_count = program[1], net->given = program[2], net->asked = program[3];
    wrong = "rewind sparse engine: the program is not one that this library knows";
    if (!in_range(program[0], 1, 1 << 16) || !in_range(program[1], 2, 1 << 16) || !in_range(program[2], 1, SIDE) ||
        !in_range(program[3], 1, SIDE) || program[2] + program[3] > program[1] || (size_t)program[2] > inputs)
        goto refuse;
    net->layouts = calloc(net->activation_count + net->step_count, sizeof *net->layouts); /* of windows too */
    net->steps = calloc(net->step_count, sizeof *net->steps);
    net->layers = calloc(net->step_count, sizeof *net->layers);
    net->chains = calloc(net->step_count, sizeof *net->chains);
    if (!net->layouts || !net->steps || !net->layers || !net->chains) goto refuse;
    const int64_t *at = program + 4, *end = program + size;
    for (int64_t i = 0; i < net->activation_count; i++) at = told(at, end, &net->layouts[i].shape, SHAPE_FIELDS);
    for (int64_t i = 0; i < net->step_count; i++) at = told(at, end, net->steps + i, STEP_FIELDS);
    if (at != end || !fits(net, inputs)) goto refuse;
    for (int64_t i = 0; i < net->activation_count; i++) net->layouts[i] = laid_out(net->layouts[i].shape);
    if (!linked(net)) goto refuse;
    for (int64_t i = 0; i < net->activation_count; i++)
        if (!masked(net->layouts + i)) goto refuse;
    for (size_t i = net->given; i < inputs; i++) {
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
        if (((net->steps[i].kind == CONVOLUTION || net->steps[i].kind == STRIDED || net->steps[i].kind == LINEAR) &&
             !weighted(net, net->steps + i, constants, net->layers + i)) ||
            (net->steps[i].kind == AFFINE && !scaled(net, net->steps + i, constants, net->layers + i)) ||
            (net->steps[i].pixels && !tabled(net, net->steps + i, constants, net->layers + i)))
            goto refuse;
    free(program), free(constants);
    *kernel = net;
    return NULL;
refuse:
    free(program), free(constants);
    if (net) destroy(net);
    return failed ? failed : api->create_status(FAILED, wrong);
}

/* A model has a node for each part of its network that is computed here: Net, Net1, Net2, ... */

enum { NODES = 100 };
typedef struct {
    custom_operator operator;
    char name[8];
} named;

static const char *name(const custom_operator *self) { return ((const named *)self)->name; }
static const char *provider(const custom_operator *self) { return NULL; }
static size_t two(const custom_operator *self) { return 2; }
static size_t one(const custom_operator *self) { return 1; }
static int input_type(const custom_operator *self, size_t i) { return ANY; }
static int output_type(const custom_operator *self, size_t i) { return FLOAT; }
static int input_characteristic(const custom_operator *self, size_t i) { return i ? VARIADIC : REQUIRED; }
static int output_characteristic(const custom_operator *self, size_t i) { return VARIADIC; }
static int in_memory(const custom_operator *self, size_t i) { return 0; }
static int at_least_one(const custom_operator *self) { return 1; }
static int never(const custom_operator *self) { return 0; }
static int always(const custom_operator *self) { return 1; }

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
    .outputs_of_one_type = always,
    .create_or_fail = create,
    .compute_or_fail = compute,
};
static named OPERATORS[NODES];

__attribute__((visibility("default"))) status *RegisterCustomOps(session_options *options, const api_base *base) {
    const api *api = base->api_of(INTERFACE);
    domain *ours;
    if (!api) return NULL; /* too old: the operator's body in the model computes */
    status *failed = api->create_domain("rewind.engine", &ours);
    for (int i = 0; i < NODES && !failed; i++) {
        OPERATORS[i].operator = NET;
        int length = 0;
        for (const char *letter = "Net"; *letter; letter++) OPERATORS[i].name[length++] = *letter;
        if (i >= 10) OPERATORS[i].name[length++] = (char)('0' + i / 10);
        if (i >= 1) OPERATORS[i].name[length++] = (char)('0' + i % 10);
        failed = api->domain_add(ours, &OPERATORS[i].operator);
    }
    if (failed) return failed;
    return api->add_domain(options, ours);
}
