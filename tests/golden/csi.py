"""Golden values of the Cluster Separation Index, from scikit-learn's DBSCAN and NumPy.

    python csi.py > csi.json

`recipe.py` says what the file holds for points; `csi_golden.rs` draws the same.
"""

import json
import sys

import numpy as np
from recipe import UNIT, group, points
from sklearn.cluster import DBSCAN


def labels(policy, eps, min_samples):
    # In one leaf of a tree scikit-learn adds squared differences; its default above 15 dimensions
    # expands the square, which cancels, so that ties come out either way.
    return DBSCAN(
        eps=eps, min_samples=min_samples, algorithm="kd_tree", leaf_size=len(policy)
    ).fit_predict(policy)


def csi(policy, baseline, eps, min_samples, noise):
    """Algorithm 3, where `paper` is the loop over set(labels) as printed."""
    found = labels(policy, eps, min_samples)
    groups = found.copy()
    if noise == "singletons":
        groups[found == -1] = found.max() + 1 + np.arange((found == -1).sum())
    total = 0.0
    for group in sorted(set(groups.tolist())):
        if noise == "drop" and group == -1:
            continue
        members = policy[groups == group]
        centre = members.mean(axis=0)
        total += np.linalg.norm(baseline - centre, axis=1).min() * len(members)
    return {
        "csi": float(total),
        "per_sample": float(total / len(policy)),
        "clusters": len(set(found.tolist()) - {-1}),
        "noise_points": int((found == -1).sum()),
    }


def case(name, dimension, policy, settings, baseline=None):
    return {
        "name": name,
        "dimension": dimension,
        "policy": {"seed": 1, "groups": policy},
        "baseline": {"seed": 2, "groups": baseline or [group(50, 0.0, 2.0**-17)]},
        "settings": settings,
    }


CASES = [
    case(
        "several clusters and noise",
        8,
        [group(40), group(60, 3.0, UNIT), group(50, -2.0, UNIT / 2), group(20, 8.0, 4 * UNIT)],
        [(0.5, 5), (0.75, 5), (1.0, 4), (20.0, 5)],
    ),
    case("all noise", 16, [group(100, 1.0, UNIT)], [(0.5, 5)]),
    case("one cluster", 4, [group(120, 1.5, UNIT)], [(1.0, 5)]),
    case(
        "repeated points",
        4,
        [group(6, 1.25), group(3, -0.75), group(5, 2.5), group(4, 0.1), group(30, 0.0, UNIT)],
        [(0.5, 5), (1e-9, 5), (0.5, 6)],
    ),
    case("fewer points than min_samples", 3, [group(3, 0.5, UNIT)], [(100.0, 5), (100.0, 3)]),
    case(
        "steps of exactly eps",
        2,
        [group(30, 1.0, 0.0, 0.5), group(6, -3.0, 0.0, 0.5 + 2.0**-40)],
        [(0.5, 3), (0.5, 2), (0.5, 4)],
    ),
    case(
        "steps of eps, rounded",
        3,
        [group(60, 0.1, 0.0, 0.3), group(60, 7.7, 0.0, 0.1)],
        [(0.3, 3), (0.3, 2), (0.1, 3)],
    ),
    case(
        "border points of two clusters, rounded",
        3,
        [group(60, 0.1, 0.0, 0.3), group(60, 7.7, 0.0, 0.1)],
        [(0.3, 7)],
    ),
    case("one point", 5, [group(1, 2.0, UNIT)], [(0.5, 5), (0.5, 1)]),
    case(
        "far from the origin",
        20,
        [
            group(60, 1e4, UNIT / 4),
            group(30, 1e4 + 4.1, 0.0, 0.5),
            group(40, 1e4 - 5.0, UNIT / 2),
        ],
        [(0.5, 5), (0.5, 3), (0.75, 5)],
        [group(50, 1e4, UNIT)],
    ),
    case(
        "a border point of two clusters",
        1,
        [
            group(1, 0.5),
            group(2, 0.75),
            group(2, 0.875),
            group(1, 0.0),
            group(1, -0.5),
            group(2, -0.75),
            group(2, -0.875),
        ],
        [(0.5, 5)],
        [group(20, 4.0, UNIT), group(20, -9.0, UNIT)],
    ),
    case(
        "every point is a core point",
        2,
        [group(60, 0.0, 8 * UNIT), group(4, 1.0)],
        [(0.5, 1), (1.0, 1), (0.5, 2)],
    ),
    case(
        "latents of dimension 128",
        128,
        [
            group(500, 0.0, UNIT),
            group(400, 1.0, UNIT),
            group(300, -1.0, 1.25 * UNIT),
            group(300, 2.0, 1.5 * UNIT),
            group(500, 0.5, 2 * UNIT),
        ],
        [(0.5, 5), (4.0, 5), (4.25, 5), (5.0, 5), (6.0, 10), (7.0, 5)],
        [group(400, 0.0, UNIT), group(100, 0.5, 2 * UNIT)],
    ),
]


def main():
    for case in CASES:
        policy = points(case["dimension"], case["policy"])
        baseline = points(case["dimension"], case["baseline"])
        case["expected"] = [
            {"eps": eps, "min_samples": least, "noise": noise}
            | csi(policy, baseline, eps, least, noise)
            for eps, least in case.pop("settings")
            for noise in ("paper", "singletons", "drop")
        ]
    json.dump(CASES, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
