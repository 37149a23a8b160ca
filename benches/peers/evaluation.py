#!/usr/bin/env python3
"""One evaluation of the monitor: scikit-learn, SciPy and NumPy against ours, in turn, on the same latents.

    python3 benches/peers/evaluation.py [--samples 5000] [--baseline 5000] [--dimension 128] [--rounds 5]

Needs scikit-learn, SciPy, and cargo to build the bench `evaluation`. Ours runs on one thread; the peers on
--threads, and on one for comparison.

What depends on the baseline alone is computed once on both sides and not counted. Energy distance and nearest
neighbours take scikit-learn's `euclidean_distances` and brute-force search, which are the fastest of the three
packages here; SciPy's `cdist`, which does not cancel, gives the value that both are held against.

Cases, by what DBSCAN finds at eps 0.5: `noise`, standard normal latents; `half`, half of the window in one dense
cluster; `dense`, all of it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Engine, default_threads, note, print_table, rest
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.cluster import DBSCAN
from sklearn.covariance import LedoitWolf
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

FOLDS = 5
EPS, MIN_SAMPLES, NEIGHBOURS = 0.5, 5, 5


def draw(case: str, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    rows = arguments.samples
    window = random.standard_normal((rows, arguments.dimension))
    dense = {"noise": 0, "half": rows // 2, "dense": rows}[case]
    window[:dense] = 1 + 0.02 * window[:dense]
    baseline = random.standard_normal((arguments.baseline, arguments.dimension))
    return window.astype(np.float32), baseline.astype(np.float32)


class Peer:
    def __init__(self, window: np.ndarray, baseline: np.ndarray):
        self.window, self.baseline = window.astype(np.float64), baseline.astype(np.float64)
        self.fitted = LedoitWolf().fit(self.baseline)
        self.log_det = np.linalg.slogdet(self.fitted.covariance_)[1]
        self.variance = self.baseline.var(axis=0).sum()
        self.within = euclidean_distances(self.baseline).mean()
        self.search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(self.baseline)
        fold = np.arange(len(self.baseline)) % FOLDS
        held_out = []
        for part in range(FOLDS):
            fit = LedoitWolf().fit(self.baseline[fold != part])
            held_out.append(fit.mahalanobis(self.baseline[fold == part]))
        self.limit = np.quantile(np.sqrt(np.concatenate(held_out)), 0.99)
        self.rewards = np.random.default_rng(1).standard_normal(len(window))
        self.lengths = (50 * self.rewards).astype(int) + 200
        self.prompts = np.arange(len(window)) // 4

    def dbscan(self) -> np.ndarray:
        return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES).fit_predict(self.window)

    def csi(self) -> float:
        labels = self.dbscan()
        total = 0.0
        for label in np.unique(labels):
            members = self.window[labels == label]
            total += len(members) * cdist(members.mean(axis=0)[None], self.baseline).min()
        return total

    def energy(self) -> float:
        between = euclidean_distances(self.window, self.baseline).mean()
        return 2 * between - euclidean_distances(self.window).mean() - self.within

    def exact_energy(self) -> float:
        between = cdist(self.window, self.baseline).mean()
        return 2 * between - cdist(self.window, self.window).mean() - cdist(self.baseline, self.baseline).mean()

    def evaluate(self) -> dict:
        distances = np.sqrt(self.fitted.mahalanobis(self.window))
        log_det = np.linalg.slogdet(LedoitWolf().fit(self.window).covariance_)[1]
        spread = np.sort(self.rewards.reshape(-1, 4), axis=1) if len(self.rewards) % 4 == 0 else self.rewards[None]
        return {
            "csi": self.csi(),
            "energy": self.energy(),
            "knn_distance": self.search.kneighbors(self.window)[0][:, -1].mean(),
            "mahalanobis_mean": distances.mean(),
            "mop": (distances > self.limit).mean(),
            "dispersion_ratio": self.window.var(axis=0).sum() / self.variance,
            "dispersion_log_det": (log_det - self.log_det) / self.window.shape[1],
            # The paired distance; prompts are numbered alike on both sides.
            "paired": np.linalg.norm(self.window[: len(self.baseline)] - self.baseline[: len(self.window)], axis=1).mean(),
            "rho": spearmanr(self.rewards, self.lengths).statistic,
            "quantiles": np.quantile(self.rewards, [0.05, 0.25, 0.5, 0.75, 0.95]),
            "zero_variance": (spread[:, 0] == spread[:, -1]).mean(),
        }


def timed(function) -> tuple[float, object]:
    rest()
    started = time.perf_counter()
    found = function()
    return time.perf_counter() - started, found


def measure(case: str, arguments: argparse.Namespace, engine: Engine) -> tuple[list[list], list[list]]:
    window, baseline = draw(case, arguments)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("window", "baseline")]
        for path, latents in zip(paths, (window, baseline)):
            latents.astype("<f4").tofile(path)
        csi = {"eps": EPS, "min_samples": MIN_SAMPLES}
        engine.ask(command="load", window=paths[0], baseline=paths[1], dimension=arguments.dimension, csi=csi)
    peer = Peer(window, baseline)
    seconds: dict[tuple, list[float]] = {}
    ours = theirs = None
    threads = sorted({1, arguments.threads})
    for number in range(arguments.rounds + 1):
        turns = {}
        for count in threads:
            with threadpool_limits(count):
                turns["all", f"peers, threads {count}"], theirs = timed(peer.evaluate)
                turns["csi", f"peers, threads {count}"] = timed(peer.dbscan)[0]
        rest()
        ours = engine.ask(command="evaluate")
        turns["all", "ours"] = ours["seconds"]
        rest()
        turns["csi", "ours"] = engine.ask(command="csi")["seconds"]
        for key, took in turns.items():
            note(f"{case}, round {number}: {' '.join(key)}: {took:.3f} s")
            if number > 0:
                seconds.setdefault(key, []).append(took)
    table = []
    for kind, name in (("all", "all statistics"), ("csi", "CSI, and DBSCAN of the peers")):
        median = {side: statistics.median(took) for (k, side), took in seconds.items() if k == kind}
        for side, took in median.items():
            table.append([case, name, side, took * 1e3, median["ours"] / took])
    values = ours["statistics"]
    agreement = [
        [case, name, abs(values[name] - theirs[name]) / max(abs(theirs[name]), 1e-300)]
        for name in ("csi", "knn_distance", "mahalanobis_mean", "dispersion_ratio", "dispersion_log_det")
    ]
    exact = peer.exact_energy()
    agreement.append([case, "energy", abs(values["energy"] - exact) / exact])
    agreement.append([case, "energy by euclidean_distances", abs(theirs["energy"] - exact) / exact])
    return table, [[case, name, f"{difference:.1e}"] for case, name, difference in agreement]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--baseline", type=int, default=5000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="that count; one more warms up")
    parser.add_argument("--cases", default="noise,half,dense")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of the peers")
    arguments = parser.parse_args()
    engine = Engine("evaluation")
    table, agreement = [], []
    for case in arguments.cases.split(","):
        rows, differences = measure(case, arguments, engine)
        table += rows
        agreement += differences
    print(f"\n{arguments.samples:,} latents, baseline {arguments.baseline:,}, d = {arguments.dimension}, {arguments.rounds} rounds\n")
    print_table(["case", "", "", "ms", "ours / this"], table)
    print()
    print_table(["case", "statistic", "relative difference"], agreement)


if __name__ == "__main__":
    main()
