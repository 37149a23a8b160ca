"""Golden values of the window's statistics, from scikit-learn, SciPy and NumPy.

    python statistics.py > statistics.json

`recipe.py` says what the file holds for points; `statistics_golden.rs` draws the same. Latents of the
window are rounded to single precision, those of the baseline are not. Rewards and lengths are written
out.
"""

import json
import sys

import numpy as np
from recipe import UNIT, group, points, splitmix64
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors

FOLDS = 5
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]


def case(name, dimension, window, baseline, neighbours=5):
    return {
        "name": name,
        "dimension": dimension,
        "window": {"seed": 1, "groups": window},
        "baseline": {"seed": 2, "groups": baseline},
        "neighbours": neighbours,
    }


CASES = [
    case("the same population", 8, [group(70, 0.0, UNIT)], [group(90, 0.0, UNIT)]),
    case(
        "a tenth of the window is far",
        16,
        [group(90, 0.0, UNIT), group(10, 4.0, UNIT / 2)],
        [group(120, 0.0, UNIT)],
    ),
    case(
        "copies, and near copies",
        12,
        [group(40, 1.0), group(30, 1.0, UNIT * 2.0**-12), group(20, 0.0, UNIT)],
        [group(60, 0.0, UNIT), group(30, 0.5)],
        3,
    ),
    case("all the same", 4, [group(25, 1.25)], [group(40, 0.0, UNIT)]),
    case(
        "dimension 128, more than one block",
        128,
        [group(300, 0.0, UNIT), group(60, 0.25, 2 * UNIT)],
        [group(400, 0.0, UNIT), group(20, 0.5, 2 * UNIT)],
    ),
    case("dimension 1", 1, [group(50, 0.3, UNIT)], [group(60, 0.0, UNIT)], 1),
    case(
        "far from the origin",
        20,
        [group(50, 1e4 + 0.5, UNIT)],
        [group(80, 1e4, UNIT), group(10, 1e4 - 3.0, UNIT)],
    ),
]


def held_out_distances(baseline):
    fold = np.arange(len(baseline)) % FOLDS
    distances = np.empty(len(baseline))
    for held_out in range(FOLDS):
        fitted = LedoitWolf().fit(baseline[fold != held_out])
        distances[fold == held_out] = np.sqrt(fitted.mahalanobis(baseline[fold == held_out]))
    return distances


def statistics(case):
    window = points(case["dimension"], case["window"]).astype(np.float32).astype(np.float64)
    baseline = points(case["dimension"], case["baseline"])
    fitted = LedoitWolf().fit(baseline)
    k = case["neighbours"]
    nearest = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(baseline).kneighbors(window)[0]
    within = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(baseline).kneighbors(baseline)[0]
    between, own, other = cdist(window, baseline), cdist(window, window), cdist(baseline, baseline)
    distances = np.sqrt(fitted.mahalanobis(window))
    spread = [np.linalg.slogdet(f.covariance_)[1] for f in (LedoitWolf().fit(window), fitted)]
    degenerate = bool((window == window[0]).all())
    return {
        # Means over all pairs, those of a point with itself included.
        "energy": float(2 * between.mean() - own.mean() - other.mean()),
        "knn_distance": float(nearest[:, -1].mean()),
        "eps": float(np.quantile(within[:, -1], 0.9)),
        "mahalanobis_mean": float(distances.mean()),
        "mop": float((distances > np.quantile(held_out_distances(baseline), 0.99)).mean()),
        "dispersion_ratio": float(window.var(axis=0).sum() / baseline.var(axis=0).sum()),
        "dispersion_log_det": None if degenerate else float((spread[0] - spread[1]) / case["dimension"]),
    }


def samples(name, rewards, lengths):
    rewards = np.asarray(rewards, dtype=np.float32).astype(np.float64)
    found = spearmanr(rewards, lengths).statistic if len(set(rewards)) > 1 and len(set(lengths)) > 1 else None
    return {
        "name": name,
        "rewards": rewards.tolist(),
        "lengths": [int(length) for length in lengths],
        "rho": None if found is None else float(found),
        "quantiles": np.quantile(rewards, QUANTILES).tolist(),
        "mean": float(rewards.mean()),
        "std": float(rewards.std()),
    }


def answers():
    words = splitmix64(3, 400).astype(np.float64) / 2.0**64
    rewards, lengths = 4 * words[:200] - 2, (900 * words[200:]).astype(int)
    return [
        samples("no ties", rewards, np.arange(200) ** 2 % 211),
        samples("ties in both", np.round(rewards), lengths // 100),
        samples("longer is better", rewards, (100 * rewards).astype(int) + 300),
        samples("the two zeros are one value", [0.0, -0.0, 1.0, -1.0], [4, 4, 9, 1]),
        samples("one reward", [0.5] * 7, range(7)),
        samples("one answer", [0.25], [3]),
        samples("two answers", [0.25, -1.5], [3, 9]),
    ]


def maps():
    """Two clusters and a chain; t-SNE is judged by trustworthiness alone, for its maps differ."""
    recipe = {"seed": 4, "groups": [group(60, 0.0, UNIT), group(50, 2.0, UNIT), group(40, -2.0, UNIT / 4, 0.2)]}
    drawn = points(10, recipe)
    pca = PCA(n_components=2, svd_solver="full").fit(drawn)
    projected = pca.transform(drawn)
    # scikit-learn's sign: the largest loading is positive.
    embedded = TSNE(n_components=2, perplexity=30.0, init="random", random_state=0).fit_transform(drawn)
    return {
        "dimension": 10,
        "points": recipe,
        "pca": projected.tolist(),
        "explained": pca.explained_variance_ratio_.tolist(),
        "pca_trustworthiness": float(trustworthiness(drawn, projected, n_neighbors=5)),
        "tsne_trustworthiness": float(trustworthiness(drawn, embedded, n_neighbors=5)),
    }


def main():
    for case in CASES:
        case["expected"] = statistics(case)
    json.dump({"windows": CASES, "answers": answers(), "map": maps()}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
