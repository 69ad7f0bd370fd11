"""How good are samples of 8x8 digits? Compares them with class-conditional Gaussians and with real digits.

    python sample.py --workdir runs/digits --num 500 --out out/digits500
    python benchmarks/digits_quality.py out/digits500/samples.npz

All metrics are relative to scikit-learn's 1,797 real digits, in pixels from 0 to 16:

    frechet    Frechet distance between Gaussians fitted to the pixels (lower is better)
    detected   accuracy of an SVC in a two-sample test against as many real digits, 5-fold cross-validated (0.5 is chance)
    confident  fraction of samples that an SVC trained on 1,200 real digits classifies with a large margin
    rarest     fraction of samples in the rarest class, by the same SVC
    nearest    median distance to the nearest real digit, relative to the real digits' own: below 1 memorised, above 1 off
               the manifold

With --asked it also prints the SVC's accuracy on the requested classes: 0, 1, ..., 9 in turn.
"""

import argparse
import functools
import json

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

REAL, LABELS = load_digits(return_X_y=True)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of vectors."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0)).sum()  # some pixels are always 0
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b) - 2 * cross)


def detected(samples: np.ndarray, seed: int = 0) -> float:
    """Accuracy of an SVC that separates the samples, rounded to intensity levels, from as many random real digits."""
    rng = np.random.default_rng(seed)
    real = REAL[rng.permutation(len(REAL))[: len(samples)]]
    x = np.concatenate([samples.round(), real])
    y = np.repeat([0, 1], len(samples))
    order = rng.permutation(len(x))
    return float(cross_val_score(SVC(C=10, gamma=0.001), x[order], y[order], cv=5).mean())


@functools.cache
def classifier() -> SVC:
    """An SVC trained on the first 1,200 real digits."""
    return SVC(C=10, gamma=0.001).fit(REAL[:1200], LABELS[:1200])


def confidence(samples: np.ndarray) -> tuple[float, float]:
    """The fraction of samples with a margin above 0.9 between the two top classes, and the fraction in the rarest class."""
    top = np.sort(classifier().decision_function(samples), axis=1)
    counts = np.bincount(classifier().predict(samples), minlength=10)
    return float(np.mean(top[:, -1] - top[:, -2] > 0.9)), float(counts.min() / len(samples))


def nearest(samples: np.ndarray) -> float:
    """Median distance to the nearest real digit, relative to the median between a real digit and its nearest neighbour."""
    own = np.sort(pairwise_distances(REAL), axis=1)[:, 1]
    return float(np.median(pairwise_distances(samples, REAL).min(axis=1)) / np.median(own))


def class_gaussians(num: int, seed: int = 0) -> np.ndarray:
    """The baseline: one Gaussian per class, clipped to the range of pixels."""
    rng = np.random.default_rng(seed)
    samples = []
    for label in rng.integers(10, size=num):
        x = REAL[label == LABELS]
        samples.append(rng.multivariate_normal(x.mean(0), np.cov(x, rowvar=False)))
    return np.clip(samples, 0, 16)


def measure(samples: np.ndarray) -> dict[str, float]:
    """All metrics of samples [N, 64] in 0..16."""
    confident, rarest = confidence(samples)
    metrics = {"frechet": frechet(samples, REAL), "detected": detected(samples), "confident": confident}
    return metrics | {"rarest": rarest, "nearest": nearest(samples)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", help="samples.npz, as written by sample.py")
    parser.add_argument("--asked", action="store_true", help="the samples were requested of the classes 0 to 9 in turn")
    parser.add_argument("--json", help="also write the metrics to this file")
    args = parser.parse_args()
    samples = np.load(args.samples)["image"].reshape(-1, 64) * (16 / 255)
    num = len(samples)
    if num > len(REAL):
        parser.error(f"{args.samples}: expected at most {len(REAL)} samples, one for each real digit, received {num}")
    real = REAL[np.random.default_rng(0).permutation(len(REAL))[-num:]]  # disjoint from those in `detected`, up to 898
    rows = {"samples": measure(samples), "class Gaussians": measure(class_gaussians(num)), "real digits": measure(real)}
    rows["real digits"]["nearest"] = 1.0  # by definition: each is at distance 0 from itself
    print(f"{num} samples".ljust(18) + "".join(f"{name:>12}" for name in rows["samples"]))
    for name, metrics in rows.items():
        print(name.ljust(18) + "".join(f"{value:12.3f}" for value in metrics.values()))
    if args.asked:
        print(f"of the requested class: {np.mean(classifier().predict(samples) == np.arange(num) % 10):.3f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
