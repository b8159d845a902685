"""Values of the features: closed form, invariance, independence, and nothing but pair terms on a dimer."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre

from haljax.ace import ace_basis, descriptor
from haljax.ace.features import radial_functions

from .environments import BASES, K, N, Structure, cluster, core, from_ase, random_atoms, sizes, values

every_basis = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)


def moved(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell under an orthogonal matrix."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ matrix.T)
    atoms.positions = atoms.positions @ matrix.T
    return atoms


@every_basis
@pytest.mark.parametrize("pbc", [True, False, (True, False, True)], ids=["bulk", "cluster", "slab"])
def test_invariance(basis, pbc, rng):
    """Every function, relative to its typical size: nothing is lost in the correction for single neighbours."""
    atoms = random_atoms(rng, basis, pbc=pbc)
    expected = values(basis)(*from_ase(atoms, basis))
    assert np.any(expected != 0) and np.all(np.isfinite(expected))

    shifted = atoms.copy()
    shifted.positions += rng.normal(size=3) * 5
    shifted.wrap()
    variants = {
        "rotation": from_ase(moved(atoms, Rotation.random(random_state=3).as_matrix()), basis),
        "inversion": from_ase(moved(atoms, -np.eye(3)), basis),
        "reflection": from_ase(moved(atoms, Rotation.random(random_state=4).as_matrix() * [1, 1, -1]), basis),
        "translation": from_ase(shifted, basis),
        "permutation of atoms": from_ase(atoms[rng.permutation(len(atoms))], basis),
        "permutation of slots": from_ase(atoms, basis, slots=rng),
    }
    energy = core(basis)(*from_ase(atoms, basis))[0]
    for name, structure in variants.items():
        got = values(basis)(*structure)
        np.testing.assert_allclose(got / sizes(basis), expected / sizes(basis), rtol=0, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(core(basis)(*structure)[0], energy, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", ["Si-o4-d7", "AlCu-o3-d6"])
def test_padding_changes_nothing(name, rng):
    basis = BASES[name]
    atoms = random_atoms(rng, basis)
    bare, padded = from_ase(atoms, basis, n=None, k=None), from_ase(atoms, basis)
    assert bare.z_j.shape[0] < N and bare.z_j.shape[1] < K and not np.any(bare.z_i < 0)
    for f in (values(basis), lambda *s: core(basis)(*s)[0]):
        # Sums run in another order; that is all.
        np.testing.assert_allclose(f(*bare), f(*padded), rtol=1e-12, atol=1e-12)


def test_a_supercell_has_twice_the_features(rng):
    basis = BASES["Si-o3-d8"]
    atoms = random_atoms(rng, basis, n=4)
    one, two = from_ase(atoms, basis), from_ase(atoms * (1, 2, 1), basis)
    np.testing.assert_allclose(values(basis)(*two), 2 * values(basis)(*one), rtol=1e-11, atol=1e-11)


def test_isolated_atoms_have_no_features():
    basis = ace_basis(("Al", "Cu"), 4.0, 2, 4)
    d = descriptor(basis, jnp.zeros((2, 0, 3)), jnp.array([0, 1]), jnp.zeros((2, 0), int))
    np.testing.assert_array_equal(d, np.zeros(len(basis)))


def test_three_body_functions_by_the_closed_form(rng):
    """Two factors couple to a Legendre polynomial of the angle; removing j = k leaves the sum over true triples."""
    basis = BASES["AlCu-o2-d6"]
    structure = cluster(rng, basis, 5, 2.5)
    got = values(basis)(*structure)
    x, z = structure.positions[:5], structure.z_i[:5]
    d = x[None] - x[:, None]
    r = np.linalg.norm(d, axis=-1) + 100 * np.eye(5)
    radial = np.asarray(radial_functions(basis, jnp.asarray(r), jnp.asarray(z), jnp.asarray(np.tile(z, (5, 1)))))
    cosine = np.einsum("ija,ika->ijk", d, d) / (r[:, :, None] * r[:, None, :])
    for label, value in list(zip(basis.labels, got, strict=True))[basis.n_pair :]:
        (e1, n1, degree), (e2, n2, _) = label.factors
        expected = 0.0
        for i in np.flatnonzero(z == basis.elements.index(label.centre)):
            first = radial[i, :, n1 - 1] * (z == basis.elements.index(e1))
            second = radial[i, :, n2 - 1] * (z == basis.elements.index(e2))
            triples = first[:, None] * second[None] * eval_legendre(degree, cosine[i])
            expected += np.sum(triples) - np.trace(triples)
        expected *= np.sqrt(2 * degree + 1) / (4 * np.pi) * (np.sqrt(2) if label.factors[0] == label.factors[1] else 1)
        np.testing.assert_allclose(abs(value), abs(expected), rtol=1e-10, atol=1e-10)  # the sign is a convention


@every_basis
def test_functions_are_linearly_independent(basis, rng):
    """Full column rank over random clusters, so the Gram matrix is regular; columns scaled to length one."""
    matrix = []
    for _ in range(2 * len(basis) + 20):
        matrix.append(values(basis)(*cluster(rng, basis, rng.integers(2, N + 1), rng.uniform(1.0, 3.0))))
    matrix = np.array(matrix)
    s = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0), compute_uv=False)
    assert s[-1] > 1e-6 * s[0]  # a dependent function would give 1e-16; found are 1e-5 and more


@every_basis
def test_dimer_has_pair_terms_alone(basis, rng):
    """A single neighbour, at any distance, of either species: no many-body function feels it."""
    below = 0.9 * basis.core_radii[0].min()
    for a, b in basis.pairs:
        for r in np.linspace(below, basis.cutoff + 0.1, 24):
            direction = rng.normal(size=3)
            structure = cluster(rng, basis, 2, 0.0)
            structure.positions[1] = r * direction / np.linalg.norm(direction)
            z_i = np.where(np.arange(N) < 2, np.where(np.arange(N) == 0, a, b), -1)
            dimer = structure._replace(z_i=z_i, z_j=np.where(structure.index >= 0, z_i[structure.index], -1))
            d = np.asarray(values(basis)(*dimer)) / sizes(basis)
            np.testing.assert_allclose(d[basis.n_pair :], 0, atol=1e-12)
            pair = d[: basis.n_pair].reshape(-1, basis.max_degree)
            own = basis.pairs.index((a, b))
            assert not np.any(np.delete(pair, own, axis=0))
            if basis.core_radii[0][a, b] * 1.2 < r < basis.cutoff - 0.1:
                assert np.any(pair[own] != 0)


@every_basis
def test_many_body_functions_feel_a_trimer(basis, rng):
    """The contrary of the dimer: what vanishes there is not zero altogether."""
    largest = np.max([np.abs(values(basis)(*cluster(rng, basis, 5, 2.0))) for _ in range(80)], axis=0)
    assert np.all(largest > 1e-8 * sizes(basis))


def test_layout_is_what_the_tests_assume(rng):
    """The helper's own check: periodic images among the neighbours, an atom its own neighbour, free slots."""
    structure = from_ase(random_atoms(rng, BASES["Si-o2-d8"]), BASES["Si-o2-d8"])
    assert isinstance(structure, Structure)
    own = (structure.index == np.arange(N)[:, None]) & (structure.index >= 0)
    assert np.any(own) and np.any(structure.index < 0) and np.any(structure.shift != 0)
