"""The repulsive core: the published ZBL potential, switched off monotonically."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.data import covalent_radii

from haljax.ace import core_energy
from haljax.ace.core import core_radii, switched_zbl, zbl

from .environments import BASES, cluster, core


@pytest.mark.parametrize(
    ("z_i", "z_j", "r", "energy"),
    # a = 0.46850 / (Z1^0.23 + Z2^0.23), x = r / a, V = 14.399645 Z1 Z2 phi(x) / r, worked out step by step:
    #   Si-Si 1.0 Å: a = 0.127665, x = 7.83303, phi = 0.0180611
    #   Al-Cu 0.5 Å: a = 0.117911, x = 4.24049, phi = 0.0721175
    #   H-H   0.3 Å: a = 0.234250, x = 1.28068, phi = 0.344574
    [(14, 14, 1.0, 50.97436), (13, 29, 0.5, 783.0041), (1, 1, 0.3, 16.53915)],
)
def test_zbl_by_hand(z_i, z_j, r, energy):
    np.testing.assert_allclose(zbl(r, z_i, z_j), energy, rtol=1e-6)  # the digits given
    assert zbl(r, z_i, z_j) == zbl(r, z_j, z_i)


@pytest.mark.parametrize(("z_i", "z_j"), [(1, 8), (14, 14), (29, 74)])
def test_zbl_with_the_rounded_coefficients_of_the_book(z_i, z_j):
    """Ziegler, Biersack, Littmark (1985) print four digits: 0.8854 a0, 0.1818 e^-3.2x and so on."""
    r = np.linspace(0.05, 1.5, 30)
    x = r / (0.8854 * 0.529177 / (z_i**0.23 + z_j**0.23))
    phi = sum(c * np.exp(-b * x) for c, b in [(0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016)])
    # exp(-b x) turns the fourth digit of b into 1e-4 x, and x reaches 40.
    np.testing.assert_allclose(zbl(r, z_i, z_j), 14.3996 * z_i * z_j / r * phi, rtol=5e-3)


@pytest.mark.parametrize(("z_i", "z_j"), [(1, 1), (6, 1), (13, 29), (14, 14), (74, 74)])
def test_core_is_repulsive_to_its_end(z_i, z_j):
    total = covalent_radii[z_i] + covalent_radii[z_j]
    r_in, r_out = 0.4 * total, 0.8 * total
    r = jnp.linspace(0.01, 1.2 * r_out, 400)
    energy, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda r: switched_zbl(r, z_i, z_j, r_in, r_out))))(r)
    assert np.all(slope[r < r_out] < 0) and np.all(energy[r < r_out] > 0)
    np.testing.assert_allclose(energy[r < r_in], zbl(r[r < r_in], z_i, z_j), rtol=1e-14)
    assert np.all(energy[r >= r_out] == 0) and np.all(slope[r >= r_out] == 0)


def test_core_radii():
    r_in, r_out = core_radii((13, 29), 0.4, 0.8)
    total = np.array([[2.42, 2.53], [2.53, 2.64]])  # covalent radii 1.21 and 1.32 Å (Cordero 2008, as in ASE)
    np.testing.assert_allclose(r_in, 0.4 * total, rtol=1e-12)
    np.testing.assert_allclose(r_out, 0.8 * total, rtol=1e-12)


def test_energy_of_a_mixed_cluster_counts_each_pair_once(rng):
    basis = BASES["CHO-o2-d6"]
    structure = cluster(rng, basis, 6, 1.0)
    expected = 0.0
    for i in range(6):
        for j in range(i):
            a, b = structure.z_i[i], structure.z_i[j]
            r = np.linalg.norm(structure.positions[i] - structure.positions[j])
            expected += switched_zbl(r, *(basis.numbers[z] for z in (a, b)), *(t[a, b] for t in basis.core_radii))
    np.testing.assert_allclose(core(basis)(*structure)[0], expected, rtol=1e-12)
    assert expected > 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradient_is_finite_at_tiny_distances(dtype):
    """Two atoms that meet repel with a huge but finite force, and the slot that is empty gives no NaN."""
    basis = BASES["AlCu-o2-d6"]
    gradient = jax.jit(jax.grad(lambda d: core_energy(basis, d, jnp.array([0]), jnp.array([[1, -1]]))))
    for r in (1e-3, 1e-6, 1e-9):
        d = jnp.array([[[0.6 * r, 0.0, 0.8 * r], [20.0, 0.0, 0.0]]], dtype)
        g = gradient(d)
        assert g.dtype == dtype and np.all(np.isfinite(g)) and np.all(g[0, 1] == 0)
        # half of 14.4 Z1 Z2 / r^2, along the bond
        np.testing.assert_allclose(g[0, 0] * r**2, -7.2 * 13 * 29 * np.array([0.6, 0, 0.8]), rtol=0.05)
