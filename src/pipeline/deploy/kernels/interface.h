/* ONNX Runtime's interface, as far as it is used: its headers are in no package, and its table only ever grows */

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
enum type { ANY = 0, FLOAT = 1, UINT8 = 2, INT8 = 3, DOUBLE = 11 };
