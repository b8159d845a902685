"""Closer than the data no potential has an attractive hole: ionic and covalent crystals, dense cells, triplets."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.neighborlist import neighbor_list
from scipy.special import erfc

import haljax as hx
from haljax.close import COLLAPSE, collapses, falls
from haljax.structures import with_labels

# Silicon after Tersoff, Phys. Rev. B 37, 6991 (1988).
SILICON = TersoffParameters(
    A=3264.7, B=95.373, lambda1=3.2394, lambda2=1.3258, lambda3=1.3258, beta=0.33675, gamma=1.0, m=3.0, n=22.956,
    c=4.8381, d=2.0417, h=0.0, R=3.0, D=0.2,
)  # fmt: skip


class RigidIons(Calculator):
    """Rock salt of charges +-1 with a Born-Mayer repulsion of unlike ions, Coulomb forces damped and cut at 6 Å."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, j, r, d = neighbor_list("ijdD", self.atoms, 6.0)
        charge = np.where(self.atoms.numbers == 11, 1.0, -1.0)
        q, a = 14.3996 * charge[i] * charge[j], 0.3
        repulsion = np.where(q < 0, 1100.0 * np.exp(-r / 0.32), 0.0)
        energy = repulsion + q * (erfc(a * r) / r - erfc(6 * a) / 6)
        slope = -repulsion / 0.32 - q * (erfc(a * r) / r**2 + 2 * a / np.sqrt(np.pi) * np.exp(-((a * r) ** 2)) / r)
        pair = (slope / r)[:, None] * d
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, i, pair)
        virial = 0.5 * np.einsum("pa,pb->ab", pair, d)
        stress = (virial / self.atoms.get_volume()).ravel()[[0, 4, 8, 5, 2, 1]]
        self.results = {"energy": energy.sum() / 2, "forces": forces, "stress": stress}


def labelled(atoms, calculator):
    atoms.calc = calculator
    stress = atoms.get_stress() if isinstance(calculator, RigidIons) else None
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), stress)


def rattled(crystal, calculator, n, seed, amplitude=0.12, strain=0.03):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = crystal.copy()
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain * rng.standard_normal((3, 3))), scale_atoms=True)
        atoms.positions += amplitude * rng.standard_normal(atoms.positions.shape)
        found.append(labelled(atoms, calculator))
    return found


def alloy_cells(n, seed, **more):
    crystal = bulk("Ag", "fcc", a=3.9, cubic=True) * (2, 1, 1)
    crystal.symbols[[0, 3, 5, 6]] = "Cu"
    return rattled(crystal, EMT(), n, seed, **more)


CRYSTALS = {
    "covalent": (("Si",), lambda n, seed, **more: rattled(
        bulk("Si", cubic=True), Tersoff({("Si", "Si", "Si"): SILICON}), n, seed, **more
    )),
    "ionic": (("Na", "Cl"), lambda n, seed, **more: rattled(
        bulk("NaCl", "rocksalt", a=5.64, cubic=True), RigidIons(), n, seed, **more
    )),
    "metallic": (("Ag", "Cu"), alloy_cells),
}  # fmt: skip


@pytest.fixture(scope="module", params=CRYSTALS)
def crystal(request):
    """A model of a crystal, and what makes more of its kind."""
    elements, make = CRYSTALS[request.param]
    return hx.fit(hx.ace_basis(elements, 5.0, 2, 7), make(12, 0)), make


def test_a_crystal_is_learned(crystal):
    """On cells that the fit has not seen, the force errors are a small part of the forces, and like those left out."""
    model, make = crystal
    test = make(8, 1)
    size = np.sqrt(np.mean(np.concatenate([atoms.get_forces().ravel() for atoms in test]) ** 2))
    error = hx.evaluate(model, test)["total"]["force_rmse"]
    assert error < 0.15 * size and 0.5 < error / model.loo.force < 2


def test_the_core_follows_the_bonds_of_the_crystal(crystal):
    model, _ = crystal
    bonds = [neighbor_list("ijd", atoms, 5.0) for atoms in model.structures]
    for a, b in model.basis.pairs:
        one, other = (model.basis.elements[k] for k in (a, b))
        shortest = [
            d[(atoms.symbols[i] == one) & (atoms.symbols[j] == other)].min()
            for atoms, (i, j, d) in zip(model.structures, bonds, strict=True)
        ]
        usual = model.basis.core_radii[1][a, b]
        assert model.radii[1, a, b] == pytest.approx(min(usual, 0.8 * np.sort(shortest)[1]))


def test_dimers_and_triplets_are_repulsive_below_the_data(crystal):
    model, _ = crystal
    assert falls(model.basis, model.coefficients, model.radii, model.near / 0.97) == {}
    assert collapses(model.basis, model.coefficients, model.radii, model.near) == {}
    assert "attractive hole" not in str(hx.evaluate(model, model.structures[:1]))


@pytest.mark.parametrize("tau", [0.0, 1.0, 100.0])
def test_a_cell_that_is_compressed_resists_whatever_the_bias(crystal, tau):
    """Rattled cells shrunk to half their size: the energy rises all the way from where they
    are as close as in the data, and biased or not."""
    model, make = crystal
    p = hx.potential(model)
    for atoms in make(3, 2):
        species = np.array([model.basis.elements.index(s) for s in atoms.symbols])
        energies, closest = [], []
        for scale in np.linspace(1.0, 0.5, 26):
            dense = atoms.copy()
            dense.set_cell(scale * atoms.cell.array, scale_atoms=True)
            box = dense.cell.array.T
            found = p.neighbours(dense.positions, box, species)
            energies.append(float(p.biased(dense.positions, box, species, neighbor=found, tau=tau)))
            i, j, d = neighbor_list("ijd", dense, 4.0)
            closest.append((d / model.near[species[i], species[j]]).min())
        inside = np.array(closest) < 0.8  # where the bias has faded
        assert inside.sum() >= 4
        assert np.all(np.diff(np.array(energies)[inside]) > 0)


def test_a_triplet_that_collapses_is_told(crystal):
    """A strong attraction of three atoms that dimers do not show."""
    model, _ = crystal
    basis, M = model.basis, len(model.basis)
    order = np.array([label.order for label in basis.labels])
    pulled = None
    for sign in (1.0, -1.0):
        mean = np.where(order == 2, sign * 30.0, 0.0)
        found = collapses(basis, mean, model.radii, model.near)
        if found:
            pulled = mean
            break
    assert pulled is not None and all(fall > COLLAPSE for fall in found.values())
    assert all(set(name.split("-")) <= set(basis.elements) for name in found)
    joint = jnp.asarray(np.append(pulled, np.asarray(model.posterior.mean)[M:]))
    doctored = replace(model, posterior=model.posterior._replace(mean=joint))
    table = str(hx.evaluate(doctored, model.structures[:1]))
    assert f"attractive hole: the energy of {next(iter(found))} falls by" in table
