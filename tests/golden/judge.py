"""Golden values of areas under ROC curves and of agreement, from scikit-learn.

    python judge.py > judge.json

DeLong's variance is not in scikit-learn: here it is taken by its definition, from every pair of a positive and a
negative.
"""

import json
import math
import sys

import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, roc_auc_score

Z = 1.959963984540054


def interval(scores, positive):
    x, y = scores[positive], scores[~positive]
    if min(len(x), len(y)) < 2:
        return None
    above = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    variance = above.mean(1).var(ddof=1) / len(x) + above.mean(0).var(ddof=1) / len(y)
    if variance == 0:
        return None
    mean, spread = above.mean(), Z * math.sqrt(variance)
    return [max(mean - spread, 0.0), min(mean + spread, 1.0)]


def area(name, scores, positive):
    scores, positive = np.array(scores, float), np.array(positive, bool)
    return {
        "name": name,
        "scores": scores.tolist(),
        "positive": positive.tolist(),
        "auc": roc_auc_score(positive, scores),
        "interval": interval(scores, positive),
    }


def agreement(name, labels, verdicts):
    labels, verdicts = np.array(labels, bool), np.array(verdicts, bool)
    kappa = cohen_kappa_score(labels, verdicts)
    return {
        "name": name,
        "labels": labels.tolist(),
        "verdicts": verdicts.tolist(),
        "kappa": None if math.isnan(kappa) else kappa,
        "accuracy": accuracy_score(labels, verdicts),
        "confusion": confusion_matrix(labels, verdicts, labels=[False, True]).tolist(),
    }


def main():
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.3
    scores = rng.normal(size=200) + positive
    few = rng.random(40) < 0.5
    labels = rng.random(300) < 0.2
    verdicts = labels ^ (rng.random(300) < 0.1)
    golden = {
        "auc": [
            area("normal", scores, positive),
            area("rounded, with many ties", np.round(scores), positive),
            area("signs of zero are equal", [0.0, -0.0, 1.0, -1.0, 0.0], [1, 0, 1, 0, 0]),
            area("noise or not", (rng.random(40) < 0.3 + 0.4 * few).astype(float), few),
            area("worse than chance", -scores[:50], positive[:50]),
            area("perfect", [3, 4, 1, 2], [1, 1, 0, 0]),
            area("all the same", [1, 1, 1, 1], [1, 0, 0, 1]),
            area("one positive", [1, 3, 2], [0, 0, 1]),
            area("near one", [5, 6, 7, 2, 1, 3, 6], [1, 1, 1, 0, 0, 0, 0]),
            area("large and small", [1e300, 1e-300, 2, 1e300], [1, 0, 1, 0]),
        ],
        "kappa": [
            agreement("mostly agreeing", labels, verdicts),
            agreement("independent", labels, rng.random(300) < 0.5),
            agreement("opposite", [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]),
            agreement("perfect", [1, 0, 1], [1, 0, 1]),
            agreement("all the same", [1, 1, 1], [1, 1, 1]),
            agreement("one verdict only", [1, 0, 1, 1], [1, 1, 1, 1]),
        ],
    }
    json.dump(golden, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
