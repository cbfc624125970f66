/* Calls every function of native.c on arrays of the exact size, for sanitizers to watch; what is computed is
 * tested in Python. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int64_t tasks, images, height, width, channels, depth, stride, threads;
} Shape;

int convolve(const Shape *, const float *, const float *, const float *, const float *, float *, float *,
             float *);
int convolve_gradient(const Shape *, const float *, const float *, const float *, float *, float *);
int normalize(const Shape *, const float *, const float *, const float *, const float *, const float *,
              float *);
int normalize_gradient(const Shape *, const float *, const float *, const float *, const float *,
                       const float *, const float *, float *, float *, float *);
int normalize_second(const Shape *, const float *, const float *, const float *, const float *, const float *,
                     const float *, const float *, const float *, const float *, float *, float *, float *);
int first_prepare(const Shape *, const float *, float *, float *, float *);
int first_forward(const Shape *, const float *, const float *, const float *, const float *, const float *,
                  const float *, float *, uint8_t *);
int first_gradient(const Shape *, const float *, const float *, const float *, const float *, const float *,
                   const uint8_t *, const float *, float *, float *, float *);
int first_second(const Shape *, const float *, const float *, const float *, const float *, const float *,
                 const uint8_t *, const float *, const float *, const float *, const float *, float *,
                 float *, float *);

static void *kept[64];
static int count;

/* Not aligned to more than a float, as nobody promised. */
static float *numbers(int64_t size)
{
    char *memory = malloc((size_t)size * sizeof(float) + 4);
    float *array = (float *)(memory + 4);
    kept[count++] = memory;
    for (int64_t i = 0; i < size; i++)
        array[i] = (float)(rand() % 2001 - 1000) / 1000;
    return array;
}

static int run(Shape s)
{
    int64_t side = s.stride == 1 ? 2 : 1, height = (s.height - 1) / s.stride + 1,
            width = (s.width - 1) / s.stride + 1;
    int64_t maps = s.tasks * s.images * height * width * s.depth, channels = s.tasks * s.depth;
    int64_t pooled = s.tasks * s.images * (height / side) * (width / side) * s.depth;
    int64_t inputs = s.tasks * s.images * s.height * s.width * s.channels,
            weights = s.tasks * 9 * s.channels * s.depth;
    float *mean = numbers(channels), *variance = numbers(channels), *scale = numbers(channels),
          *shift = numbers(channels);
    float *a = numbers(channels), *b = numbers(channels), *out = numbers(pooled), *g = numbers(pooled);
    float *x = numbers(inputs), *w = numbers(weights), *dw = numbers(weights), *vw = numbers(weights);
    int failed = 0;
    if (s.channels % 16 == 0) {
        float *y = numbers(maps), *dy = numbers(maps), *u = numbers(maps), *dx = numbers(inputs),
              *vx = numbers(inputs);
        failed |= convolve(&s, x, w, NULL, NULL, y, mean, variance);
        failed |= normalize(&s, y, mean, variance, scale, shift, out);
        failed |= normalize_gradient(&s, y, mean, variance, scale, shift, g, dy, a, b);
        failed |= convolve_gradient(&s, x, w, dy, dx, dw);
        failed |= convolve_gradient(&s, x, NULL, dy, NULL, dw);
        failed |= convolve_gradient(&s, NULL, w, dy, dx, NULL);
        failed |= convolve(&s, vx, w, x, vw, u, NULL, NULL);
        failed |= normalize_second(&s, y, mean, variance, scale, shift, g, u, a, b, dy, mean, out);
    }
    int64_t k = 9 * s.channels;
    float *padded = numbers(s.tasks * s.images * (s.height + 2) * (s.width + 2) * s.channels);
    float *means = numbers(s.tasks * k), *covariance = numbers(s.tasks * k * k);
    uint8_t *choice = malloc((size_t)pooled);
    failed |= first_prepare(&s, x, padded, means, covariance);
    failed |= first_forward(&s, padded, means, covariance, w, scale, shift, out, choice);
    failed |= first_gradient(&s, padded, means, covariance, w, scale, choice, g, dw, a, b);
    failed |= first_second(&s, padded, means, covariance, w, scale, choice, g, vw, a, b, dw, shift, out);
    free(choice);
    while (count)
        free(kept[--count]);
    return failed;
}

int main(void)
{
    static const int sizes[][2] = {{1, 1}, {2, 2}, {3, 3},  {2, 5},   {4, 4},
                                   {7, 7}, {6, 9}, {10, 8}, {13, 14}, {15, 17}};
    static const int channels[][2] = {{16, 16}, {32, 16}, {16, 80}, {1, 16}, {3, 48}};
    int done = 0;
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (unsigned j = 0; j < sizeof channels / sizeof *channels; j++)
            for (int stride = 1; stride <= 2; stride++)
                for (int images = 1; images <= 8; images += 7) {
                    Shape s = {images == 1 ? 3 : 1, images,         sizes[i][0], sizes[i][1],
                               channels[j][0],      channels[j][1], stride,      2};
                    if (stride == 1 && (s.height < 2 || s.width < 2))
                        continue; /* no pooling window */
                    if (run(s))
                        return 1;
                    done++;
                }
    printf("%d shapes\n", done);
    return 0;
}
