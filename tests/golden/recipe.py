"""Points for golden values, out of recipes.

The golden files hold recipes instead of points: integers of SplitMix64, times powers of two, so
that every language draws the same doubles. `recipe/mod.rs` follows them too; change both or
neither.
"""

import numpy as np

# The scale of noise with a standard deviation of 0.29 for each coordinate.
UNIT = 2.0**-17


def splitmix64(seed, count):
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64)
        z = np.uint64(seed) + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def group(points, centre=0.0, scale=0.0, step=0.0):
    return {"points": points, "centre": centre, "step": step, "scale": scale}


def points(dimension, recipe):
    """Groups of points, each `centre + step * index (first coordinate only) + noise * scale`.

    The noise is the sum of the four 16-bit fields of one word, less its mean: nearly normal, an
    integer within 131070 of 0 with a standard deviation of 37837.
    """
    total = sum(group["points"] for group in recipe["groups"])
    words = splitmix64(recipe["seed"], total * dimension).reshape(total, dimension)
    fields = [(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    noise = sum(field.astype(np.int64) for field in fields) - 131070
    rows, start = [], 0
    for group in recipe["groups"]:
        count = group["points"]
        place = np.full((count, dimension), float(group["centre"]))
        place[:, 0] += group["step"] * np.arange(count)
        rows.append(place + noise[start : start + count] * group["scale"])
        start += count
    return np.vstack(rows)
