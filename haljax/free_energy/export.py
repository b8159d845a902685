"""A trained free energy as one file of C99, for phase-field codes; in Python and JAX a `Surface` is that itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

import jax
import numpy as np

from haljax.free_energy.network import Surface
from haljax.lattice.ideal import STEPS, TINY
from haljax.lattice.symmetry import Invariants
from haljax.lattice.units import KB


def export_c(surface: Surface, path: str | Path, temperature: float | None = None) -> None:
    """Write the mean free energy of an ensemble and its derivatives to `path` (.c), needing only libm.

    The file defines ``double haljax_free_energy(const double *eta, double T, double *mu, double *hessian)``: it
    returns g in eV per cell and fills mu (d) and hessian (d * d), each of which may be NULL. It keeps no state, so
    threads may share it. Its header comment says all that a caller needs.

    Parameters
    ----------
    temperature : K, makes the function one of this temperature alone. For any T that the function does not know it
        returns NaN: others than this, others than that of the training where temperature is no input of the network,
        and those that are not positive.

    Raises
    ------
    ValueError : the invariants are not polynomials of `haljax.lattice.symmetry`, or the temperature is not known.
    """
    from haljax.campaign import write_atomic

    network = surface.network
    if not isinstance(network.invariants, Invariants):
        raise ValueError(
            f"the invariants are {network.invariants!r}: only polynomials made by haljax.lattice.symmetry go into C"
        )
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), surface.params)
    scaling = params.scaling
    learned = float(scaling.temperature[0])
    if temperature is not None:
        surface._check_temperature(temperature)
    only = temperature if temperature is not None else None if network.temperature else learned
    exponents = np.array(network.invariants.exponents, int)
    # The layers of both perceptrons of every member one after another: sizes, inputs and one array of numbers.
    towers = []
    for tower, (inputs, layers) in enumerate(zip(network.inputs(), params.layers, strict=True)):
        if inputs:
            towers.append((tower, inputs, [layers[0][0].shape[1], *(weights.shape[2] for weights, _ in layers)]))
    numbers = np.concatenate(
        [
            np.concatenate([weights[k].ravel(), bias[k]])
            for k in range(surface.members)
            for tower, _, _ in towers
            for weights, bias in params.layers[tower]
        ]
    )
    F = len(network.invariants)
    patterns = np.zeros((network.dimension, 0)) if network.patterns is None else np.array(network.patterns)
    text = Template(_SOURCE).substitute(
        d=network.dimension,
        F=F,
        P=len(exponents),
        K=surface.members,
        degree=int(exponents.max()),
        n_s=patterns.shape[1],
        towers=len(towers),
        layers=len(network.widths) + 1,
        widest=max(max(sizes) for _, _, sizes in towers),
        with_temperature=int(network.temperature),
        anchored=int(network.anchored),
        only=_number(-1.0 if only is None else only),
        valid="any T > 0" if only is None else f"T = {only:g} K alone",
        activation={
            "tanh": "tanh(x)",
            "softplus": "(x > 0 ? x : 0) + log1p(exp(-fabs(x)))",
        }[network.activation],
        slope={"tanh": "1 - y * y", "softplus": "-expm1(-y)"}[network.activation],  # from the value y
        bend={"tanh": "-2 * y * (1 - y * y)", "softplus": "-expm1(-y) * exp(-y)"}[network.activation],
        share=_number(1 / max(1, patterns.shape[1])),
        k_sites=_number(KB * network.sites),
        TINY=_number(TINY),
        TINY2=_number(TINY**2),
        STEPS=STEPS,
        exponents=_array(exponents.ravel(), int),
        coefficients=_array(np.ravel(network.invariants.coefficients)),
        patterns=_array(patterns.T.ravel()),
        inverse=_array(np.linalg.pinv(patterns).ravel()),
        n_inputs=_array([len(inputs) for _, inputs, _ in towers], int),
        inputs=_array([i for _, inputs, _ in towers for i in (*inputs, *[0] * (F - len(inputs)))], int),
        sizes=_array([s for _, _, sizes in towers for s in sizes], int),
        mean=_array(scaling.mean.ravel()),
        scale=_array(scaling.scale.ravel()),
        T0=_array(scaling.temperature),
        width=_array(scaling.width),
        energies=_array([units[tower] for units in scaling.energies for tower, _, _ in towers]),
        offset=_array(params.offset * scaling.energies[:, 0]),
        numbers=_array(numbers),
        n_numbers=len(numbers),
    )
    write_atomic(path, text.encode())


def _number(value: Any) -> str:
    return repr(float(value))


def _array(values: Iterable, kind: type = float) -> str:
    """A C initialiser, exact: repr of a double is read back as the same double."""
    words = [repr(kind(v)) for v in values] or ["0"]  # C has no empty arrays
    lines = [", ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    return "{\n    " + ",\n    ".join(lines) + "\n}"


_SOURCE = """\
/* A free energy written by haljax (export_c): the mean of $K networks.
 *
 *     double haljax_free_energy(const double *eta, double T, double *mu, double *hessian);
 *
 * eta      $d order parameters, eta[0] to eta[${d}-1], in the order of the training data (dimensionless)
 * T        temperature in K; this file knows $valid, and returns NaN for another
 * mu       NULL, or room for $d numbers: dg/d eta_i, eV per primitive cell
 * hessian  NULL, or room for $d x $d numbers, row by row: d^2 g / d eta_i d eta_j, eV per primitive cell
 * returns  g(eta, T), eV per primitive cell
 *
 * Where a sublattice is emptier than $TINY or fuller than 1 - $TINY, also outside the domain, the entropy is
 * continued smoothly and stays concave. C99, double precision, no state. Compile with -lm.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

enum {
    D = $d,          /* order parameters */
    F = $F,          /* invariants */
    P = $P,          /* monomials */
    DEGREE = $degree,
    MEMBERS = $K,
    SUBLATTICES = $n_s,
    TOWERS = $towers,
    LAYERS = $layers,
    WIDEST = $widest,
    WITH_TEMPERATURE = $with_temperature,
    ANCHORED = $anchored
};

static const int exponents[] = $exponents;
static const double coefficients[] = $coefficients;
static const double SHARE = $share; /* of a sublattice, of all sites */
static const double patterns[] = $patterns; /* sublattice by sublattice */
static const double inverse[] = $inverse;
static const int n_inputs[] = $n_inputs;
static const int inputs[] = $inputs;
static const int sizes[] = $sizes;
static const double mean[] = $mean;
static const double scale[] = $scale;
static const double T0[] = $T0;
static const double width[] = $width;
static const double energies[] = $energies;
static const double offset[] = $offset;
static const double numbers[$n_numbers] = $numbers;

static double activation(double x) { return $activation; }
static double slope(double y) { return $slope; } /* of the activation, from its value */
static double bend(double y) { return $bend; }

/* Invariants h (F), their first (F, D) and second (F, D, D) derivatives. */
static void invariants(const double *eta, double *h, double *dh, double *ddh)
{
    double power[D][DEGREE + 1];
    for (int i = 0; i < D; i++) {
        power[i][0] = 1;
        for (int e = 1; e <= DEGREE; e++) power[i][e] = power[i][e - 1] * eta[i];
    }
    memset(h, 0, F * sizeof *h);
    memset(dh, 0, F * D * sizeof *dh);
    memset(ddh, 0, F * D * D * sizeof *ddh);
    for (int p = 0; p < P; p++) {
        const int *n = exponents + p * D;
        double m = 1, dm[D], ddm[D][D];
        for (int i = 0; i < D; i++) m *= power[i][n[i]];
        for (int i = 0; i < D; i++) {
            dm[i] = n[i];
            if (n[i]) for (int k = 0; k < D; k++) dm[i] *= power[k][n[k] - (k == i)];
            for (int j = 0; j < D; j++) {
                const int factor = i == j ? n[i] * (n[i] - 1) : n[i] * n[j];
                ddm[i][j] = factor;
                if (factor) for (int k = 0; k < D; k++) ddm[i][j] *= power[k][n[k] - (k == i) - (k == j)];
            }
        }
        for (int f = 0; f < F; f++) {
            const double c = coefficients[f * P + p];
            if (c == 0) continue;
            h[f] += c * m;
            for (int i = 0; i < D; i++) dh[f * D + i] += c * dm[i];
            for (int i = 0; i < D; i++)
                for (int j = 0; j < D; j++) ddh[(f * D + i) * D + j] += c * ddm[i][j];
        }
    }
}

/* One perceptron: returns its value; force (F) its gradient where not NULL; along (F) the derivative of that
 * gradient in the direction (F) where not NULL. x has sizes[0] entries. */
static double perceptron(const double *w, const int *size, const double *x, double *force, const double *direction,
                         double *along)
{
    double value[LAYERS][WIDEST], tangent[LAYERS][WIDEST];
    const double *layer[LAYERS], *a = x, *t = direction;
    double out = 0;
    for (int l = 0; l < LAYERS; l++) {
        const int m = size[l], n = size[l + 1];
        double sum[WIDEST], dsum[WIDEST];
        layer[l] = w;
        for (int j = 0; j < n; j++) { sum[j] = w[m * n + j]; dsum[j] = 0; }
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) sum[j] += a[i] * w[i * n + j];
        if (direction)
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++) dsum[j] += t[i] * w[i * n + j];
        w += m * n + n;
        if (l == LAYERS - 1) { out = sum[0]; break; }
        for (int j = 0; j < n; j++) {
            value[l][j] = activation(sum[j]);
            tangent[l][j] = dsum[j]; /* of the sum; times the slope below, as the next layer's input */
        }
        a = value[l];
        if (direction) {
            for (int j = 0; j < n; j++) tangent[LAYERS - 1][j] = tangent[l][j] * slope(value[l][j]);
            t = tangent[LAYERS - 1];
        }
    }
    if (!force && !along) return out;
    double back[WIDEST], dback[WIDEST];
    back[0] = 1;
    dback[0] = 0;
    for (int l = LAYERS - 1; l >= 0; l--) {
        const int m = size[l], n = size[l + 1];
        double down[WIDEST], ddown[WIDEST];
        for (int i = 0; i < m; i++) {
            down[i] = ddown[i] = 0;
            for (int j = 0; j < n; j++) {
                down[i] += layer[l][i * n + j] * back[j];
                if (along) ddown[i] += layer[l][i * n + j] * dback[j];
            }
        }
        for (int i = 0; i < m; i++) {
            if (l == 0) {
                back[i] = down[i];
                dback[i] = ddown[i];
            } else {
                const double y = value[l - 1][i];
                back[i] = down[i] * slope(y);
                dback[i] = along ? ddown[i] * slope(y) + down[i] * bend(y) * tangent[l - 1][i] : 0;
            }
        }
    }
    if (force) memcpy(force, back, size[0] * sizeof(double));
    if (along) memcpy(along, dback, size[0] * sizeof(double));
    return out;
}

/* The mean of the networks: value, and sums over networks of gradient and Hessian, chained to eta where not NULL. */
static double networks(const double *eta, double T, double *mu, double *hessian)
{
    double h[F], dh[F * D], ddh[F * D * D], total = 0;
    const double *w = numbers;
    invariants(eta, h, dh, ddh);
    for (int k = 0; k < MEMBERS; k++) {
        for (int tower = 0; tower < TOWERS; tower++) {
            const int *size = sizes + tower * (LAYERS + 1), *in = inputs + tower * F, n = n_inputs[tower];
            const double energy = energies[k * TOWERS + tower] / MEMBERS;
            double x[WIDEST], force[WIDEST], direction[WIDEST], along[WIDEST];
            for (int f = 0; f < n; f++) x[f] = (h[in[f]] - mean[k * F + in[f]]) / scale[k * F + in[f]];
            if (WITH_TEMPERATURE) x[n] = (T0[k] / T - 1) / width[k];
            total += energy * perceptron(w, size, x, mu || hessian ? force : NULL, NULL, NULL);
            for (int f = 0; f < n && (mu || hessian); f++) {
                const double pull = energy * force[f] / scale[k * F + in[f]];
                for (int i = 0; i < D && mu; i++) mu[i] += pull * dh[in[f] * D + i];
                for (int i = 0; i < D * D && hessian; i++) hessian[i] += pull * ddh[in[f] * D * D + i];
            }
            for (int j = 0; j < D && hessian; j++) {
                for (int f = 0; f < n; f++) direction[f] = dh[in[f] * D + j] / scale[k * F + in[f]];
                if (WITH_TEMPERATURE) direction[n] = 0;
                perceptron(w, size, x, NULL, direction, along);
                for (int f = 0; f < n; f++)
                    for (int i = 0; i < D; i++)
                        hessian[i * D + j] += energy * along[f] * dh[in[f] * D + i] / scale[k * F + in[f]];
            }
            for (int l = 0; l < LAYERS; l++) w += (size[l] + 1) * size[l + 1];
        }
    }
    return total;
}

/* Replaces right by matrix^-1 right, for a positive definite matrix, of which only the lower half is read; beside the
 * boundary it is singular to rounding, hence the ridge. */
static void solve(double matrix[D][D], double *right)
{
    double root[D][D], ridge = 0;
    for (int i = 0; i < D; i++) ridge += 4 * DBL_EPSILON * matrix[i][i];
    for (int i = 0; i < D; i++) {
        for (int j = 0; j <= i; j++) {
            double sum = matrix[i][j] + (i == j ? ridge : 0);
            for (int k = 0; k < j; k++) sum -= root[i][k] * root[j][k];
            root[i][j] = i == j ? sqrt(sum) : sum / root[j][j];
        }
        for (int k = 0; k < i; k++) right[i] -= root[i][k] * right[k];
        right[i] /= root[i][i];
    }
    for (int i = D - 1; i >= 0; i--) {
        for (int k = i + 1; k < D; k++) right[i] -= root[k][i] * right[k];
        right[i] /= root[i][i];
    }
}

/* The ideal solution of greatest entropy at eta: returns -s per site and in k, fills its gradient, which is the
 * fields that hold eta, and the inverse of its Hessian. A Newton step that changes a sublattice's field by r is cut to
 * ln(1 + r), and so always descends. */
static double ideal(const double *eta, double *field, double covariance[D][D])
{
    double value = 0;
    for (int i = 0; i < D; i++) field[i] = 0;
    for (int s = 0; s < SUBLATTICES; s++) {
        double x = 0;
        for (int i = 0; i < D; i++) x += inverse[s * D + i] * eta[i] / SHARE;
        x = fmin(fmax(x, $TINY), 1 - $TINY);
        for (int i = 0; i < D; i++) field[i] += inverse[s * D + i] * log(x / (1 - x));
    }
    double before = INFINITY;
    for (int step = 0, last = 0;; step++) {
        double change[D], r = 0;
        value = 0;
        memset(covariance, 0, D * sizeof *covariance);
        for (int i = 0; i < D; i++) {
            change[i] = eta[i];
            value += field[i] * eta[i];
        }
        for (int s = 0; s < SUBLATTICES; s++) {
            const double *p = patterns + s * D;
            double t = 0;
            for (int i = 0; i < D; i++) t += field[i] * p[i];
            const double x = 1 / (1 + exp(-t)), filled = x + $TINY2 * sinh(t);
            const double curve = x / (1 + exp(t)) + $TINY2 * cosh(t);
            value -= ((t > 0 ? t : 0) + log1p(exp(-fabs(t))) + $TINY2 * (cosh(t) - 1)) * SHARE;
            for (int i = 0; i < D; i++) {
                change[i] -= p[i] * filled * SHARE;
                for (int j = 0; j <= i; j++) covariance[i][j] += p[i] * p[j] * curve * SHARE;
            }
        }
        if (last || step == $STEPS) return value;
        solve(covariance, change);
        for (int s = 0; s < SUBLATTICES; s++) {
            double t = 0;
            for (int i = 0; i < D; i++) t += change[i] * patterns[s * D + i];
            r = fmax(r, fabs(t));
        }
        for (int i = 0; i < D; i++) field[i] += change[i] * (r > 0 ? log1p(r) / r : 1);
        last = !(r > 1.5e-9) || (r < 0.01 && r > before / 2); /* or rounding */
        before = r;
    }
}

double haljax_free_energy(const double *eta, double T, double *mu, double *hessian)
{
    const double only = $only;
    const int known = T > 0 && (only < 0 || fabs(T / only - 1) <= 1e-5);
    double g = 0;
    for (int i = 0; i < D && mu; i++) mu[i] = known ? 0 : NAN;
    for (int i = 0; i < D * D && hessian; i++) hessian[i] = known ? 0 : NAN;
    if (!known) return NAN;
    g = networks(eta, T, mu, hessian);
    if (ANCHORED) {
        double zero[D];
        for (int i = 0; i < D; i++) zero[i] = 0;
        g -= networks(zero, T, NULL, NULL);
    }
    for (int k = 0; k < MEMBERS; k++) g += offset[k] / MEMBERS;
    if (SUBLATTICES) {
        double field[D], covariance[D][D];
        const double kT = $k_sites * T;
        g += kT * ideal(eta, field, covariance);
        for (int i = 0; i < D && mu; i++) mu[i] += kT * field[i];
        for (int j = 0; j < D && hessian; j++) {
            double column[D];
            for (int i = 0; i < D; i++) column[i] = i == j;
            solve(covariance, column);
            for (int i = 0; i < D; i++) hessian[i * D + j] += kT * column[i];
        }
    }
    return g;
}
"""
