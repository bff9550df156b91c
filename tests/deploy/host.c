/* Runs the engine's operator outside ONNX Runtime, fast enough for many wrong programs: every array is of its own and as
 * long as it has to be, so that a sanitizer sees what goes beyond it.
 *
 *     host COUNT CASE...
 *
 * Each case is a file that the tests write: a node's program, constants, inputs and the answers to them. The right program
 * has to give them; then come COUNT wrong ones, with whole constants or without, which are refused, or compute something.
 */
#include <stddef.h>
#include <stdio.h>
#include ENGINE

static void *checked(void *memory) {
    if (!memory) abort();
    return memory;
}

static void must(int holds, const char *file, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s: %s\n", file, what);
    exit(1);
}

struct value {
    int64_t type, sides, side[8];
    void *data;
};
struct kernel_info {
    const int64_t *program;
    size_t size, given, count;
    value *inputs;
};
struct kernel_context {
    value *inputs, *outputs[SIDE];
};

static size_t numbers(const value *v) {
    size_t count = 1;
    for (int64_t i = 0; i < v->sides; i++) count *= v->side[i];
    return count;
}

enum { INT64 = 7 };

static size_t bytes(const value *v) {
    return numbers(v) * (v->type == UINT8 || v->type == INT8 ? 1 : v->type == DOUBLE || v->type == INT64 ? 8 : 4);
}

static status *said(int code, const char *message) { return (status *)message; }
static status *program_of(const kernel_info *info, const char *name, int64_t *out, size_t *size) {
    if (out) memcpy(out, info->program, *size * sizeof *out);
    *size = info->size;
    return NULL;
}
static status *input_count(const kernel_info *info, size_t *count) { return *count = info->count, NULL; }
static status *constant_input(const kernel_info *info, size_t i, int *is_constant, const value **out) {
    *is_constant = i >= info->given;
    *out = info->inputs + i;
    return NULL;
}
static status *tensor_data(value *v, void **data) { return *data = v->data, NULL; }
static status *shape_of(const value *v, tensor_shape **out) {
    value *copy = checked(malloc(sizeof *copy));
    *copy = *v;
    *out = (tensor_shape *)copy;
    return NULL;
}
static void release_shape(tensor_shape *shape) { free(shape); }
static status *element_type(const tensor_shape *shape, int *type) { return *type = (int)((value *)shape)->type, NULL; }
static status *element_count(const tensor_shape *shape, size_t *count) { return *count = numbers((value *)shape), NULL; }
static status *dimension_count(const tensor_shape *shape, size_t *count) { return *count = ((value *)shape)->sides, NULL; }
static status *dimensions(const tensor_shape *shape, int64_t *out, size_t count) {
    memcpy(out, ((value *)shape)->side, count * sizeof *out);
    return NULL;
}
static status *input(const kernel_context *context, size_t i, const value **out) { return *out = context->inputs + i, NULL; }
static status *output(kernel_context *context, size_t i, const int64_t *sides, size_t count, value **out) {
    value *made = context->outputs[i] = checked(calloc(1, sizeof *made));
    made->type = FLOAT, made->sides = count;
    memcpy(made->side, sides, count * sizeof *sides);
    made->data = checked(malloc(bytes(made) + !bytes(made)));
    *out = made;
    return NULL;
}

typedef struct {
    void (*part)(void *, size_t);
    void *given;
    size_t first, count;
} half;

static void *one_half(void *given) {
    const half *h = given;
    for (size_t i = h->first; i < h->count; i += 2) h->part(h->given, i);
    return NULL;
}

static status *parallel_for(const kernel_context *context, void (*part)(void *, size_t), size_t count, size_t batches, void *given) {
    half halves[2] = {{part, given, 0, count}, {part, given, 1, count}};
    pthread_t other;
    if (pthread_create(&other, NULL, one_half, halves)) abort();
    one_half(halves + 1);
    pthread_join(other, NULL);
    return NULL;
}

static const api HOST = {
    .create_status = said,
    .tensor_data = tensor_data,
    .element_type = element_type,
    .dimension_count = dimension_count,
    .dimensions = dimensions,
    .element_count = element_count,
    .shape_of = shape_of,
    .input = input,
    .output = output,
    .release_shape = release_shape,
    .integers = program_of,
    .input_count = input_count,
    .constant_input = constant_input,
    .parallel_for = parallel_for,
};

enum { LONG = 1 << 26 };

/* Whether a wrong program would take long: it is made, but not run. */
static int is_long(const network *net) {
    double cost = 0;
    for (int64_t i = 0; i < net->step_count; i++) cost += cost_of(net, i);
    for (int64_t i = 0; i < net->activation_count; i++) cost += net->layouts[i].size;
    return cost > LONG;
}

/* Makes the operator and, with so many images, has its answers: a message, or none. */
static const char *tried(const kernel_info *info, int64_t images, kernel_context *context, int right) {
    void *kernel = NULL;
    const char *message = (const char *)create(&NET, &HOST, info, &kernel);
    if (message) return message;
    for (size_t i = 0; i < info->given; i++) info->inputs[i].side[0] = images;
    if (right || !is_long(kernel)) message = (const char *)compute(kernel, context);
    destroy(kernel);
    return message;
}

static void dropped(kernel_context *context) {
    for (int i = 0; i < SIDE; i++) {
        if (context->outputs[i]) free(context->outputs[i]->data), free(context->outputs[i]);
        context->outputs[i] = NULL;
    }
}

static void near(const char *file, const kernel_context *context, const value *expected, size_t asked, int64_t images) {
    for (size_t i = 0; i < asked; i++) {
        const float *right = expected[i].data, *found = context->outputs[i]->data;
        size_t count = numbers(expected + i) / expected[i].side[0] * images;
        must(numbers(context->outputs[i]) == count, file, "answers of another shape");
        float most = 1;
        for (size_t k = 0; k < numbers(expected + i); k++) most = fmaxf(most, fabsf(right[k]));
        for (size_t k = 0; k < count; k++) must(fabsf(found[k] - right[k]) <= 2e-5f * most, file, "another answer");
    }
}

static uint64_t random_state = 1;
static uint64_t below(uint64_t limit) { /* xorshift64 */
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state % limit;
}

/* A constant that is too short, or has another byte, in memory of its own. */
static void cut_or_changed(value *v) {
    size_t size = bytes(v);
    uint8_t *data = v->data;
    if (!size) return;
    if (v->sides && below(2)) {
        v->side[0] = below(v->side[0]);
        v->data = checked(malloc(bytes(v) + !bytes(v)));
        memcpy(v->data, data, bytes(v));
    } else {
        v->data = memcpy(checked(malloc(size)), data, size);
        ((uint8_t *)v->data)[below(size)] ^= 1 + below(255);
    }
}

static void read_values(FILE *file, value *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (fread(values + i, sizeof(int64_t), 10, file) != 10) abort();
        values[i].data = checked(malloc(bytes(values + i) + !bytes(values + i)));
        if (fread(values[i].data, 1, bytes(values + i), file) != bytes(values + i)) abort();
    }
}

int main(int count, char **arguments) {
    long wrong = atol(arguments[1]), refused = 0, ran = 0;
    for (int at = 2; at < count; at++) {
        const char *name = arguments[at];
        FILE *file = checked(fopen(name, "rb"));
        int64_t head[4]; /* integers of the program; inputs, how many of them are no constants; answers */
        if (fread(head, sizeof *head, 4, file) != 4) abort();
        int64_t *right = checked(malloc(head[0] * sizeof *right)), *program = checked(malloc(head[0] * sizeof *program));
        if (fread(right, sizeof *right, head[0], file) != (size_t)head[0]) abort();
        value *inputs = checked(calloc(head[1], sizeof *inputs)), *answers = checked(calloc(head[3], sizeof *answers));
        read_values(file, inputs, head[1]), read_values(file, answers, head[3]);
        fclose(file);

        kernel_info info = {program, head[0], head[2], head[1], inputs};
        kernel_context context = {.inputs = inputs};
        memcpy(program, right, head[0] * sizeof *program);
        int64_t all = inputs[0].side[0];
        for (int64_t images = all; images; images = images == 1 ? 0 : 1) {
            const char *message = tried(&info, images, &context, 1);
            must(!message, name, message ? message : "");
            near(name, &context, answers, head[3], images);
            dropped(&context);
        }
        for (long i = 0; i < wrong; i++) {
            memcpy(program, right, head[0] * sizeof *program);
            for (uint64_t changes = 1 + below(2); changes; changes--) {
                uint64_t place = below(head[0]);
                int64_t other[] = {-1, 0, 1, 2, 3, 7, right[place] + 1, 2 * right[place], 1 << 20, 1LL << 40};
                program[place] = other[below(10)];
            }
            value *spoilt = inputs + below(head[1]), whole = *spoilt;
            if (spoilt >= inputs + head[2] && below(2)) cut_or_changed(spoilt);
            const char *message = tried(&info, i % 2 ? 1 : all, &context, 0);
            if (spoilt->data != whole.data) free(spoilt->data), *spoilt = whole;
            must(!message || strstr(message, "rewind sparse engine") == message, name, "a fault that is not the engine's");
            message ? refused++ : ran++;
            dropped(&context);
        }
        for (int64_t i = 0; i < head[1]; i++) free(inputs[i].data);
        for (int64_t i = 0; i < head[3]; i++) free(answers[i].data);
        free(inputs), free(answers), free(program), free(right);
    }
    printf("%ld refused, %ld ran\n", refused, ran);
    return 0;
}
