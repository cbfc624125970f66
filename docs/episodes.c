/* An episode of paddle_maml by the rule of docs/interchange.md, without Python: images in, arrays out.

   cc -O2 -o episodes docs/episodes.c
   episodes IMAGES CLASSES IMAGES_OF_A_CLASS CHANNELS SIDE N_WAY K_SHOT K_QUERY ROTATIONS SEED INDEX > EPISODE

   IMAGES is a file of uint8 (classes, images of a class, channels, side, side); ROTATIONS is 0 or 1. The output
   is x_spt float32, y_spt int64, x_qry, y_qry one after the other, in the machine's order of bytes. The
   compiler must know unsigned __int128, as GCC and Clang do on 64-bit machines. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t seed, place, words[4];
static int unread = 0;

/* Rule 1: the next word of Philox4x64-10 with the key (seed, index) and the counters (1, 0, 0, 0), ... */
static uint64_t word(void)
{
    static uint64_t block = 0;
    if (unread == 0) {
        uint64_t c[4] = {++block, 0, 0, 0}, k0 = seed, k1 = place;
        for (int round = 0; round < 10; round++) {
            unsigned __int128 p = (unsigned __int128)0xD2E7470EE14C6C93u * c[0];
            unsigned __int128 q = (unsigned __int128)0xCA5A826395121157u * c[2];
            uint64_t next[4] = {(uint64_t)(q >> 64) ^ c[1] ^ k0, (uint64_t)q,
                                (uint64_t)(p >> 64) ^ c[3] ^ k1, (uint64_t)p};
            for (int i = 0; i < 4; i++)
                c[i] = next[i];
            k0 += 0x9E3779B97F4A7C15u;
            k1 += 0xBB67AE8584CAA73Bu;
        }
        for (int i = 0; i < 4; i++)
            words[i] = c[i];
        unread = 4;
    }
    return words[4 - unread--];
}

/* Rule 2. 2**64 % n is (2**64 - n) % n; words from 2**64 - 2**64 % n on are left out. */
static uint64_t below(uint64_t n)
{
    uint64_t surplus = (0 - n) % n, r = word();
    while (surplus && r >= 0 - surplus)
        r = word();
    return r % n;
}

/* Rule 3: k of n numbers in a new array. */
static int *choose(int n, int k)
{
    int *pool = malloc(n * sizeof *pool);
    for (int i = 0; i < n; i++)
        pool[i] = i;
    for (int i = 0; i < k; i++) {
        int j = i + (int)below(n - i), kept = pool[i];
        pool[i] = pool[j];
        pool[j] = kept;
    }
    return pool;
}

/* Rule 5: the image as float32 in [-1, 1], after counter-clockwise quarter turns. */
static void put(const unsigned char *image, int channels, int side, int turns)
{
    for (int channel = 0; channel < channels; channel++, image += side * side)
        for (int row = 0; row < side; row++)
            for (int column = 0; column < side; column++) {
                int last = side - 1;
                int from_row[] = {row, column, last - row, last - column};
                int from_column[] = {column, last - row, last - column, row};
                float value = (float)image[from_row[turns] * side + from_column[turns]] / 255.0f;
                value = value * 2.0f;
                value = value - 1.0f;
                fwrite(&value, sizeof value, 1, stdout);
            }
}

int main(int count, char **given)
{
    if (count != 12) {
        fprintf(stderr, "episodes takes 11 arguments; the top of episodes.c names them\n");
        return 2;
    }
    int n[10];
    for (int i = 2; i <= 9; i++)
        n[i] = atoi(given[i]);
    int classes = n[2], each = n[3], channels = n[4], side = n[5], way = n[6], shot = n[7], query = n[8];
    seed = strtoull(given[10], NULL, 10);
    place = strtoull(given[11], NULL, 10);
    size_t size = (size_t)channels * side * side, all = size * classes * each;
    unsigned char *images = malloc(all);
    FILE *file = fopen(given[1], "rb");
    if (!file || fread(images, 1, all, file) != all || way > classes || shot + query > each) {
        fprintf(stderr, "%s does not hold these images, or they are too few for the episode\n", given[1]);
        return 2;
    }
    /* Rule 4: the classes, then the turns of all of them, then the images of one class after the other. */
    int *drawn = choose(classes, way), *turns = calloc(way, sizeof *turns), **chosen = malloc(way * sizeof *chosen);
    for (int label = 0; label < way && n[9]; label++)
        turns[label] = (int)below(4);
    for (int label = 0; label < way; label++)
        chosen[label] = choose(each, shot + query);
    for (int set = 0; set < 2; set++) {
        int first = set ? shot : 0, end = set ? shot + query : shot;
        for (int label = 0; label < way; label++)
            for (int i = first; i < end; i++)
                put(images + ((size_t)drawn[label] * each + chosen[label][i]) * size, channels, side, turns[label]);
        for (int64_t label = 0; label < way; label++)
            for (int i = first; i < end; i++)
                fwrite(&label, sizeof label, 1, stdout);
    }
    return 0;
}
