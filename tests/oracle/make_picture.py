"""A generated 480x320 test picture: integer arithmetic only, its bytes are the same everywhere."""

import zlib

import numpy as np


def make_picture(h=320, w=480, shapes=56, key=20200614):
    """(h, w, 3) uint8, BGR: two gradients, textured rectangles / discs / triangles, fine noise."""
    raw = np.random.Philox(key=key).random_raw(shapes * 16 + h * w * 3)
    rnd = (raw >> np.uint64(32)).astype(np.int64)
    par, noise = rnd[: shapes * 16].reshape(shapes, 16), rnd[shapes * 16 :].reshape(h, w, 3)
    y, x = np.arange(h, dtype=np.int64)[:, None], np.arange(w, dtype=np.int64)[None, :]
    img = np.stack(
        [200 - 120 * y // h + 0 * x, 90 + 90 * x // w + 0 * y, 60 + 70 * (x + y) // (h + w)], -1
    )
    for i, p in enumerate(par):
        big = 12 + 100 * (shapes - i) // shapes  # later shapes are smaller
        cx, cy, a, b = p[0] % w, p[1] % h, big // 2 + p[2] % big, big // 2 + p[3] % big
        dx, dy = x - cx, y - cy
        if p[4] % 3 == 0:
            inside = (abs(dx) <= a) & (abs(dy) <= b)
        elif p[4] % 3 == 1:
            inside = dx * dx * b * b + dy * dy * a * a <= a * a * b * b
        else:
            inside = (abs(dy) <= b) & (2 * abs(dx) * b <= a * (dy + b))
        step = 3 + p[5] % 14
        wave = [
            dx // step % 2,
            dy // step % 2,
            (dx + dy) // step % 2,
            (dx // step + dy // step) % 2,
        ][p[6] % 4]
        for c in range(3):
            value = (
                p[7 + c] % 256
                + (wave * 2 - 1) * (p[10 + c] % 60)
                + (dx + dy) * (p[13 + c] % 41 - 20) // 60
            )
            img[..., c] = np.where(inside, value, img[..., c])
    return np.clip(img + noise % 17 - 8, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    print(zlib.crc32(make_picture().tobytes()))
