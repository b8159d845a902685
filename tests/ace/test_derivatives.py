"""Forces and virial of the features and of the core against finite differences; smoothness along a neighbour's way."""

import numpy as np
import pytest

from .environments import BASES, K, N, Structure, cluster, core, forces, from_ase, random_atoms, rows, sizes, values

every_basis = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
# Fourth-order stencil: its error h^4 f^(5) / 30 is about 1e-10 of the slope for lengths of 0.3 Å, in which these
# functions vary, and rounding 1e-16 / h about 1e-12; both are well below the tolerance.
STENCIL, STEP = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)), 5e-4
RTOL = 1e-7


def differences(f, structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """df/dR (N, 3, ...) and df/d(strain) (3, 3, ...) by finite differences; strain acts as x -> x + strain x."""

    def slope(positions, cell):
        shifted = (w * np.asarray(f(structure._replace(positions=positions(k), cell=cell(k)))) for k, w in STENCIL)
        return sum(shifted) / STEP

    def displaced(atom, axis, k):
        positions = structure.positions.copy()
        positions[atom, axis] += k * STEP
        return positions

    def strained(x, a, b, k):
        strain = np.zeros((3, 3))
        strain[a, b] = k * STEP
        return x @ (np.eye(3) + strain).T

    force = [
        [slope(lambda k, i=i, a=a: displaced(i, a, k), lambda k: structure.cell) for a in range(3)] for i in range(N)
    ]
    virial = [
        [
            slope(
                lambda k, a=a, b=b: strained(structure.positions, a, b, k),
                lambda k, a=a, b=b: strained(structure.cell, a, b, k),
            )
            for b in range(3)
        ]
        for a in range(3)
    ]
    return np.array(force), np.array(virial)


@every_basis
@pytest.mark.parametrize("pbc", [True, False], ids=["bulk", "cluster"])
def test_gradients_equal_finite_differences(basis, pbc, rng):
    structure = from_ase(random_atoms(rng, basis, pbc=pbc), basis)
    real = structure.z_i >= 0
    d, slope, strain = map(np.asarray, rows(basis)(*structure))
    np.testing.assert_allclose(d / sizes(basis), values(basis)(*structure) / sizes(basis), rtol=0, atol=1e-12)
    force, virial = differences(lambda s: values(basis)(*s), structure)
    # Every function for itself: relative to its largest derivative on any atom.
    scale = np.maximum(np.max(np.abs(slope), axis=(0, 1)), 1e-3 * sizes(basis))
    np.testing.assert_allclose(slope / scale, force / scale, rtol=0, atol=RTOL)
    scale = np.maximum(np.max(np.abs(strain), axis=(0, 1)), 1e-3 * sizes(basis))
    np.testing.assert_allclose(strain / scale, virial / scale, rtol=0, atol=RTOL)
    assert np.all(slope[~real] == 0)
    # No net force, no net torque, the strain derivative being symmetric for a rotation invariant.
    np.testing.assert_allclose(np.sum(slope, axis=0) / scale, 0, atol=1e-12)
    np.testing.assert_allclose(strain / scale, np.swapaxes(strain, 0, 1) / scale, rtol=0, atol=1e-10)

    # Reverse mode through the descriptor.
    c = rng.normal(size=len(basis)) / sizes(basis)
    reverse, reverse_strain = map(np.asarray, forces(basis)(c, *structure))
    largest = np.max(np.abs(reverse))
    np.testing.assert_allclose(reverse, slope @ c, rtol=0, atol=1e-11 * largest)
    np.testing.assert_allclose(reverse, force @ c, rtol=0, atol=RTOL * largest)
    largest = np.max(np.abs(reverse_strain))
    np.testing.assert_allclose(reverse_strain, strain @ c, rtol=0, atol=1e-11 * largest)
    np.testing.assert_allclose(reverse_strain, virial @ c, rtol=0, atol=RTOL * largest)
    assert np.all(np.isfinite(reverse)) and np.all(reverse[~real] == 0)


@pytest.mark.parametrize("name", ["Si-o1-d6", "AlCu-o3-d6", "CHO-o2-d6"])
def test_more_atoms_than_neighbours(name, rng):
    """Then every neighbour's rows are added to its atom; in a small cell images of an atom are summed first."""
    structure = cluster(rng, BASES[name], 6, 2.5)
    short = structure._replace(index=structure.index[:, :6], shift=structure.shift[:, :6], z_j=structure.z_j[:, :6])
    for wide, narrow in zip(rows(BASES[name])(*structure), rows(BASES[name])(*short), strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=0, atol=1e-12 * np.max(np.abs(wide)))


@pytest.mark.parametrize("name", ["Si-o2-d8", "AlCu-o2-d6", "CHO-o2-d6"])
def test_core_gradients_equal_finite_differences(name, rng):
    basis = BASES[name]
    energy = 0.0
    while energy < 0.1:  # eV: some bonds are well inside the switch
        structure = from_ase(random_atoms(rng, basis), basis)
        energy, (force, strain) = core(basis)(*structure)
    expected, virial = differences(lambda s: core(basis)(*s)[0], structure)
    np.testing.assert_allclose(force, expected, rtol=0, atol=RTOL * np.max(np.abs(force)))
    np.testing.assert_allclose(strain, virial, rtol=0, atol=RTOL * np.max(np.abs(strain)))
    assert np.all(force[structure.z_i < 0] == 0)


def site(basis, rng, r: float, z: int) -> Structure:
    """One centre with five neighbours, and a sixth of element ``z`` at ``r`` that is atom 1; the others are atom 2.

    Shifts carry the vectors, so that no neighbour is a centre itself.
    """
    x = rng.normal(size=(6, 3))
    x *= (np.append(r, rng.uniform(1.5, 3.0, 5)) / np.linalg.norm(x, axis=1))[:, None]
    index, z_j, d = np.full((N, K), -1, np.int32), np.full((N, K), -1, np.int32), np.zeros((N, K, 3))
    index[0, :6], d[0, :6] = [1, 2, 2, 2, 2, 2], x
    z_j[0, :6] = np.append(z, rng.integers(basis.n_species, size=5))
    z_i = np.where(np.arange(N) == 0, 0, -1).astype(np.int32)
    return Structure(np.zeros((N, 3)), np.eye(3), index, d, z_i, z_j)


def effect(basis, r: float, z: int) -> tuple[np.ndarray, np.ndarray]:
    """Change of D by a neighbour at ``r`` against one far away, and the derivative with respect to it (3, M)."""
    d, slope, _ = rows(basis)(*site(basis, np.random.default_rng(2), r, z))
    without, _, _ = rows(basis)(*site(basis, np.random.default_rng(2), 3 * basis.cutoff, z))
    return (np.asarray(d) - np.asarray(without)) / sizes(basis), np.asarray(slope)[1] / sizes(basis)


@every_basis
def test_value_and_slope_vanish_at_the_cutoff(basis):
    """A neighbour that leaves does so as (r_cut - r)^2, its force linearly; beyond the cutoff it is not there."""
    for z in range(basis.n_species):
        near, nearer = effect(basis, basis.cutoff - 1e-3, z), effect(basis, basis.cutoff - 1e-5, z)
        felt = np.abs(near[0]) > 1e-8
        assert np.mean(felt) > 0.3 / basis.n_species**2
        np.testing.assert_allclose(nearer[0][felt] / near[0][felt], 1e-4, rtol=0.05)
        size = np.max(np.abs(near[1]), axis=0)[felt]
        np.testing.assert_allclose(np.max(np.abs(nearer[1]), axis=0)[felt] / size, 1e-2, rtol=0.05)
        assert np.max(np.abs(nearer[0])) < 1e-8 and np.max(np.abs(nearer[1])) < 1e-3
        for r in (basis.cutoff + 1e-6, basis.cutoff + 1e-2):
            value, slope = effect(basis, r, z)
            np.testing.assert_allclose(value, 0, atol=1e-14)
            np.testing.assert_allclose(slope, 0, atol=1e-14)


@every_basis
def test_value_and_slope_vanish_at_the_core(basis):
    """Inside the core a neighbour is not there for the fitted terms; it comes in as (r - r_in)^4 or more softly."""
    for z in range(basis.n_species):
        r_in = basis.core_radii[0][0, z]
        near, nearer = effect(basis, r_in + 2e-2, z), effect(basis, r_in + 2e-3, z)
        assert np.max(np.abs(near[0])) > 0
        assert np.all(np.abs(nearer[0]) <= 2e-4 * np.abs(near[0]) + 1e-13)
        assert np.all(np.max(np.abs(nearer[1]), axis=0) <= 2e-3 * np.max(np.abs(near[1]), axis=0) + 1e-13)
        for r in (0.999 * r_in, 0.5 * r_in, 1e-3):
            value, slope = effect(basis, r, z)
            np.testing.assert_allclose(value, 0, atol=1e-14)
            np.testing.assert_allclose(slope, 0, atol=1e-14)
