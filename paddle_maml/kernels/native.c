/* The four-block network's operators on a CPU: what native.py compiles, loads and makes differentiable.

   A block is y = convolution of x with w (3x3, padding 1, stride 1 or 2), then

       h = (y - mean) / sqrt(variance + epsilon),  z = scale * h + shift,  out = max(0, largest z of a window)

   with mean and variance over all pixels of all images of a task; windows are of 2x2 pixels, or with stride 2
   of one. Here are

       convolve, convolve_gradient                       the convolution, which is linear in x and in w: its
                                                         second derivatives are the same two functions
       normalize, normalize_gradient, normalize_second   the rest of the block, and its derivatives
       first_prepare, first_forward, first_gradient,     a whole block whose x are images: constants of few
       first_second                                      channels

   Arrays are float32, without gaps, and channels come last: maps (tasks, images, height, width, channels),
   weights (tasks, 9 taps in reading order, input channels, output channels), one number a channel (tasks,
   channels). The number of channels must be a multiple of 16, but for those of images. Every function
   returns 0, or 1 if memory was short.

   Tasks are independent of each other: threads share them out, and how many there are changes no bit of a
   result.

   Vector code is written once, with the vector extensions of GCC and Clang; LANES floats make a vector. */

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, COLUMNS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, COLUMNS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, COLUMNS = 4 };
#else
enum { LANES = 4, COLUMNS = 2 };
#endif
/* A product is computed in pieces of ROWS x COLUMNS vectors, as many as the registers hold. */
enum { ROWS = 6, TAPS = 9, CORNERS = 4, FIRST_COLUMNS = COLUMNS / 2 };
enum { FLOATS_OF_A_POINTER = sizeof(void *) / sizeof(float) };

#define EPSILON 1e-5f

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
/* -1 or 0 in each lane */
typedef int32_t mask __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    int64_t tasks, images;   /* of each task */
    int64_t height, width;   /* of the input map */
    int64_t channels, depth; /* of the input and of the output */
    int64_t stride;          /* 1: a 2x2 max-pool follows; 2: none */
    int64_t threads;
} Shape;

INLINE long out_height(const Shape *s) { return (s->height - 1) / s->stride + 1; } /* of the convolution */
INLINE long out_width(const Shape *s) { return (s->width - 1) / s->stride + 1; }
/* Of one task: */
INLINE long in_size(const Shape *s) { return s->images * s->height * s->width * s->channels; }
INLINE long out_size(const Shape *s) { return s->images * out_height(s) * out_width(s) * s->depth; }
INLINE long weight_size(const Shape *s) { return TAPS * s->channels * s->depth; }
INLINE long side(const Shape *s) { return s->stride == 1 ? 2 : 1; } /* of a pooling window */
INLINE long pooled_size(const Shape *s)
{
    return s->images * (out_height(s) / side(s)) * (out_width(s) / side(s)) * s->depth;
}
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }

INLINE vec splat(float x)
{
#if defined(__AVX512F__)
    return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif defined(__AVX__)
    return (vec){x, x, x, x, x, x, x, x};
#else
    return (vec){x, x, x, x};
#endif
}

INLINE vec where(mask condition, vec yes, vec no)
{
    return (vec)((condition & (mask)yes) | (~condition & (mask)no));
}
INLINE vec only(mask condition, vec value) { return (vec)(condition & (mask)value); }


/* -------------------------------------------------------------------------------------- tasks and threads */

typedef void TaskFunction(const void *arguments, long task, float *scratch);

typedef struct {
    TaskFunction *function;
    const void *arguments;
    long tasks, *next;
    float *scratch;
} Worker;

static void *work(void *argument)
{
    Worker *worker = argument;
    long task;
    while ((task = __atomic_fetch_add(worker->next, 1, __ATOMIC_RELAXED)) < worker->tasks)
        worker->function(worker->arguments, task, worker->scratch);
    return NULL;
}

/* Calls the function for every task, with so many floats of scratch memory. */
static int each_task(const Shape *s, long floats, TaskFunction *function, const void *arguments)
{
    enum { MOST_THREADS = 64 };
    long workers = most(1, least(MOST_THREADS, least(s->tasks, s->threads))), next = 0, started = 0;
    long apart = (floats + 31) / 16 * 16; /* whole lines of the cache */
    float *scratch = aligned_alloc(64, (size_t)(apart * workers) * sizeof(float));
    pthread_t threads[MOST_THREADS];
    Worker worker[MOST_THREADS];
    if (!scratch)
        return 1;
    for (long i = 0; i < workers; i++)
        worker[i] = (Worker){function, arguments, s->tasks, &next, scratch + i * apart};
    /* This thread works too; where another cannot be had, the rest do its part. */
    while (started < workers - 1 && !pthread_create(&threads[started], NULL, work, &worker[started + 1]))
        started++;
    work(&worker[0]);
    for (long i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    free(scratch);
    return 0;
}


/* ----------------------------------------------------------------------------------------------- products */

/* out[r][:] = sum over parts i and k < count of a[i][r * a_row + k * a_step] * b[i][k * b_step + :] */
typedef struct {
    const float **a, **b;
    long parts, count, a_row, a_step, b_step;
    float *out;
    long out_row;
    int add; /* to what out holds */
} Product;

INLINE void piece(const Product *p, const int rows, const int vectors, long row, long column)
{
    vec sum[ROWS][COLUMNS];
    float *out = p->out + row * p->out_row + column;
    const long a_row = p->a_row, a_step = p->a_step, b_step = p->b_step;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[r][v] = p->add ? load(out + r * p->out_row + v * LANES) : splat(0);
    for (long i = 0; i < p->parts; i++) {
        const float *a = p->a[i] + row * a_row, *b = p->b[i] + column;
        for (long k = 0; k < p->count; k++, a += a_step, b += b_step) {
            vec right[COLUMNS];
            UNROLL for (int v = 0; v < vectors; v++)
                right[v] = load(b + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                vec left = splat(a[r * a_row]);
                UNROLL for (int v = 0; v < vectors; v++)
                    sum[r][v] += left * right[v];
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            store(out + r * p->out_row + v * LANES, sum[r][v]);
}

INLINE void pieces_of_rows(const Product *p, const int vectors, long rows, long column)
{
    /* As few pieces as can be, of nearly the same size. */
    long pieces = (rows + ROWS - 1) / ROWS, row = 0;
    for (long i = 0; i < pieces; i++) {
        long next = rows * (i + 1) / pieces;
        switch (next - row) {
        case 6: piece(p, 6, vectors, row, column); break;
        case 5: piece(p, 5, vectors, row, column); break;
        case 4: piece(p, 4, vectors, row, column); break;
        case 3: piece(p, 3, vectors, row, column); break;
        case 2: piece(p, 2, vectors, row, column); break;
        default: piece(p, 1, vectors, row, column);
        }
        row = next;
    }
}

/* The columns are a multiple of 16. */
static void multiply(const Product *p, long rows, long columns)
{
    long column = 0;
    for (; column + COLUMNS * LANES <= columns; column += COLUMNS * LANES)
        pieces_of_rows(p, COLUMNS, rows, column);
#if defined(__AVX512F__) /* elsewhere COLUMNS vectors divide 16 columns */
    switch ((columns - column) / LANES) {
    case 3: pieces_of_rows(p, 3, rows, column); break;
    case 2: pieces_of_rows(p, 2, rows, column); break;
    case 1: pieces_of_rows(p, 1, rows, column);
    }
#endif
}


/* ----------------------------------------------------------------------------- convolution, by definition */

/* For each pixel of a map the other map's pixels it is computed from, each with a tap; one product for all
   images. So taps outside the map are left out, which on small maps, of which most is edge, saves more
   than Winograd's algorithm. */

static void direct_forward(const Shape *s, const float *const *x, const float *const *w, int factors,
                           float *y)
{
    const float *a[2 * TAPS], *b[2 * TAPS];
    long height = out_height(s), width = out_width(s);
    for (long i = 0; i < height; i++)
        for (long j = 0; j < width; j++) {
            Product p = {.a = a,
                         .b = b,
                         .count = s->channels,
                         .a_row = s->height * s->width * s->channels,
                         .a_step = 1,
                         .b_step = s->depth,
                         .out = y + (i * width + j) * s->depth,
                         .out_row = height * width * s->depth};
            for (int factor = 0; factor < factors; factor++)
                for (int tap = 0; tap < TAPS; tap++) {
                    long row = i * s->stride + tap / 3 - 1, column = j * s->stride + tap % 3 - 1;
                    if (row < 0 || row >= s->height || column < 0 || column >= s->width)
                        continue;
                    a[p.parts] = x[factor] + (row * s->width + column) * s->channels;
                    b[p.parts++] = w[factor] + tap * s->channels * s->depth;
                }
            multiply(&p, s->images, s->depth);
        }
}

/* `turned` is the weight (taps, depth, channels). */
static void direct_by_input(const Shape *s, const float *turned, const float *dy, float *dx)
{
    const float *a[TAPS], *b[TAPS];
    long height = out_height(s), width = out_width(s);
    for (long i = 0; i < s->height; i++)
        for (long j = 0; j < s->width; j++) {
            Product p = {.a = a,
                         .b = b,
                         .count = s->depth,
                         .a_row = height * width * s->depth,
                         .a_step = 1,
                         .b_step = s->channels,
                         .out = dx + (i * s->width + j) * s->channels,
                         .out_row = s->height * s->width * s->channels};
            for (int tap = 0; tap < TAPS; tap++) {
                long row = i + 1 - tap / 3, column = j + 1 - tap % 3;
                if (row < 0 || row % s->stride || row / s->stride >= height || column < 0 ||
                    column % s->stride || column / s->stride >= width)
                    continue;
                a[p.parts] = dy + (row / s->stride * width + column / s->stride) * s->depth;
                b[p.parts++] = turned + tap * s->depth * s->channels;
            }
            multiply(&p, s->images, s->channels);
        }
}

/* `list` has room for two pointers for each pixel of the output. */
static void direct_by_weight(const Shape *s, const float *x, const float *dy, float *dw, const float **list)
{
    long height = out_height(s), width = out_width(s);
    for (int tap = 0; tap < TAPS; tap++) {
        Product p = {.a = list,
                     .b = list + height * width,
                     .count = s->images,
                     .a_row = 1,
                     .a_step = s->height * s->width * s->channels,
                     .b_step = height * width * s->depth,
                     .out = dw + tap * s->channels * s->depth,
                     .out_row = s->depth};
        for (long i = 0; i < height; i++)
            for (long j = 0; j < width; j++) {
                long row = i * s->stride + tap / 3 - 1, column = j * s->stride + tap % 3 - 1;
                if (row < 0 || row >= s->height || column < 0 || column >= s->width)
                    continue;
                p.a[p.parts] = x + (row * s->width + column) * s->channels;
                p.b[p.parts++] = dy + (i * width + j) * s->depth;
            }
        multiply(&p, s->channels, s->depth);
    }
}

/* A square of LANES x LANES numbers turned, in place: of each pair of rows the halves, quarters and so on
   change places. */
INLINE void turn_square(vec *rows)
{
    UNROLL for (int step = 1; step < LANES; step *= 2)
        UNROLL for (int i = 0; i < LANES; i++)
            if (!(i & step)) {
                vec upper = rows[i], lower = rows[i + step];
#if defined(__clang__) || !defined(__GNUC__)
                UNROLL for (int lane = 0; lane < LANES; lane++)
                    if (!(lane & step)) {
                        rows[i][lane + step] = lower[lane];
                        rows[i + step][lane] = upper[lane + step];
                    }
#else
                mask even, odd;
                UNROLL for (int lane = 0; lane < LANES; lane++) {
                    even[lane] = lane & step ? LANES + lane - step : lane;
                    odd[lane] = lane & step ? LANES + lane : lane + step;
                }
                rows[i] = __builtin_shuffle(upper, lower, even);
                rows[i + step] = __builtin_shuffle(upper, lower, odd);
#endif
            }
}

/* (taps, channels, depth) to (taps, depth, channels); for Winograd's algorithm the taps in reverse order. */
static void turn(const Shape *s, const float *w, int reverse, float *turned)
{
    for (int tap = 0; tap < TAPS; tap++, w += s->channels * s->depth) {
        float *to = turned + (reverse ? TAPS - 1 - tap : tap) * s->channels * s->depth;
        for (long c = 0; c < s->channels; c += LANES)
            for (long d = 0; d < s->depth; d += LANES) {
                vec rows[LANES];
                UNROLL for (int i = 0; i < LANES; i++)
                    rows[i] = load(w + (c + i) * s->depth + d);
                turn_square(rows);
                UNROLL for (int i = 0; i < LANES; i++)
                    store(to + (d + i) * s->channels + c, rows[i]);
            }
    }
}


/* ---------------------------------------------------------------------- convolution, Winograd's algorithm */

/* Winograd's F(n, 3) (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks"; Toom and
   Cook before them) computes, along one axis, the n pixels of a tile from the n + 2 pixels x around it and
   the taps w as

       A' [(G w) * (B x)].

   It multiplies polynomials by their values at n + 1 points and infinity: rows of A and G are powers of
   the points, and B follows from them. Here the points are 0, 1, -1, infinity, 1/2, -1/2:

       B = 1   0   -5   0   4  0    G = 1    0    0      A = 1  0    0    0      n = 2:  B = 1  0 -1  0
           0 -1/3 -1/3 4/3 4/3 0        1/2  1/2  1/2        1  1    1    1                 0  1  1  0
           0  1/3 -1/3 -4/3 4/3 0       1/2 -1/2  1/2        1 -1    1   -1                 0 -1  1  0
           0  1/4  0  -5/4  0  1        0    0    1          0  0    0    1                 0  1  0 -1
           0  -1  -2   1   2   0       -4/3 -2/3 -1/3        1  1/2  1/4  1/8           A = 1  0
           0   1  -2  -1   2   0       -4/3  2/3 -1/3        1 -1/2  1/4 -1/8               1  1
                                                                                           1 -1
                                                                                           0 -1
   so that tiles of two pixels use the first four rows of the same G w. On two axes a tile of 4x4 has a
   product over the channels at each of 36 positions, and four tiles of 2x2 at 64, where the definition has
   144. Tiles of four round four times as coarsely as the definition, tiles of two a little more finely.

   Tiles of four are for derivatives: of a map's height, and of its width, fours are taken and what is left
   over as a tile of two (or of four if it is three). The block's own map y has tiles of two alone: which
   pixel of a pooling window is the largest, and whether it is positive, is decided by it, and a decision
   that rounding turns is an error in the gradient a thousand times as large as the rounding. And then a
   pooling window is a tile, so that pixels that see the same come out equal to the last bit: B makes exact
   zeros of what does not change along an axis.

   The gradient by the input is such a convolution too: of the output's gradient dy with the taps in
   reverse order and their matrices turned. Its own gradient by those taps, along x, is the gradient by the
   taps that is wanted, so that what was made of dy serves twice: at each position it is the product of A x
   A', of the tile's own pixels, with B dy B'. */

enum { POINTS = 6, POSITIONS = POINTS * POINTS };
enum { TILES = 48 }; /* that are computed together */

/* What belongs to one position, of tiles or of weights, is so far from that of the next: not by a power of
   two, because the cache would have the same place for all of them. */
INLINE long tiles_apart(long channels) { return TILES * channels + 16; }
INLINE long weights_apart(long size) { return size + 16; }

/* Tiles of one size: `down` x `across` of them in each image, the first at pixel (top, left). */
typedef struct {
    int rows, columns; /* 2 or 4 pixels */
    long top, left, down, across;
} Tiles;

/* How many tiles of four, and of two, along an axis; `largest` is 4 or 2. */
INLINE long fours_of(long size, int largest) { return largest == 4 ? size / 4 + (size % 4 == 3) : 0; }
INLINE long twos_of(long size, int largest)
{
    return largest == 4 ? size % 4 == 1 || size % 4 == 2 : (size + 1) / 2;
}

/* Up to four sizes. Returns how many there are. */
static int tiles_of(const Shape *s, int largest, Tiles *tiles)
{
    long down[2] = {fours_of(s->height, largest), twos_of(s->height, largest)},
         across[2] = {fours_of(s->width, largest), twos_of(s->width, largest)};
    int count = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            if (down[i] && across[j])
                tiles[count++] =
                    (Tiles){i ? 2 : 4, j ? 2 : 4, i * 4 * down[0], j * 4 * across[0], down[i], across[j]};
    return count;
}

/* Whether that is faster: counted in products of a row with a matrix, with what transforming tiles and
   weights costs. */
static int use_winograd(const Shape *s, int largest)
{
    long direct = s->images * (3 * s->height - 2) * (3 * s->width - 2);
    long positions = (6 * fours_of(s->height, largest) + 4 * twos_of(s->height, largest)) *
                     (6 * fours_of(s->width, largest) + 4 * twos_of(s->width, largest));
    return s->stride == 1 && s->images * positions * 5 / 4 + 100 < direct;
}

/* A walk over all tiles, in blocks of one size that are as equal as can be. */
typedef struct {
    Tiles sizes[4];
    int count, size; /* of sizes; the one at hand */
    long part;       /* the next of its blocks */
    const Tiles *tiles;
    long first, last; /* the block: these tiles, counted over all images */
} Walk;

static Walk start(const Shape *s, int largest)
{
    Walk walk = {.size = 0};
    walk.count = tiles_of(s, largest, walk.sizes);
    return walk;
}

/* Returns 0 at the end. */
static int next_block(const Shape *s, Walk *walk)
{
    for (; walk->size < walk->count; walk->size++, walk->part = 0) {
        walk->tiles = &walk->sizes[walk->size];
        long all = s->images * walk->tiles->down * walk->tiles->across, parts = (all + TILES - 1) / TILES;
        if (walk->part < parts) {
            walk->first = all * walk->part / parts;
            walk->last = all * ++walk->part / parts;
            return 1;
        }
    }
    return 0;
}

/* Images of which all pixels were in blocks before this one. */
INLINE long complete_images(const Walk *walk)
{
    return walk->count == 1 ? walk->first / (walk->tiles->down * walk->tiles->across) : 0;
}

/* B, along one axis, in place. */
INLINE void times_b(const int n, vec *x, const int step)
{
    vec x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
    if (n == 2) {
        x[0] = x0 - x2, x[step] = x1 + x2, x[2 * step] = x2 - x1, x[3 * step] = x1 - x3;
        return;
    }
    vec x4 = x[4 * step], x5 = x[5 * step], x31 = x3 - x1, x42 = x4 - x2;
    vec odd = splat(4.0f / 3) * x3 - splat(1.0f / 3) * x1, even = splat(4.0f / 3) * x4 - splat(1.0f / 3) * x2;
    x[0] = splat(4) * x42 + (x0 - x2), x[step] = even + odd, x[2 * step] = even - odd;
    x[3 * step] = (x5 - x3) - splat(0.25f) * x31, x[4 * step] = splat(2) * x42 + x31,
          x[5 * step] = splat(2) * x42 - x31;
}

/* A' along one axis: n + 2 values to n. */
INLINE void times_a_turned(const int n, const vec *m, const int step, vec *y, const int y_step)
{
    vec both = m[step] + m[2 * step], between = m[step] - m[2 * step];
    if (n == 2) {
        y[0] = m[0] + both, y[y_step] = between - m[3 * step];
        return;
    }
    vec both_2 = m[4 * step] + m[5 * step], between_2 = m[4 * step] - m[5 * step];
    y[0] = m[0] + both + both_2, y[y_step] = between + splat(0.5f) * between_2;
    y[2 * y_step] = both + splat(0.25f) * both_2,
          y[3 * y_step] = between + splat(0.125f) * between_2 + m[3 * step];
}

/* A along one axis: n values to n + 2. */
INLINE void times_a(const int n, const vec *y, const int step, vec *m, const int m_step)
{
    vec y0 = y[0], y1 = y[step];
    if (n == 2) {
        m[0] = y0, m[m_step] = y0 + y1, m[2 * m_step] = y0 - y1, m[3 * m_step] = -y1;
        return;
    }
    vec y2 = y[2 * step], y3 = y[3 * step], even = y0 + y2, odd = y1 + y3;
    vec even_2 = y0 + splat(0.25f) * y2, odd_2 = splat(0.5f) * y1 + splat(0.125f) * y3;
    m[0] = y0, m[m_step] = even + odd, m[2 * m_step] = even - odd;
    m[3 * m_step] = y3, m[4 * m_step] = even_2 + odd_2, m[5 * m_step] = even_2 - odd_2;
}

/* The rows x columns pixels from `shift` above and left of the tile's first on; those outside the map are
   at `zeros`. */
INLINE void pixels_of(const Shape *s, const Tiles *t, const float *map, long channels, long tile,
                      const int rows, const int columns, int shift, const float *zeros, const float **pixels)
{
    long image = tile / (t->down * t->across), rest = tile % (t->down * t->across);
    long row = t->top + rest / t->across * t->rows - shift,
         column = t->left + rest % t->across * t->columns - shift;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            int inside = row + i >= 0 && row + i < s->height && column + j >= 0 && column + j < s->width;
            pixels[i * columns + j] =
                inside ? map + ((image * s->height + row + i) * s->width + column + j) * channels : zeros;
        }
}

/* For each tile from `first` to `last` something of its pixels: the functions are compiled for each size
   of a tile. */
typedef struct {
    const Shape *s;
    const Tiles *tiles;
    long channels, first, last;
    float *outside; /* channels zeros where pixels are read, what need not be kept where they are written */
} Block;

/* out[position][tile][:] = B x B' */
INLINE void spread_around(const int rows, const int columns, const Block *b, const float *map, float *out)
{
    const float *pixels[POSITIONS];
    const long channels = b->channels, apart = tiles_apart(channels);
    for (long tile = b->first; tile < b->last; tile++, out += channels) {
        pixels_of(b->s, b->tiles, map, channels, tile, rows + 2, columns + 2, 1, b->outside, pixels);
        for (long c = 0; c < channels; c += LANES) {
            vec x[POSITIONS];
            UNROLL for (int j = 0; j < columns + 2; j++) {
                UNROLL for (int i = 0; i < rows + 2; i++)
                    x[i * POINTS + j] = load(pixels[i * (columns + 2) + j] + c);
                times_b(rows, x + j, POINTS);
            }
            UNROLL for (int i = 0; i < rows + 2; i++) {
                times_b(columns, x + i * POINTS, 1);
                UNROLL for (int j = 0; j < columns + 2; j++)
                    store(out + (i * (columns + 2) + j) * apart + c, x[i * POINTS + j]);
            }
        }
    }
}

/* out[position][tile][:] = A x A' */
INLINE void spread_own(const int rows, const int columns, const Block *b, const float *map, float *out)
{
    const float *pixels[4 * 4];
    const long channels = b->channels, apart = tiles_apart(channels);
    for (long tile = b->first; tile < b->last; tile++, out += channels) {
        pixels_of(b->s, b->tiles, map, channels, tile, rows, columns, 0, b->outside, pixels);
        for (long c = 0; c < channels; c += LANES) {
            vec half[POINTS * 4];
            UNROLL for (int j = 0; j < columns; j++) {
                vec x[4];
                UNROLL for (int i = 0; i < rows; i++)
                    x[i] = load(pixels[i * columns + j] + c);
                times_a(rows, x, 1, half + j, 4);
            }
            UNROLL for (int i = 0; i < rows + 2; i++) {
                vec m[POINTS];
                times_a(columns, half + 4 * i, 1, m, 1);
                UNROLL for (int j = 0; j < columns + 2; j++)
                    store(out + (i * (columns + 2) + j) * apart + c, m[j]);
            }
        }
    }
}

/* A' m A, which are the pixels of the map. */
INLINE void gather(const int rows, const int columns, const Block *b, const float *m, float *map)
{
    const float *pixels[4 * 4];
    const long channels = b->channels, apart = tiles_apart(channels);
    for (long tile = b->first; tile < b->last; tile++, m += channels) {
        pixels_of(b->s, b->tiles, map, channels, tile, rows, columns, 0, b->outside, pixels);
        for (long c = 0; c < channels; c += LANES) {
            vec half[4 * POINTS];
            UNROLL for (int j = 0; j < columns + 2; j++) {
                vec values[POINTS];
                UNROLL for (int i = 0; i < rows + 2; i++)
                    values[i] = load(m + (i * (columns + 2) + j) * apart + c);
                times_a_turned(rows, values, 1, half + j, POINTS);
            }
            UNROLL for (int i = 0; i < rows; i++) {
                vec y[4];
                times_a_turned(columns, half + i * POINTS, 1, y, 1);
                UNROLL for (int j = 0; j < columns; j++)
                    store((float *)pixels[i * columns + j] + c, y[j]);
            }
        }
    }
}

/* `name` calls the function for the size of the block's tiles. */
#define BY_SIZE(name, function) \
    static void name(const Block *b, const float *from, float *to) \
    { \
        if (b->tiles->rows == 4 && b->tiles->columns == 4) \
            function(4, 4, b, from, to); \
        else if (b->tiles->rows == 4) \
            function(4, 2, b, from, to); \
        else if (b->tiles->columns == 4) \
            function(2, 4, b, from, to); \
        else \
            function(2, 2, b, from, to); \
    }
BY_SIZE(spread_tiles_around, spread_around)
BY_SIZE(spread_own_tiles, spread_own)
BY_SIZE(gather_tiles, gather)

/* Where the position that a size of tiles counts as the p-th is among all. */
INLINE int position_of(const Tiles *t, int p) { return p / (t->columns + 2) * POINTS + p % (t->columns + 2); }

/* G w G': (positions, n), of n numbers for each tap. */
static void transform_weight(const float *w, long n, float *out)
{
    const long apart = weights_apart(n);
    for (long c = 0; c < n; c += LANES) {
        vec half[POINTS][3];
        UNROLL for (int j = 0; j < 3; j++) {
            vec w0 = load(w + j * n + c), w1 = load(w + (3 + j) * n + c), w2 = load(w + (6 + j) * n + c);
            vec outer = (w0 + w2) * splat(0.5f), inner = w1 * splat(0.5f);
            vec outer_2 = w0 * splat(-4.0f / 3) - w2 * splat(1.0f / 3), inner_2 = w1 * splat(2.0f / 3);
            half[0][j] = w0, half[1][j] = outer + inner, half[2][j] = outer - inner;
            half[3][j] = w2, half[4][j] = outer_2 - inner_2, half[5][j] = outer_2 + inner_2;
        }
        UNROLL for (int i = 0; i < POINTS; i++) {
            float *to = out + POINTS * i * apart + c;
            vec w0 = half[i][0], w1 = half[i][1], w2 = half[i][2];
            vec outer = (w0 + w2) * splat(0.5f), inner = w1 * splat(0.5f);
            vec outer_2 = w0 * splat(-4.0f / 3) - w2 * splat(1.0f / 3), inner_2 = w1 * splat(2.0f / 3);
            store(to, w0), store(to + apart, outer + inner), store(to + 2 * apart, outer - inner);
            store(to + 3 * apart, w2), store(to + 4 * apart, outer_2 - inner_2);
            store(to + 5 * apart, outer_2 + inner_2);
        }
    }
}

/* G' along one axis: six values to three. */
INLINE void times_g_turned(const vec *u, vec *w)
{
    vec both = u[1] + u[2], both_2 = u[4] + u[5];
    w[0] = u[0] + both * splat(0.5f) - both_2 * splat(4.0f / 3);
    w[1] = (u[1] - u[2]) * splat(0.5f) + (u[5] - u[4]) * splat(2.0f / 3);
    w[2] = both * splat(0.5f) - both_2 * splat(1.0f / 3) + u[3];
}

/* G' u G, the transpose of that, with the taps in reverse order. */
static void transpose_transform_weight(const float *u, long n, float *out)
{
    for (long c = 0; c < n; c += LANES) {
        vec half[POINTS][3], w[POINTS];
        UNROLL for (int i = 0; i < POINTS; i++) {
            UNROLL for (int j = 0; j < POINTS; j++)
                w[j] = load(u + (POINTS * i + j) * weights_apart(n) + c);
            times_g_turned(w, half[i]);
        }
        UNROLL for (int j = 0; j < 3; j++) {
            vec taps[3];
            UNROLL for (int i = 0; i < POINTS; i++)
                w[i] = half[i][j];
            times_g_turned(w, taps);
            UNROLL for (int i = 0; i < 3; i++)
                store(out + (TAPS - 1 - 3 * i - j) * n + c, taps[i]);
        }
    }
}

/* Products of a block's tiles at all positions. */
static void multiply_tiles(const Block *b, int factors, float *const *spread, float *const *u, long channels,
                           long depth, float *out)
{
    int positions = (b->tiles->rows + 2) * (b->tiles->columns + 2);
    for (int position = 0; position < positions; position++) {
        const float *left[2], *right[2];
        for (int factor = 0; factor < factors; factor++) {
            left[factor] = spread[factor] + position * tiles_apart(channels);
            right[factor] = u[factor] + position_of(b->tiles, position) * weights_apart(channels * depth);
        }
        Product p = {.a = left,
                     .b = right,
                     .parts = factors,
                     .count = channels,
                     .a_row = channels,
                     .a_step = 1,
                     .b_step = depth,
                     .out = out + position * tiles_apart(depth),
                     .out_row = depth};
        multiply(&p, b->last - b->first, depth);
    }
}


/* The gradient by the transformed weights: at each position the sum over the tiles of own pixels times what
   is around. */
static void add_products_of_tiles(const Block *b, const float *own, const float *around, long channels,
                                  long depth, float *du)
{
    int positions = (b->tiles->rows + 2) * (b->tiles->columns + 2);
    for (int position = 0; position < positions; position++) {
        const float *left = own + position * tiles_apart(channels);
        const float *right = around + position * tiles_apart(depth);
        Product p = {.a = &left,
                     .b = &right,
                     .parts = 1,
                     .count = b->last - b->first,
                     .a_row = 1,
                     .a_step = channels,
                     .b_step = depth,
                     .out = du + position_of(b->tiles, position) * weights_apart(channels * depth),
                     .out_row = depth,
                     .add = 1};
        multiply(&p, channels, depth);
    }
}


/* --------------------------------------------------------------------------------------------- statistics */

/* Takes an image into mean and sum of squared deviations of the images before it. Squares are of
   deviations from the image's own mean: sum(y^2) - sum(y)^2 would cancel where a map is nearly constant
   (Chan, Golub & LeVeque 1983). */
static void take_in(const float *y, long pixels, long depth, long before, double *mean, double *squares)
{
    for (long d = 0; d < depth; d += LANES) {
        vec sum = splat(0), square = splat(0);
        for (long i = 0; i < pixels; i++)
            sum += load(y + i * depth + d);
        vec own = sum / splat((float)pixels);
        for (long i = 0; i < pixels; i++) {
            vec deviation = load(y + i * depth + d) - own;
            square += deviation * deviation;
        }
        for (int lane = 0; lane < LANES; lane++) {
            double change = (double)own[lane] - mean[d + lane], all = (double)(before + pixels);
            mean[d + lane] += change * (double)pixels / all;
            squares[d + lane] +=
                (double)square[lane] + change * change * (double)before * (double)pixels / all;
        }
    }
}


/* ---------------------------------------------------------------------------------- the convolution's two */

typedef struct {
    const Shape *s;
    const float *x[2], *w[2];
    int factors, largest; /* of the tiles */
    float *y, *mean, *variance;
} Convolve;

static void convolve_task(const void *arguments, long task, float *scratch)
{
    const Convolve *job = arguments;
    const Shape *s = job->s;
    const float *x[2], *w[2];
    long pixels = out_height(s) * out_width(s), seen = 0;
    float *y = job->y + task * out_size(s);
    double *mean = (double *)scratch, *squares = mean + s->depth;
    float *zeros = (float *)(squares + s->depth), *outside = zeros + s->channels, *next = outside + s->depth;
    memset(mean, 0, 2 * sizeof(double) * (size_t)s->depth);
    memset(zeros, 0, sizeof(float) * (size_t)s->channels);
    for (int factor = 0; factor < job->factors; factor++) {
        x[factor] = job->x[factor] + task * in_size(s);
        w[factor] = job->w[factor] + task * weight_size(s);
    }
    if (use_winograd(s, job->largest)) {
        float *u[2], *spread[2], *products = next;
        next += POSITIONS * tiles_apart(s->depth);
        for (int factor = 0; factor < job->factors; factor++) {
            u[factor] = next;
            next += POSITIONS * weights_apart(s->channels * s->depth);
            spread[factor] = next;
            next += POSITIONS * tiles_apart(s->channels);
            transform_weight(w[factor], s->channels * s->depth, u[factor]);
        }
        Walk walk = start(s, job->largest);
        while (next_block(s, &walk)) {
            Block from = {s, walk.tiles, s->channels, walk.first, walk.last, zeros};
            Block to = {s, walk.tiles, s->depth, walk.first, walk.last, outside};
            for (; job->mean && seen < complete_images(&walk); seen++) /* while they are in the cache */
                take_in(y + seen * pixels * s->depth, pixels, s->depth, seen * pixels, mean, squares);
            for (int factor = 0; factor < job->factors; factor++)
                spread_tiles_around(&from, x[factor], spread[factor]);
            multiply_tiles(&from, job->factors, spread, u, s->channels, s->depth, products);
            gather_tiles(&to, products, y);
        }
    } else
        direct_forward(s, x, w, job->factors, y);
    for (; job->mean && seen < s->images; seen++)
        take_in(y + seen * pixels * s->depth, pixels, s->depth, seen * pixels, mean, squares);
    for (long d = 0; job->mean && d < s->depth; d++) {
        job->mean[task * s->depth + d] = (float)mean[d];
        job->variance[task * s->depth + d] = (float)(squares[d] / (double)(s->images * pixels));
    }
}

/* y = convolution of x with w; plus that of x2 with w2 if they are not NULL. With `mean` not NULL also y's
   mean and biased variance over the pixels of all images: then y is a block's own map, and rounded finely
   (see above); else it is a derivative. */
int convolve(const Shape *s, const float *x, const float *w, const float *x2, const float *w2, float *y,
             float *mean, float *variance)
{
    Convolve job = {s, {x, x2}, {w, w2}, x2 ? 2 : 1, mean ? 2 : 4, y, mean, variance};
    long floats = 4 * s->depth + s->channels + s->depth;
    if (use_winograd(s, job.largest))
        floats += POSITIONS * (tiles_apart(s->depth) + job.factors * (weights_apart(s->channels * s->depth) +
                                                                      tiles_apart(s->channels)));
    return each_task(s, floats, convolve_task, &job);
}

typedef struct {
    const Shape *s;
    const float *x, *w, *dy;
    float *dx, *dw;
} ConvolveGradient;

static void convolve_gradient_task(const void *arguments, long task, float *scratch)
{
    const ConvolveGradient *job = arguments;
    const Shape *s = job->s;
    long size = s->channels * s->depth, widest = most(s->channels, s->depth);
    const float *x = job->dw ? job->x + task * in_size(s) : NULL,
                *w = job->dx ? job->w + task * weight_size(s) : NULL;
    const float *dy = job->dy + task * out_size(s);
    float *dx = job->dx ? job->dx + task * in_size(s) : NULL,
          *dw = job->dw ? job->dw + task * weight_size(s) : NULL;
    float *zeros = scratch, *outside = zeros + widest, *turned = outside + widest,
          *next = turned + TAPS * size;
    memset(zeros, 0, sizeof(float) * (size_t)widest);
    if (dx)
        turn(s, w, use_winograd(s, 4), turned);
    if (!use_winograd(s, 4)) {
        if (dx)
            direct_by_input(s, turned, dy, dx);
        if (dw)
            direct_by_weight(s, x, dy, dw, (const float **)next);
        return;
    }
    float *u = next, *du = u + POSITIONS * weights_apart(size),
          *spread = du + POSITIONS * weights_apart(size);
    float *other = spread + POSITIONS * tiles_apart(widest);
    if (dx)
        transform_weight(turned, size, u);
    if (dw)
        memset(du, 0, sizeof(float) * (size_t)(POSITIONS * weights_apart(size)));
    Walk walk = start(s, 4);
    while (next_block(s, &walk)) {
        Block from = {s, walk.tiles, s->depth, walk.first, walk.last, zeros};
        spread_tiles_around(&from, dy, spread);
        if (dx) {
            Block to = {s, walk.tiles, s->channels, walk.first, walk.last, outside};
            multiply_tiles(&from, 1, &spread, &u, s->depth, s->channels, other);
            gather_tiles(&to, other, dx);
        }
        if (dw) {
            Block own = {s, walk.tiles, s->channels, walk.first, walk.last, zeros};
            spread_own_tiles(&own, x, other);
            add_products_of_tiles(&from, other, spread, s->channels, s->depth, du);
        }
    }
    if (dw)
        transpose_transform_weight(du, size, dw);
}

/* The gradients by x and by w of sum(dy * convolution of x with w). The first needs only w and the second
   only x; the one that is NULL is left out. */
int convolve_gradient(const Shape *s, const float *x, const float *w, const float *dy, float *dx, float *dw)
{
    ConvolveGradient job = {s, x, w, dy, dx, dw};
    long size = s->channels * s->depth, widest = most(s->channels, s->depth);
    long floats = 2 * widest + TAPS * size;
    if (use_winograd(s, 4))
        floats += POSITIONS * 2 * (weights_apart(size) + tiles_apart(widest));
    else
        floats += 2 * out_height(s) * out_width(s) * FLOATS_OF_A_POINTER;
    return each_task(s, floats, convolve_gradient_task, &job);
}


/* ----------------------------------------------------------------- batch norm, max-pool and ReLU together */

/* What is one number a channel, of one task. */
typedef struct {
    const float *mean, *variance, *scale, *shift;
} Norm;

INLINE Norm norm_of(const Shape *s, const Norm *all, long task)
{
    long at = task * s->depth;
    return (Norm){all->mean + at, all->variance + at, all->scale + at, all->shift + at};
}

/* A pooling window: h of its pixels, the largest z, and where each pixel is the largest. Of equal ones the
   first in reading order is the largest: on a flat background all are equal, and only one may have the
   gradient. It is y that is compared, because z rounds different ones to the same. */
typedef struct {
    vec h[CORNERS], largest;
    mask chosen[CORNERS]; /* nowhere, if the largest is not positive: ReLU */
} Window;

INLINE Window look(const int corners, const float *const *y, long d, vec mean, vec rstd, vec scale, vec shift)
{
    Window w;
    const mask sign = (mask)scale & INT32_MIN; /* with a negative scale the least y has the largest z */
    vec best;
    UNROLL for (int i = 0; i < corners; i++) {
        vec value = load(y[i] + d), ordered = (vec)((mask)value ^ sign);
        w.h[i] = (value - mean) * rstd;
        if (i == 0) {
            best = ordered, w.largest = w.h[0], w.chosen[0] = ~(mask){0};
            continue;
        }
        mask larger = ordered > best;
        best = where(larger, ordered, best), w.largest = where(larger, w.h[i], w.largest);
        UNROLL for (int j = 0; j < i; j++)
            w.chosen[j] &= ~larger;
        w.chosen[i] = larger;
    }
    w.largest = w.largest * scale + shift;
    mask positive = w.largest > splat(0);
    UNROLL for (int i = 0; i < corners; i++)
        w.chosen[i] &= positive;
    return w;
}

/* The corners of a window, as offsets: of the map and of the pooled map. */
INLINE long corners_at(const Shape *s, const int corners, long image, long i, long j, const float *map,
                       const float **at)
{
    long height = out_height(s), width = out_width(s), side = corners == 1 ? 1 : 2;
    const float *first = map + ((image * height + i * side) * width + j * side) * s->depth;
    at[0] = first;
    if (corners > 1)
        at[1] = first + s->depth, at[2] = first + width * s->depth, at[3] = first + (width + 1) * s->depth;
    return ((image * (height / side) + i) * (width / side) + j) * s->depth;
}

INLINE vec rstd_of(vec variance)
{
    vec r = variance + splat(EPSILON);
    UNROLL for (int lane = 0; lane < LANES; lane++)
        r[lane] = 1.0f / sqrtf(r[lane]);
    return r;
}

#define EACH_WINDOW(s, side) \
    for (long image = 0; image < (s)->images; image++) \
        for (long i = 0; i < out_height(s) / (side); i++) \
            for (long j = 0; j < out_width(s) / (side); j++)

typedef struct {
    const Shape *s;
    Norm norm;
    const float *y, *g, *u, *u_scale, *u_shift;
    float *out, *dy, *dscale, *dshift, *dg;
} Normalize;

INLINE void normalize_one(const Normalize *job, const int corners, long task, float *rstd)
{
    const Shape *s = job->s;
    const Norm n = norm_of(s, &job->norm, task);
    const float *y = job->y + task * out_size(s), *at[CORNERS];
    float *out = job->out + task * pooled_size(s);
    for (long d = 0; d < s->depth; d += LANES)
        store(rstd + d, rstd_of(load(n.variance + d)));
    EACH_WINDOW (s, corners == 1 ? 1 : 2) {
        float *to = out + corners_at(s, corners, image, i, j, y, at);
        for (long d = 0; d < s->depth; d += LANES) {
            Window w =
                look(corners, at, d, load(n.mean + d), load(rstd + d), load(n.scale + d), load(n.shift + d));
            store(to + d, where(w.largest < splat(0), splat(0), w.largest)); /* NaN stays */
        }
    }
}

static void normalize_task(const void *job, long task, float *scratch)
{
    if (((const Normalize *)job)->s->stride == 1)
        normalize_one(job, CORNERS, task, scratch);
    else
        normalize_one(job, 1, task, scratch);
}

int normalize(const Shape *s, const float *y, const float *mean, const float *variance, const float *scale,
              const float *shift, float *out)
{
    Normalize job = {.s = s, .norm = {mean, variance, scale, shift}, .y = y, .out = out};
    return each_task(s, s->depth, normalize_task, &job);
}

/* Both derivatives read the map twice: for sums over all pixels, then for what depends on them. Sums are
   of an image each, and those are added in double.

   Adds the pixels that are in no window, the last row and column of a map of odd size. */
#define EACH_LEFT_OVER(s, side) \
    for (long image = 0; image < (s)->images; image++) \
        for (long i = 0; i < out_height(s); i++) \
            for (long j = i < out_height(s) / (side) * (side) ? out_width(s) / (side) * (side) : 0; \
                 j < out_width(s); j++)

INLINE void into_double(double *total, float *part, long n)
{
    for (long d = 0; d < n; d++) {
        total[d] += (double)part[d];
        part[d] = 0;
    }
}

/* With g the gradient by the output, on a window's chosen pixel g and elsewhere 0 is the gradient by z,
   dz. Over M pixels

       dshift = sum dz,   dscale = sum dz h,   dy = scale rstd (dz - dshift / M - h dscale / M). */
INLINE void normalize_gradient_one(const Normalize *job, const int corners, long task, float *scratch)
{
    const Shape *s = job->s;
    const long side = corners == 1 ? 1 : 2, depth = s->depth, pixels = out_height(s) * out_width(s);
    const Norm n = norm_of(s, &job->norm, task);
    const float *y = job->y + task * out_size(s), *g = job->g + task * pooled_size(s), *at[CORNERS];
    double *total = (double *)scratch;
    float *part = (float *)(total + 2 * depth), *rstd = part + 2 * depth;
    float *by_shift = part, *by_scale = part + depth, *dy = job->dy + task * out_size(s);
    memset(total, 0, sizeof(double) * 2 * (size_t)depth);
    memset(part, 0, sizeof(float) * 2 * (size_t)depth);
    for (long d = 0; d < depth; d += LANES)
        store(rstd + d, rstd_of(load(n.variance + d)));
    EACH_WINDOW (s, side) {
        if (!i && !j)
            into_double(total, part, 2 * depth);
        const float *from = g + corners_at(s, corners, image, i, j, y, at);
        for (long d = 0; d < depth; d += LANES) {
            Window w =
                look(corners, at, d, load(n.mean + d), load(rstd + d), load(n.scale + d), load(n.shift + d));
            vec grad = load(from + d), shift = load(by_shift + d), scale = load(by_scale + d);
            UNROLL for (int q = 0; q < corners; q++) {
                vec dz = only(w.chosen[q], grad);
                shift += dz, scale += dz * w.h[q];
            }
            store(by_shift + d, shift), store(by_scale + d, scale);
        }
    }
    into_double(total, part, 2 * depth);
    double count = (double)(s->images * pixels);
    for (long d = 0; d < depth; d++) {
        job->dshift[task * depth + d] = (float)total[d];
        job->dscale[task * depth + d] = (float)total[depth + d];
        by_shift[d] = (float)(total[d] / count);
        by_scale[d] = (float)(total[depth + d] / count);
    }
    EACH_WINDOW (s, side) {
        const float *from = g + corners_at(s, corners, image, i, j, y, at);
        for (long d = 0; d < depth; d += LANES) {
            vec scale = load(n.scale + d), r = load(rstd + d), grad = load(from + d);
            Window w = look(corners, at, d, load(n.mean + d), r, scale, load(n.shift + d));
            UNROLL for (int q = 0; q < corners; q++)
                store(dy + (at[q] - y) + d,
                      scale * r *
                          (only(w.chosen[q], grad) - load(by_shift + d) - w.h[q] * load(by_scale + d)));
        }
    }
    EACH_LEFT_OVER (s, side)
        for (long d = 0; d < depth; d += LANES) {
            long pixel = (image * pixels + i * out_width(s) + j) * depth + d;
            vec r = load(rstd + d), h = (load(y + pixel) - load(n.mean + d)) * r;
            store(dy + pixel, load(n.scale + d) * r * (-load(by_shift + d) - h * load(by_scale + d)));
        }
}

static void normalize_gradient_task(const void *job, long task, float *scratch)
{
    if (((const Normalize *)job)->s->stride == 1)
        normalize_gradient_one(job, CORNERS, task, scratch);
    else
        normalize_gradient_one(job, 1, task, scratch);
}

int normalize_gradient(const Shape *s, const float *y, const float *mean, const float *variance,
                       const float *scale, const float *shift, const float *g, float *dy, float *dscale,
                       float *dshift)
{
    Normalize job = {.s = s,
                     .norm = {mean, variance, scale, shift},
                     .y = y,
                     .g = g,
                     .dy = dy,
                     .dscale = dscale,
                     .dshift = dshift};
    return each_task(s, 7 * s->depth, normalize_gradient_task, &job);
}

/* With u, u_scale, u_shift the gradients by dy, dscale and dshift of

       S = <u, dy> + <u_scale, dscale> + <u_shift, dshift>,

   S is the derivative of <g, out> along (u, u_scale, u_shift). Along it, with a bar for the mean over the
   M pixels and q = mean(h u),

       h. = rstd (u - u_bar - h q),     z. = scale h. + u_scale h + u_shift,

   so that the gradient of S by g is z. at the chosen pixels, where they are positive, and with

       b = sum dz,   e = sum dz h,   f = sum dz h. = rstd (sum dz u - u_bar b - q e)

   S = scale f + u_scale e + u_shift b. Hence dS/dscale = f and dS/dshift = 0. By y, because d rstd / dy =
   - rstd^2 h / M,  de/dy = rstd (dz - b / M - h e / M)  and  dq/dy = rstd (u - u_bar - h q) / M,

       dS/dy = (u_scale - scale rstd q) rstd (dz - b / M - h e / M)
               - scale rstd (f h + e rstd (u - u_bar - h q)) / M. */
INLINE void normalize_second_one(const Normalize *job, const int corners, long task, float *scratch)
{
    enum { U, HU, B, E, DZU, SUMS };
    const Shape *s = job->s;
    const long side = corners == 1 ? 1 : 2, depth = s->depth, pixels = out_height(s) * out_width(s);
    const Norm n = norm_of(s, &job->norm, task);
    const float *y = job->y + task * out_size(s), *g = job->g + task * pooled_size(s),
                *u = job->u + task * out_size(s);
    const float *u_scale = job->u_scale + task * depth, *u_shift = job->u_shift + task * depth, *at[CORNERS];
    float *dy = job->dy + task * out_size(s), *dg = job->dg + task * pooled_size(s);
    double *total = (double *)scratch, count = (double)(s->images * pixels);
    float *part = (float *)(total + SUMS * depth), *rstd = part + SUMS * depth;
    memset(total, 0, sizeof(double) * SUMS * (size_t)depth);
    memset(part, 0, sizeof(float) * SUMS * (size_t)depth);
    for (long d = 0; d < depth; d += LANES)
        store(rstd + d, rstd_of(load(n.variance + d)));
    EACH_WINDOW (s, side) {
        if (!i && !j)
            into_double(total, part, SUMS * depth);
        const float *from = g + corners_at(s, corners, image, i, j, y, at);
        for (long d = 0; d < depth; d += LANES) {
            Window w =
                look(corners, at, d, load(n.mean + d), load(rstd + d), load(n.scale + d), load(n.shift + d));
            vec grad = load(from + d), sum[SUMS];
            UNROLL for (int k = 0; k < SUMS; k++)
                sum[k] = load(part + k * depth + d);
            UNROLL for (int q = 0; q < corners; q++) {
                vec dz = only(w.chosen[q], grad), along = load(u + (at[q] - y) + d);
                sum[U] += along, sum[HU] += w.h[q] * along;
                sum[B] += dz, sum[E] += dz * w.h[q], sum[DZU] += dz * along;
            }
            UNROLL for (int k = 0; k < SUMS; k++)
                store(part + k * depth + d, sum[k]);
        }
    }
    EACH_LEFT_OVER (s, side)
        for (long d = 0; d < depth; d += LANES) {
            long pixel = (image * pixels + i * out_width(s) + j) * depth + d;
            vec along = load(u + pixel), h = (load(y + pixel) - load(n.mean + d)) * load(rstd + d);
            store(part + U * depth + d, load(part + U * depth + d) + along);
            store(part + HU * depth + d, load(part + HU * depth + d) + h * along);
        }
    into_double(total, part, SUMS * depth);
    /* dS/dy = by_dz dz + by_h h + by_u u + constant;  z. = tangent_u (u - u_bar) + tangent_h h + u_shift */
    float *u_bar = part, *by_dz = part + depth, *by_h = part + 2 * depth, *by_u = part + 3 * depth,
          *constant = part + 4 * depth;
    float *tangent_h = rstd + depth;
    for (long d = 0; d < depth; d++) {
        double r = rstd[d], scale = n.scale[d], mean_u = total[U * depth + d] / count,
               q = total[HU * depth + d] / count;
        double b = total[B * depth + d], e = total[E * depth + d],
               f = r * (total[DZU * depth + d] - mean_u * b - q * e);
        double first = (u_scale[d] - scale * r * q) * r;
        job->dscale[task * depth + d] = (float)f;
        u_bar[d] = (float)mean_u;
        by_dz[d] = (float)first;
        by_h[d] = (float)((-first * e - scale * r * (f - e * r * q)) / count);
        by_u[d] = (float)(-scale * r * e * r / count);
        constant[d] = (float)(-first * b / count);
        tangent_h[d] = (float)(u_scale[d] - scale * r * q);
    }
    EACH_WINDOW (s, side) {
        long pooled = corners_at(s, corners, image, i, j, y, at);
        for (long d = 0; d < depth; d += LANES) {
            vec scale = load(n.scale + d), r = load(rstd + d), grad = load(g + pooled + d),
                tangent = splat(0);
            Window w = look(corners, at, d, load(n.mean + d), r, scale, load(n.shift + d));
            UNROLL for (int q = 0; q < corners; q++) {
                vec along = load(u + (at[q] - y) + d) - load(u_bar + d);
                store(dy + (at[q] - y) + d, load(by_dz + d) * only(w.chosen[q], grad) +
                                                load(by_h + d) * w.h[q] + load(by_u + d) * along +
                                                load(constant + d));
                tangent +=
                    only(w.chosen[q], scale * r * along + load(tangent_h + d) * w.h[q] + load(u_shift + d));
            }
            store(dg + pooled + d, tangent);
        }
    }
    EACH_LEFT_OVER (s, side)
        for (long d = 0; d < depth; d += LANES) {
            long pixel = (image * pixels + i * out_width(s) + j) * depth + d;
            vec h = (load(y + pixel) - load(n.mean + d)) * load(rstd + d);
            store(dy + pixel, load(by_h + d) * h + load(by_u + d) * (load(u + pixel) - load(u_bar + d)) +
                                  load(constant + d));
        }
}

static void normalize_second_task(const void *job, long task, float *scratch)
{
    if (((const Normalize *)job)->s->stride == 1)
        normalize_second_one(job, CORNERS, task, scratch);
    else
        normalize_second_one(job, 1, task, scratch);
}

int normalize_second(const Shape *s, const float *y, const float *mean, const float *variance,
                     const float *scale, const float *shift, const float *g, const float *u,
                     const float *u_scale, const float *u_shift, float *dy, float *dscale, float *dg)
{
    Normalize job = {.s = s,
                     .norm = {mean, variance, scale, shift},
                     .y = y,
                     .g = g,
                     .u = u,
                     .u_scale = u_scale,
                     .u_shift = u_shift,
                     .dy = dy,
                     .dscale = dscale,
                     .dg = dg};
    return each_task(s, 17 * s->depth, normalize_second_task, &job);
}


/* ---------------------------------------------------------------------------------------- the first block */

/* Images are constants of few channels. Of the K = 9 * channels numbers x under the kernel at a pixel
   their mean m and covariance C over all pixels are known once and for all, so that batch norm is known
   before the convolution: with v = w' C w and r = 1 / sqrt(v + epsilon)

       z = (x - m) w scale r + shift = x w* + shift*.

   No map is written but the pooled one, and which corner was chosen, in a byte. Images are kept with
   channels last and a border of zeros: the numbers under the kernel are then at fixed distances from the
   first of them. */

enum { NOWHERE = 255 }; /* instead of a corner: the largest is not positive */

INLINE long padded_width(const Shape *s) { return s->width + 2; }
INLINE long padded_size(const Shape *s)
{
    return s->images * (s->height + 2) * padded_width(s) * s->channels;
}
INLINE long numbers(const Shape *s) { return TAPS * s->channels; }

/* Distances of the numbers under the kernel from the first. */
static void distances(const Shape *s, int32_t *at)
{
    for (int tap = 0; tap < TAPS; tap++)
        for (long c = 0; c < s->channels; c++)
            *at++ = (int32_t)((tap / 3 * padded_width(s) + tap % 3) * s->channels + c);
}

typedef struct {
    const Shape *s;
    const float *images;
    float *padded, *mean, *covariance;
} Prepare;

/* Numbers under the kernel and a one, with zeros up to a multiple of 16, which `multiply` wants. */
INLINE long wide_numbers(const Shape *s) { return (numbers(s) + 16) / 16 * 16; }

static void prepare_task(const void *arguments, long task, float *scratch)
{
    const Prepare *job = arguments;
    const Shape *s = job->s;
    const long count = numbers(s), wide = wide_numbers(s), height = out_height(s), width = out_width(s);
    const double pixels = (double)(s->images * height * width);
    const float *from = job->images + task * in_size(s);
    float *padded = job->padded + task * padded_size(s), *mean = job->mean + task * count;
    float *covariance = job->covariance + task * count * count;
    double *total = (double *)scratch, *centre = total + count * wide;
    float *part = (float *)(centre + s->channels), *x = part + count * wide, *centres = x + width * wide;
    int32_t *at = (int32_t *)(centres + count);
    distances(s, at);
    memset(padded, 0, sizeof(float) * (size_t)padded_size(s));
    memset(centre, 0, sizeof(double) * (size_t)s->channels);
    for (long image = 0; image < s->images; image++)
        for (long c = 0; c < s->channels; c++)
            for (long i = 0; i < s->height; i++) {
                float *to = padded + ((image * (s->height + 2) + i + 1) * padded_width(s) + 1) * s->channels +
                            c,
                      sum = 0;
                for (long j = 0; j < s->width; j++)
                    sum += to[j * s->channels] = *from++;
                centre[c] += (double)sum;
            }
    /* Of the numbers less a channel's mean, which but for the border is theirs too: else their products
       would cancel. */
    for (long k = 0; k < count; k++)
        centres[k] = (float)(centre[k % s->channels] / (double)(s->images * s->height * s->width));
    memset(total, 0, sizeof(double) * (size_t)(count * wide));
    memset(part, 0, sizeof(float) * (size_t)(count * wide));
    for (long j = 0; j < width; j++)
        for (long k = count; k < wide; k++)
            x[j * wide + k] = k == count;
    for (long image = 0; image < s->images; image++) {
        for (long i = 0; i < height; i++) {
            const float *line =
                padded + (image * (s->height + 2) + i * s->stride) * padded_width(s) * s->channels;
            for (long j = 0; j < width; j++, line += s->stride * s->channels)
                for (long k = 0; k < count; k++)
                    x[j * wide + k] = line[at[k]] - centres[k];
            const float *a = x, *b = x;
            Product p = {.a = &a,
                         .b = &b,
                         .parts = 1,
                         .count = width,
                         .a_row = 1,
                         .a_step = wide,
                         .b_step = wide,
                         .out = part,
                         .out_row = wide,
                         .add = 1};
            multiply(&p, count, wide);
            into_double(total, part, count * wide); /* line by line: squares add up, and so do roundings */
        }
    }
    for (long k = 0; k < count; k++)
        for (long d = 0; d < count; d++) {
            double off_k = total[k * wide + count] / pixels, off_d = total[d * wide + count] / pixels;
            covariance[k * count + d] = (float)(total[k * wide + d] / pixels - off_k * off_d);
            mean[k] = (float)((double)centres[k] + off_k);
        }
}

/* Images (tasks, images, channels, height, width) with a border and the channels last, (tasks, images,
   height + 2, width + 2, channels); mean (tasks, 9 * channels) and covariance of the numbers under the
   kernel. */
int first_prepare(const Shape *s, const float *images, float *padded, float *mean, float *covariance)
{
    Prepare job = {s, images, padded, mean, covariance};
    long count = numbers(s), wide = wide_numbers(s);
    return each_task(s, 3 * count * wide + 2 * s->channels + out_width(s) * wide + 2 * count, prepare_task,
                     &job);
}

typedef struct {
    const Shape *s;
    const float *x, *mean, *covariance, *w, *scale, *shift, *g, *u_w, *u_scale, *u_shift;
    float *out, *dw, *dscale, *dshift, *dg;
    uint8_t *choice;
} First;

/* out = C w for (K, depth) arrays, and the sums over K of v * (C w). */
static void times_covariance(const Shape *s, const float *covariance, const float *w, const float *v,
                             float *out, float *sums)
{
    long count = numbers(s);
    const float *a = covariance, *b = w;
    Product p = {.a = &a,
                 .b = &b,
                 .parts = 1,
                 .count = count,
                 .a_row = count,
                 .a_step = 1,
                 .b_step = s->depth,
                 .out = out,
                 .out_row = s->depth};
    multiply(&p, count, s->depth);
    for (long d = 0; d < s->depth; d += LANES) {
        vec sum = splat(0);
        for (long k = 0; k < count; k++)
            sum += load(v + k * s->depth + d) * load(out + k * s->depth + d);
        store(sums + d, sum);
    }
}

/* Four pixels are computed together: the corners of a pooling window, or without pooling four that follow
   each other, of which the last is repeated where a row ends. Either way the next window, and the next
   pixel of the output, is two pixels on. */
INLINE void four_pixels(const Shape *s, const float *line, long j, long end, const float **at)
{
    long row = padded_width(s) * s->channels;
    for (int q = 0; q < CORNERS; q++)
        at[q] = line + (s->stride == 1 ? q / 2 * row + (2 * j + q % 2) * s->channels
                                       : 2 * least(j + q, end - 1) * s->channels);
}

typedef struct {
    long height, width; /* of the block's output */
    int together;       /* pixels of it that four pixels make */
} Output;

INLINE Output output_of(const Shape *s)
{
    return (Output){out_height(s) / side(s), out_width(s) / side(s), s->stride == 1 ? 1 : CORNERS};
}
INLINE const float *line_of(const Shape *s, const float *x, long image, long i)
{
    return x + (image * (s->height + 2) + 2 * i) * padded_width(s) * s->channels;
}

/* out = z of the chosen corners: with ReLU of the largest of each window, and then the choice is written;
   or as `given`. */
INLINE void first_columns(const Shape *s, const int vectors, const int given, const float *x,
                          const int32_t *at, const float *w, const float *shift, float *out, uint8_t *choice,
                          long d)
{
    const long count = numbers(s), depth = s->depth;
    const Output o = output_of(s);
    for (long image = 0; image < s->images; image++)
        for (long i = 0; i < o.height; i++)
            for (long j = 0; j < o.width; j += o.together) {
                const float *pixel[CORNERS];
                vec z[CORNERS][COLUMNS];
                four_pixels(s, line_of(s, x, image, i), j, o.width, pixel);
                UNROLL for (int q = 0; q < CORNERS; q++)
                    UNROLL for (int v = 0; v < vectors; v++)
                        z[q][v] = load(shift + d + v * LANES);
                for (long k = 0; k < count; k++) {
                    vec right[COLUMNS];
                    UNROLL for (int v = 0; v < vectors; v++)
                        right[v] = load(w + k * depth + d + v * LANES);
                    UNROLL for (int q = 0; q < CORNERS; q++) {
                        vec left = splat(pixel[q][at[k]]);
                        UNROLL for (int v = 0; v < vectors; v++)
                            z[q][v] += left * right[v];
                    }
                }
                UNROLL for (int v = 0; v < vectors; v++) {
                    long first = ((image * o.height + i) * o.width + j) * depth + d + v * LANES;
                    if (s->stride == 1 && given) {
                        mask chosen = __builtin_convertvector(*(bytes *)(choice + first), mask);
                        vec value = splat(0);
                        UNROLL for (int q = 0; q < CORNERS; q++)
                            value = where(chosen == q, z[q][v], value);
                        store(out + first, value);
                    } else if (s->stride == 1) {
                        vec value = z[0][v];
                        mask chosen = {0};
                        UNROLL for (int q = 1; q < CORNERS; q++) {
                            mask larger = z[q][v] > value;
                            value = where(larger, z[q][v], value);
                            chosen = (larger & q) | (~larger & chosen);
                        }
                        mask positive = value > splat(0);
                        store(out + first, where(value < splat(0), splat(0), value)); /* NaN stays */
                        *(bytes *)(choice + first) =
                            __builtin_convertvector((positive & chosen) | (~positive & NOWHERE), bytes);
                    } else
                        UNROLL for (int q = 0; q < CORNERS; q++, first += depth) {
                            vec value = z[q][v];
                            if (j + q >= o.width)
                                continue;
                            if (given) {
                                mask chosen = __builtin_convertvector(*(bytes *)(choice + first), mask);
                                store(out + first, only(chosen == 0, value));
                            } else {
                                mask positive = value > splat(0);
                                store(out + first, where(value < splat(0), splat(0), value));
                                *(bytes *)(choice + first) =
                                    __builtin_convertvector(~positive & NOWHERE, bytes);
                            }
                        }
                }
            }
}

static void first_map(const Shape *s, const int given, const float *x, const int32_t *at, const float *w,
                      const float *shift, float *out, uint8_t *choice)
{
    long d = 0;
    for (; d + COLUMNS * LANES <= s->depth; d += COLUMNS * LANES)
        if (given)
            first_columns(s, COLUMNS, 1, x, at, w, shift, out, choice, d);
        else
            first_columns(s, COLUMNS, 0, x, at, w, shift, out, choice, d);
    for (; d < s->depth; d += LANES)
        if (given)
            first_columns(s, 1, 1, x, at, w, shift, out, choice, d);
        else
            first_columns(s, 1, 0, x, at, w, shift, out, choice, d);
}

/* w* and shift*, see above, and r. */
static void fold(const Shape *s, const float *mean, const float *variance, const float *w, const float *scale,
                 const float *shift, float *rstd, float *w_star, float *shift_star)
{
    long count = numbers(s);
    for (long d = 0; d < s->depth; d += LANES) {
        vec r = rstd_of(load(variance + d)), factor = load(scale + d) * r, constant = load(shift + d);
        store(rstd + d, r);
        for (long k = 0; k < count; k++) {
            vec value = load(w + k * s->depth + d) * factor;
            store(w_star + k * s->depth + d, value);
            constant -= splat(mean[k]) * value;
        }
        store(shift_star + d, constant);
    }
}

static void first_forward_task(const void *arguments, long task, float *scratch)
{
    const First *job = arguments;
    const Shape *s = job->s;
    long count = numbers(s), size = count * s->depth;
    const float *mean = job->mean + task * count, *w = job->w + task * size;
    float *product = scratch, *w_star = product + size, *shift_star = w_star + size,
          *variance = shift_star + s->depth;
    float *rstd = variance + s->depth;
    int32_t *at = (int32_t *)(rstd + s->depth);
    distances(s, at);
    times_covariance(s, job->covariance + task * count * count, w, w, product, variance);
    fold(s, mean, variance, w, job->scale + task * s->depth, job->shift + task * s->depth, rstd, w_star,
         shift_star);
    first_map(s, 0, job->x + task * padded_size(s), at, w_star, shift_star, job->out + task * pooled_size(s),
              job->choice + task * pooled_size(s));
}

/* The block's output, of images as first_prepare returns them, and what was chosen; mean and covariance
   may be those of other images. */
int first_forward(const Shape *s, const float *x, const float *mean, const float *covariance, const float *w,
                  const float *scale, const float *shift, float *out, uint8_t *choice)
{
    First job = {.s = s,
                 .x = x,
                 .mean = mean,
                 .covariance = covariance,
                 .w = w,
                 .scale = scale,
                 .shift = shift,
                 .out = out,
                 .choice = choice};
    return each_task(s, 2 * numbers(s) * s->depth + 3 * s->depth + numbers(s), first_forward_task, &job);
}

/* From g, the gradient by the output, b = sum g and, for nine numbers under the kernel, x_sum = sum g x of
   the chosen pixels. */
INLINE void first_sums(const Shape *s, const int vectors, const float *x, const int32_t *at, const float *g,
                       const uint8_t *choice, long d, float *b, float *x_sum)
{
    const long depth = s->depth;
    const Output o = output_of(s);
    vec total[TAPS + 1][2] = {{{0}}}, sum[TAPS + 1][2];
    for (long image = 0; image < s->images; image++) { /* sums of an image each, and those are added */
        UNROLL for (int k = 0; k <= TAPS; k++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[k][v] = splat(0);
        for (long i = 0; i < o.height; i++)
            for (long j = 0; j < o.width; j += o.together) {
                const float *pixel[CORNERS];
                four_pixels(s, line_of(s, x, image, i), j, o.width, pixel);
                UNROLL for (int q = 0; q < CORNERS; q++) {
                    vec dz[2];
                    UNROLL for (int v = 0; v < vectors; v++) {
                        long from = ((image * o.height + i) * o.width + j) * depth + d + v * LANES;
                        int corner = q;
                        dz[v] = splat(0);
                        if (s->stride != 1) {
                            if (j + q >= o.width)
                                continue;
                            from += q * depth;
                            corner = 0;
                        }
                        mask chosen = __builtin_convertvector(*(const bytes *)(choice + from), mask);
                        dz[v] = only(chosen == corner, load(g + from));
                        sum[TAPS][v] += dz[v];
                    }
                    UNROLL for (int k = 0; k < TAPS; k++) {
                        vec left = splat(pixel[q][at[k]]);
                        UNROLL for (int v = 0; v < vectors; v++)
                            sum[k][v] += left * dz[v];
                    }
                }
            }
        UNROLL for (int k = 0; k <= TAPS; k++)
            UNROLL for (int v = 0; v < vectors; v++)
                total[k][v] += sum[k][v];
    }
    UNROLL for (int v = 0; v < vectors; v++) {
        store(b + d + v * LANES, total[TAPS][v]);
        UNROLL for (int k = 0; k < TAPS; k++)
            store(x_sum + k * depth + d + v * LANES, total[k][v]);
    }
}

/* With p = sum g (x - m), over the chosen pixels, and e = p' w:

       dshift = sum g,   dscale = r e,   dw = scale r (p - r^2 e C w).

   And with S = <u_w, dw> + <u_scale, dscale> + <u_shift, dshift>, the derivative of <g, out> along (u_w,
   u_scale, u_shift), where r. = - r^3 c with c = w' C u_w:

       dS/dg = (x - m) (scale r u_w + (u_scale r + scale r.) w) + u_shift  at the chosen pixels,
       dS/dscale = r. e + r p' u_w,    dS/dshift = 0,
       dS/dw = (u_scale r + scale r.) p - (u_scale e + scale p' u_w) r^3 C w
               + scale e (3 r^5 c C w - r^3 C u_w). */
static void first_gradient_task(const void *arguments, long task, float *scratch)
{
    const First *job = arguments;
    const Shape *s = job->s;
    const long depth = s->depth, count = numbers(s), size = count * depth;
    const float *x = job->x + task * padded_size(s), *mean = job->mean + task * count,
                *w = job->w + task * size;
    const float *covariance = job->covariance + task * count * count, *scale = job->scale + task * depth;
    const float *g = job->g + task * pooled_size(s), *u_w = job->u_w ? job->u_w + task * size : NULL;
    uint8_t *choice = job->choice + task * pooled_size(s);
    float *cw = scratch, *p = cw + size, *cu = p + size, *w_star = cu + size, *variance = w_star + size,
          *b = variance + depth;
    float *c = b + depth, *shift_star = c + depth;
    float *dw = job->dw + task * size;
    int32_t *at = (int32_t *)(shift_star + depth);
    distances(s, at);
    times_covariance(s, covariance, w, w, cw, variance);
    if (u_w)
        times_covariance(s, covariance, u_w, w, cu, c);
    for (long k = 0; k < count; k += TAPS) {
        long d = 0;
        for (; FIRST_COLUMNS == 2 && d + 2 * LANES <= depth; d += 2 * LANES)
            first_sums(s, 2, x, at + k, g, choice, d, b, p + k * depth);
        for (; d < depth; d += LANES)
            first_sums(s, 1, x, at + k, g, choice, d, b, p + k * depth);
    }
    for (long d = 0; d < depth; d += LANES) {
        vec e = splat(0), r = rstd_of(load(variance + d)), a = load(scale + d), pu = splat(0);
        for (long k = 0; k < count; k++) {
            vec centred = load(p + k * depth + d) - splat(mean[k]) * load(b + d);
            store(p + k * depth + d, centred);
            e += centred * load(w + k * depth + d);
            if (u_w)
                pu += centred * load(u_w + k * depth + d);
        }
        if (!u_w) {
            store(job->dshift + task * depth + d, load(b + d));
            store(job->dscale + task * depth + d, r * e);
            for (long k = 0; k < count; k++)
                store(dw + k * depth + d,
                      a * r * (load(p + k * depth + d) - r * r * e * load(cw + k * depth + d)));
            continue;
        }
        vec cubed = r * r * r, r_dot = -cubed * load(c + d), u_scale = load(job->u_scale + task * depth + d);
        vec by_p = u_scale * r + a * r_dot, constant = load(job->u_shift + task * depth + d);
        vec by_cw = a * e * splat(-3) * r * r * r_dot - (u_scale * e + a * pu) * cubed,
            by_cu = -a * e * cubed;
        store(job->dscale + task * depth + d, r_dot * e + r * pu);
        for (long k = 0; k < count; k++) {
            long i = k * depth + d;
            vec along = a * r * load(u_w + i) + by_p * load(w + i);
            store(dw + i, by_p * load(p + i) + by_cw * load(cw + i) + by_cu * load(cu + i));
            store(w_star + i, along);
            constant -= splat(mean[k]) * along;
        }
        store(shift_star + d, constant);
    }
    if (u_w)
        first_map(s, 1, x, at, w_star, shift_star, job->dg + task * pooled_size(s), choice);
}

static long first_gradient_floats(const Shape *s)
{
    return 4 * numbers(s) * s->depth + 4 * s->depth + numbers(s);
}

int first_gradient(const Shape *s, const float *x, const float *mean, const float *covariance, const float *w,
                   const float *scale, const uint8_t *choice, const float *g, float *dw, float *dscale,
                   float *dshift)
{
    First job = {.s = s,
                 .x = x,
                 .mean = mean,
                 .covariance = covariance,
                 .w = w,
                 .scale = scale,
                 .choice = (uint8_t *)choice,
                 .g = g,
                 .dw = dw,
                 .dscale = dscale,
                 .dshift = dshift};
    return each_task(s, first_gradient_floats(s), first_gradient_task, &job);
}

int first_second(const Shape *s, const float *x, const float *mean, const float *covariance, const float *w,
                 const float *scale, const uint8_t *choice, const float *g, const float *u_w,
                 const float *u_scale, const float *u_shift, float *dw, float *dscale, float *dg)
{
    First job = {.s = s,
                 .x = x,
                 .mean = mean,
                 .covariance = covariance,
                 .w = w,
                 .scale = scale,
                 .choice = (uint8_t *)choice,
                 .g = g,
                 .u_w = u_w,
                 .u_scale = u_scale,
                 .u_shift = u_shift,
                 .dw = dw,
                 .dscale = dscale,
                 .dg = dg};
    return each_task(s, first_gradient_floats(s), first_gradient_task, &job);
}
