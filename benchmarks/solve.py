"""Evidence maximisation beside scikit-learn's BayesianRidge and ARDRegression, and scipy's least squares.

    python benchmarks/solve.py [--only 20000x400] [--cores 1]

Synthetic rows whose columns fall off over four decades, as those of an ACE basis do, with known coefficients and noise.
haljax's time is that from the rows to the posterior: compression of the rows, evidence, factor of the covariance;
compiled beforehand. scikit-learn's is that of ``fit``. Both stop by their own defaults; evidences are compared per row.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

SIZES = ((20000, 400), (20000, 2000), (500, 2000))


def problem(n: int, M: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    decay = np.logspace(0, -4, M)
    X = rng.normal(size=(n, M)) * decay[None, :]
    c = rng.normal(size=M) * (rng.random(M) < 0.5)  # half of the functions say nothing
    return X, X @ c + 0.01 * rng.normal(size=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one size, as 20000x400")
    parser.add_argument("--cores", type=int, help="how many to use (default: all)")
    parser.add_argument("--methods", nargs="*", default=["brr", "ard"])
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)
    for n, M in SIZES:
        if options.only in (None, f"{n}x{M}"):
            for method in options.methods:
                compare(method, n, M, options.cores)


def compare(method: str, n: int, M: int, cores: int | None) -> None:
    import jax
    from common import row, seconds
    from scipy.linalg import lstsq
    from sklearn.linear_model import ARDRegression, BayesianRidge
    from threadpoolctl import threadpool_limits

    from haljax.bayes import accumulate, ard, brr, empty, seen_rows

    X, y = problem(n, M)
    solver = jax.jit({"brr": brr, "ard": ard}[method])
    theirs = {"brr": BayesianRidge, "ard": ARDRegression}[method](fit_intercept=False, compute_score=True)

    def solve():
        seen = accumulate(empty(M), [(X, y)], n)
        return solver(seen_rows(seen))  # as `fit` does

    posterior, info = solve()
    mine = seconds(solve)
    with threadpool_limits(cores):
        their_s = seconds(lambda: theirs.fit(X, y) and None)
        squares = seconds(lambda: lstsq(X, y, lapack_driver="gelsy")[0])
    score = theirs.scores_[-1] - (n / 2 * np.log(2 * np.pi) if method == "ard" else 0)
    row(
        "solve", method=method, rows=n, functions=M, cores=cores or os.cpu_count(), haljax_s=mine,
        scikit_learn_s=their_s, ratio=their_s / mine, lstsq_s=squares, lstsq_ratio=squares / mine,
        iterations=int(info.iterations), their_iterations=int(theirs.n_iter_),
        evidence_per_row=float(posterior.log_evidence) / n, their_evidence_per_row=float(score) / n,
        coefficients_apart=float(np.linalg.norm(posterior.mean - theirs.coef_) / np.linalg.norm(theirs.coef_)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
