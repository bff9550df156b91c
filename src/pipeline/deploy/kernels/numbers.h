/* What is computed in: numbers, and vectors of as many as the processor takes at once. */
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
enum { LANES = 16, MOST = 28, MOST_OF_TWO = 12, MOST_OF_FOUR = 6, MOST_OF_CHAINS = 12, LARGER_CACHE = 2 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX2__)
enum { LANES = 8, MOST = 12, MOST_OF_TWO = 6, MOST_OF_FOUR = 3, MOST_OF_CHAINS = 12, LARGER_CACHE = 1 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#elif defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
enum { LANES = 8, MOST = 24, MOST_OF_TWO = 12, MOST_OF_FOUR = 6, MOST_OF_CHAINS = 24, LARGER_CACHE = 1 };
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
enum { LANES = 4, MOST = 24, MOST_OF_TWO = 12, MOST_OF_FOUR = 6, MOST_OF_CHAINS = 24, LARGER_CACHE = 1 };
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#endif
/* MOST: so many vectors of sums of one filter fit into the registers; of two and of four filters at a time; in a chain, whose windows
 * hold whole pieces. LARGER_CACHE: of how many times 512 KB the second cache of such processors is, at least. */

static inline __attribute__((always_inline)) int64_t most_of(int64_t rows) { return rows == 1 ? MOST : rows == 2 ? MOST_OF_TWO : MOST_OF_FOUR; }

/* Small planes may be computed crosswise (crosswise.h), where a number goes to a whole vector as it is read: so many vectors of
 * filters at a time, four places or more. ARM reads a number to a vector in an instruction of its own, and would gain nothing. */
#if defined(__AVX512F__)
enum { CROSSWISE = 1, FILTER_VECTORS = 1 };
#elif defined(__AVX2__)
enum { CROSSWISE = 1, FILTER_VECTORS = 2 };
#else
enum { CROSSWISE = 0, FILTER_VECTORS = 1 };
#endif
enum { AT_ONCE = 4, PLACES = MOST / FILTER_VECTORS / AT_ONCE * AT_ONCE, ACROSS = FILTER_VECTORS * LANES };

/* Bytes of the first cache for what a piece reads, and of the second for what lies between steps; multiply-adds of vectors that a
 * chunk of a group has to have; numbers of a cache's line. */
#ifndef SECOND_CACHE
#define SECOND_CACHE (LARGER_CACHE * 448 << 10)
#endif
enum { NEAR = 20 << 10, FAR = SECOND_CACHE, WORTH_A_CHUNK = 300, LINE = 64 / sizeof(number) };

/* What a tap of several filters or of a vector of them costs, in taps of one: docs/kernels.md. */
static const double TAP_OF_TWO = 1.4, TAP_OF_FOUR = 2.3, TAP_OF_LANES = LANES / 4.0;
/* The same of a place of ACROSS filters, and what its results cost. */
static const double TAP_OF_PLACE = 0.6 * FILTER_VECTORS, RESULTS_OF_PLACE = 10 * FILTER_VECTORS;

typedef number vector __attribute__((vector_size(sizeof(number) * LANES), aligned(sizeof(number)), may_alias));
typedef lane lanes __attribute__((vector_size(sizeof(lane) * LANES), aligned(sizeof(lane)), may_alias));
typedef float floats __attribute__((vector_size(sizeof(float) * LANES))); /* for long sums */

/* Where b is no number they give b. */
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
static inline vector larger(vector a, vector b) { return (vector)vmaxq_f16((float16x8_t)a, (float16x8_t)b); }
static inline vector smaller(vector a, vector b) { return (vector)vminq_f16((float16x8_t)a, (float16x8_t)b); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
static inline vector larger(vector a, vector b) { return (vector)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
static inline vector smaller(vector a, vector b) { return (vector)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#else /* compilers see one instruction in each on x86 */
static inline vector chosen(lanes condition, vector yes, vector no) {
    return (vector)((condition & (lanes)yes) | (~condition & (lanes)no));
}
static inline vector larger(vector a, vector b) { return chosen(a > b, a, b); }
static inline vector smaller(vector a, vector b) { return chosen(a < b, a, b); }
#endif

#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)") /* of few turns: four at a time they would take longer */
#define IN_WHOLE_VECTORS __attribute__((min_vector_width(512))) /* else each is two for AVX-512, of which there are too few */
#else
#define UNROLLED _Pragma("GCC unroll 28")
#define ROLLED
#define IN_WHOLE_VECTORS
#endif
