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
#include "numbers.h"
#include "interface.h"
#include "program.h"
#include "weights.h"
#include "convolution.h"
#include "layers.h"
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
