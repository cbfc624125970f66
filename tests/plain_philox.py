"""The words of draws.py's rule once more, in plain Python."""


def philox(seed, index):
    low = 2**64 - 1
    for block in range(1, 10**9):
        c, k = (block, 0, 0, 0), (seed, index)
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = (q >> 64) ^ c[1] ^ k[0], q & low, (p >> 64) ^ c[3] ^ k[1], p & low
            k = (k[0] + 0x9E3779B97F4A7C15) & low, (k[1] + 0xBB67AE8584CAA73B) & low
        yield from c
