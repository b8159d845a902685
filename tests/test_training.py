from __future__ import annotations

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

import haljax as hx
from haljax import bayes, training
from haljax.ace.core import switched_zbl
from haljax.structures import with_labels
from haljax.training import SMOOTHNESS, _blocks, _update, descriptors, design_rows, examples

E0 = {"Al": -3.0, "Cu": 1.5}
MOLECULE = Atoms("AlCuAl", [[0, 0, 0], [2.5, 0.1, 0], [0.3, 2.4, 0.2]])


@pytest.fixture(scope="module")
def basis(tiny_model):
    return tiny_model.basis


@pytest.fixture(scope="module")
def truth(tiny_model):
    """A model of the same basis with other, random coefficients."""
    rng = np.random.default_rng(1)
    mean = 0.3 * rng.normal(size=len(tiny_model.basis)) / tiny_model.basis.smoothness(1.0)
    e0 = np.array([E0["Al"], E0["Cu"]])
    return replace(tiny_model, e0=e0, posterior=tiny_model.posterior._replace(mean=jnp.asarray(mean)))


def labelled_by(model, atoms):
    atoms = atoms.copy()
    atoms.calc = hx.Calculator(model)
    stress = atoms.get_stress() if atoms.pbc.all() else None
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), stress)


def kept(atoms, *names):
    """A copy with these labels only."""
    results = atoms.calc.results
    return with_labels(atoms, **{name: results[name] for name in names})


def gram(model):
    """[R z]^T [R z]: what the data say, free of the signs that a QR leaves open."""
    seen = np.concatenate([model.statistics.R, model.statistics.z[:, None]], axis=1)
    return seen.T @ seen


def assert_same_fit(a, b, rtol=1e-8):
    assert int(a.statistics.n) == int(b.statistics.n)
    np.testing.assert_allclose(gram(a), gram(b), rtol=0, atol=1e-12 * np.abs(gram(a)).max())
    np.testing.assert_allclose(a.e0, b.e0, rtol=rtol)
    scale = np.abs(a.posterior.mean).max()
    np.testing.assert_allclose(a.posterior.mean, b.posterior.mean, rtol=0, atol=rtol * scale)
    np.testing.assert_allclose(a.posterior.noise_precision, b.posterior.noise_precision, rtol=rtol)


def assert_same_posterior(a, b, rtol=1e-8):
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rtol * np.abs(b.mean).max())
    covariance = np.asarray(b.factor @ b.factor.T)
    np.testing.assert_allclose(a.factor @ a.factor.T, covariance, rtol=0, atol=rtol * covariance.max())


# Rows of the design matrix


@pytest.fixture(scope="module")
def dense(alloy):
    """A cell so dense that the core is felt."""
    atoms = alloy(3, (1, 1, 1))
    atoms.set_cell(0.75 * atoms.cell.array, scale_atoms=True)
    return atoms


def test_rows_are_the_descriptor_and_its_derivatives(basis, dense):
    """Central differences with h = 2e-5 Å: the errors, some h^2 times third derivatives, are below 1e-7."""
    h = 2e-5
    for atoms, example in zip((dense, MOLECULE), examples(basis, [dense, MOLECULE]), strict=True):
        rows = design_rows(basis, *example)

        def slope(change, atoms=atoms):
            pair = [atoms.copy(), atoms.copy()]
            change(pair[0], h)
            change(pair[1], -h)
            plus, minus = descriptors(basis, pair)
            return (plus - minus) / (2 * h)

        np.testing.assert_allclose(rows.energy, descriptors(basis, [atoms])[0], rtol=1e-12, atol=1e-12)
        scale = np.abs(rows.forces).max()
        for i, x in ((0, 0), (1, 1), (2, 2)):

            def move(copy, h, i=i, x=x):
                copy.positions[i, x] += h

            np.testing.assert_allclose(rows.forces[i, x], -slope(move), rtol=0, atol=1e-6 * scale)
        if not atoms.pbc.all():
            continue
        for voigt, (a, b) in ((0, (0, 0)), (3, (1, 2)), (4, (0, 2)), (5, (0, 1))):

            def strain(copy, h, a=a, b=b):
                e = np.zeros((3, 3))
                e[a, b] += h / 2
                e[b, a] += h / 2
                copy.set_cell(copy.cell @ (np.eye(3) + e), scale_atoms=True)

            np.testing.assert_allclose(rows.virial[voigt], -slope(strain), rtol=0, atol=1e-6 * scale)


def test_rows_agree_with_the_calculator(tiny_model, basis, dense):
    """Two independent routes, reverse mode and the closed chain rule, to the same linear model."""
    for atoms, example in zip((dense.copy(), MOLECULE.copy()), examples(basis, [dense, MOLECULE]), strict=True):
        rows = design_rows(basis, *example)
        n = len(atoms)
        for k in (0, 7, 20, 64):
            unit = tiny_model.posterior._replace(mean=jnp.zeros(len(basis)).at[k].set(1.0))
            atoms.calc = hx.Calculator(replace(tiny_model, e0=np.zeros(2), posterior=unit))
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            np.testing.assert_allclose(rows.energy[k] + rows.core_energy, energy, rtol=1e-12)
            np.testing.assert_allclose((rows.forces[..., k] + rows.core_forces)[:n], forces, atol=1e-9)
            if atoms.pbc.all():
                assert abs(rows.core_energy) > 0.1
                virial = -atoms.get_stress() * atoms.get_volume()
                np.testing.assert_allclose(rows.virial[:, k] + rows.core_virial, virial, atol=1e-9)


# Fits


def test_an_exact_linear_model_is_recovered(basis, truth, alloy):
    cells = [labelled_by(truth, alloy(i, (1, 1, 1))) for i in range(16)]
    for solver in ("brr", "ard"):
        model = hx.fit(basis, cells[:12], e0=E0, solver=solver, smoothness=1.0)
        errors = hx.evaluate(model, cells[12:])["total"]
        # The hyper-prior's floor on the noise, 1e-6 of a weighted label, and ARD's threshold keep it from 0.
        limit = {"brr": (0.01, 1e-4, 1e-3), "ard": (3.0, 0.03, 0.3)}[solver]
        for what, most in zip(("energy", "force", "stress"), limit, strict=True):
            assert errors[f"{what}_rmse"] < most, (solver, errors)
    assert model.n_structures == 12 and int(model.statistics.n) == 12 * 19


def test_the_core_is_not_fitted(basis):
    """Labels that the fixed repulsive core explains leave nothing to the coefficients."""
    inner, outer = (radii[0, 1] for radii in basis.core_radii)

    def core(r):
        return switched_zbl(r, 13.0, 29.0, inner, outer)

    dimers = []
    for r in np.linspace(0.8 * inner, 1.1 * outer, 12):
        pull = float(jax.grad(core)(r))
        dimer = Atoms("AlCu", [[0, 0, 0], [0, 0, r]])
        dimers.append(with_labels(dimer, float(core(r)), [[0, 0, pull], [0, 0, -pull]]))
    assert dimers[0].get_potential_energy() > 100
    model = hx.fit(basis, dimers, e0={"Al": 0.0, "Cu": 0.0})
    # Weighted targets of some 1e5 cancel to rounding.
    assert np.linalg.norm(model.statistics.z) < 1e-8 and float(model.statistics.rss) < 1e-16
    np.testing.assert_allclose(model.posterior.mean, 0, atol=1e-8)


def test_emt_is_learned(tiny_model, tiny_data, labelled):
    """Real labels that the basis cannot reproduce: better than the composition's mean, on data not seen."""
    test = [labelled(i) for i in range(30, 36)]
    spread = np.std(np.concatenate([atoms.get_forces().ravel() for atoms in test]))
    assert hx.evaluate(tiny_model, tiny_data)["total"]["force_rmse"] < 0.2 * spread
    assert hx.evaluate(tiny_model, test)["total"]["force_rmse"] < 0.6 * spread


def test_the_posterior_is_that_of_the_rows(basis, tiny_data, tiny_model):
    """The whole chain, weights and signs included, against normal equations written down here."""
    model = tiny_model
    rows, targets = [], []
    for atoms, example in zip(tiny_data, examples(basis, tiny_data), strict=True):
        r, n = design_rows(basis, *example), len(atoms)
        e0 = model.e0[[basis.elements.index(s) for s in atoms.symbols]].sum()
        rows += [300 / n * r.energy[None], 10 * r.forces[:n].reshape(3 * n, -1), 30 / n * r.virial]
        targets += [
            [300 / n * (atoms.get_potential_energy() - e0 - r.core_energy)],
            10 * (atoms.get_forces() - r.core_forces[:n]).ravel(),
            30 / n * (-atoms.get_stress() * atoms.get_volume() - r.core_virial),
        ]
    psi, y = np.concatenate(rows), np.concatenate(targets)
    assert psi.shape == (int(model.statistics.n), len(basis))
    alpha, lam = model.posterior.noise_precision, model.posterior.prior_precision
    precision = alpha * psi.T @ psi + np.diag(lam)
    mean = np.linalg.solve(precision, alpha * psi.T @ y)
    covariance = np.linalg.inv(precision)
    # The normal equations square the condition number, hence no closer.
    np.testing.assert_allclose(model.posterior.mean, mean, atol=1e-6 * np.abs(mean).max())
    factor = model.posterior.factor
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-6 * covariance.max())
    np.testing.assert_allclose(lam / lam[0], (basis.smoothness(SMOOTHNESS) / basis.smoothness(SMOOTHNESS)[0]) ** 2)


def test_one_structure_and_fewer_rows_than_functions(basis, tiny_data):
    model = hx.fit(basis, tiny_data[:1])
    n, m = int(model.statistics.n), len(basis)
    assert n == 19 < m
    factor = np.asarray(model.posterior.factor) * np.sqrt(model.posterior.prior_precision)[:, None]
    variances = np.linalg.eigvalsh(factor @ factor.T)  # in units of the prior's
    np.testing.assert_allclose(variances[n:], 1, rtol=1e-8)
    assert variances[0] < 0.01 and np.isfinite(model.posterior.mean).all()


def test_ard_prunes(basis, tiny_data):
    """Fewer functions, an evidence no worse, as good a fit."""
    ard, brr = hx.fit(basis, tiny_data, solver="ard"), hx.fit(basis, tiny_data)
    assert 3 < ard.active.sum() < len(basis) and brr.active.all()
    assert not np.any(np.asarray(ard.posterior.mean)[~ard.active])
    assert float(ard.posterior.log_evidence) > float(brr.posterior.log_evidence)
    a, b = (hx.evaluate(model, tiny_data)["total"]["force_rmse"] for model in (ard, brr))
    assert a < 2 * b


def test_the_order_of_elements_and_structures_is_arbitrary(basis, tiny_data, tiny_model):
    assert_same_fit(tiny_model, hx.fit(basis, tiny_data[::-1]))
    swapped = hx.ace_basis(("Cu", "Al"), cutoff=basis.cutoff, order=basis.order, max_degree=basis.max_degree)
    other = hx.fit(swapped, tiny_data)
    np.testing.assert_allclose(other.e0, tiny_model.e0[::-1], rtol=1e-10)
    np.testing.assert_allclose(other.posterior.log_evidence, tiny_model.posterior.log_evidence, rtol=1e-8)
    atoms, values = tiny_data[0].copy(), []
    for model in (tiny_model, other):
        atoms.calc = hx.Calculator(model)
        values.append([atoms.get_potential_energy(), atoms.calc.get_property("energy_std", atoms)])
    np.testing.assert_allclose(*values, rtol=1e-7)


@pytest.fixture(scope="module")
def mixed(tiny_data, labelled, truth):
    """Sizes of 1 to 20 atoms, molecules, and labels missing here and there; with the number of labels."""
    cells = [
        labelled(20, (5, 1, 1)),
        labelled_by(truth, MOLECULE),
        kept(tiny_data[0], "energy", "forces"),
        labelled_by(truth, bulk("Al")),
        kept(tiny_data[1], "energy"),
        kept(tiny_data[2], "forces"),
        kept(tiny_data[3], "stress"),
        labelled_by(truth, Atoms("Al5", np.arange(15).reshape(5, 3) % [2, 3, 5] * 2.4)),
    ]
    return cells, (1 + 60 + 6) + (1 + 9) + (1 + 12) + (1 + 3 + 6) + 1 + 12 + 6 + (1 + 15)


def test_padding_and_missing_labels(basis, mixed):
    """All at once and in parts, each padded to shapes of its own, are the same data."""
    cells, count = mixed
    together = hx.fit(basis, cells, e0=E0)
    apart = hx.fit(basis, cells[:1], e0=E0)
    for part in (cells[1:4], cells[4:5], cells[5:]):
        apart = hx.refit(apart, part)
    assert apart.n_structures == together.n_structures == len(cells)
    rows = np.concatenate([np.column_stack(b) for b in _blocks(basis, together.e0, together.settings, cells)])
    # Rows of zeros are not counted. Symmetry makes up to eight of them, but for rounding errors: all forces in the
    # primitive cell, and those out of the plane of the five atoms.
    assert len(rows) == count and int(together.statistics.n) == np.any(rows, axis=1).sum() >= count - 8
    assert_same_fit(together, apart)


def test_nothing_more_to_learn(tiny_model):
    assert_same_fit(hx.refit(tiny_model, []), tiny_model)
    with pytest.raises(ValueError, match="nothing to learn: give at least one labelled structure"):
        hx.update(tiny_model, [])


def test_few_programs_are_compiled(alloy, truth, caplog):
    """Twenty structures of sizes within one bucket share one shape, on however many threads."""
    basis = hx.ace_basis(("Al", "Cu"), cutoff=3.3, order=2, max_degree=4)
    cells = []
    for i in range(20):
        atoms = alloy(i)[: 13 + i % 4]
        cells.append(with_labels(atoms, 0.0, np.ones((len(atoms), 3))))
    before = design_rows._cache_size()
    jax.config.update("jax_log_compiles", True)  # globally: the rows are computed in threads
    try:
        with caplog.at_level(logging.WARNING, logger="jax"):
            model = hx.fit(basis, cells, e0=E0)
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [r for r in caplog.messages if r.startswith("Finished XLA compilation of jit(design_rows)")]
    assert len(compiled) == 1 and design_rows._cache_size() == before + 1
    updated = _update._cache_size()
    for atoms in cells[1:3]:  # 43 and 46 rows
        model = hx.update(model, [atoms])
    assert _update._cache_size() == updated + 1 and design_rows._cache_size() == before + 1


# E0


def test_e0_by_least_squares(basis, alloy):
    """Exact where the energies are those of the composition, whatever the sizes."""
    cells = [alloy(0, (1, 1, 1)), bulk("Al", cubic=True)[:3], alloy(1, (1, 1, 1)), MOLECULE]
    cells[0].symbols[:] = "Cu"

    def energy(atoms):
        return sum(E0[s] for s in atoms.symbols)

    cells = [with_labels(atoms, energy(atoms), np.zeros((len(atoms), 3))) for atoms in cells]
    forces_only = with_labels(alloy(2, (1, 1, 1)), forces=np.zeros((4, 3)))
    model = hx.fit(basis, [*cells, forces_only])
    np.testing.assert_allclose(model.e0, [-3.0, 1.5], rtol=1e-10)


def test_e0_of_one_composition(basis, alloy):
    """All at Al2Cu2: only the sum is known; it is split evenly, the solution of least norm."""
    cells = [with_labels(alloy(i, (1, 1, 1)), -8.0 + 0.1 * (-1) ** i) for i in range(4)]
    np.testing.assert_allclose(hx.fit(basis, cells).e0, [-2.0, -2.0], rtol=1e-10)


def test_e0_of_an_element_without_data(basis):
    model = hx.fit(basis, [with_labels(bulk("Al", cubic=True), -12.0)])
    np.testing.assert_allclose(model.e0, [-3.0, 0.0], atol=1e-10)


def test_e0_isolated(basis, tiny_data):
    """Taken from single atoms, also those in a large periodic box, but not from a primitive cell."""
    box = Atoms("Cu", cell=[12, 13, 14], pbc=True)
    alone = [with_labels(Atoms("Al"), -2.5, [[0, 0, 0]]), with_labels(box, 0.75)]
    primitive = with_labels(bulk("Al"), -3.6)
    model = hx.fit(basis, [*alone, primitive, *tiny_data], e0="isolated")
    np.testing.assert_array_equal(model.e0, [-2.5, 0.75])
    assert_same_fit(model, hx.fit(basis, [primitive, *tiny_data], e0={"Al": -2.5, "Cu": 0.75}))
    single = Atoms("Cu")
    single.calc = hx.Calculator(model)
    assert single.get_potential_energy() == 0.75


@pytest.mark.parametrize(
    "others",
    [[], [with_labels(bulk("Cu"), 1.0)], [with_labels(Atoms("Cu"), forces=[[0, 0, 0]])]],
    ids=["none", "a crystal", "no energy"],
)
def test_e0_isolated_atom_missing(basis, tiny_data, others):
    train = [with_labels(Atoms("Al"), -2.5), *others, *tiny_data]
    with pytest.raises(ValueError, match="needs the energy of a single atom of Cu, alone within the cutoff"):
        hx.fit(basis, train, e0="isolated")


def test_e0_mapping(basis, tiny_data):
    np.testing.assert_array_equal(hx.fit(basis, tiny_data, e0=E0 | {"Ge": 1.0}).e0, [-3.0, 1.5])
    with pytest.raises(ValueError, match="e0 lacks Cu: give an energy in eV"):
        hx.fit(basis, tiny_data, e0={"Al": -3.0})
    with pytest.raises(ValueError, match="e0 of Cu is NaN or infinite"):
        hx.fit(basis, tiny_data, e0={"Al": -3.0, "Cu": np.nan})
    with pytest.raises(ValueError, match="'lsq', 'isolated' or a mapping from element to eV, not 'average'"):
        hx.fit(basis, tiny_data, e0="average")
    forces = [kept(atoms, "forces") for atoms in tiny_data]
    with pytest.raises(ValueError, match="e0='lsq' needs energies, but no structure has one"):
        hx.fit(basis, forces)
    assert int(hx.fit(basis, forces, e0=E0).statistics.n) == 8 * 12


# Weights


@pytest.mark.parametrize("left_out", ["energy", "forces", "stress", "an atom"])
def test_weight_zero_leaves_a_label_out(basis, tiny_data, left_out):
    """Also out of E0; for the forces of one atom, twelve of whose rows remain, count what is left."""
    wrong = tiny_data[0].copy()
    results = dict(tiny_data[0].calc.results)
    if left_out == "an atom":
        results["forces"] = results["forces"].copy()
        results["forces"][2] = 1e3
    else:
        results[left_out] = results[left_out] + 1e3
    wrong = with_labels(wrong, **results)
    if left_out == "an atom":
        wrong.arrays["force_weight"] = np.array([1.0, 1.0, 0.0, 1.0])
        model = hx.fit(basis, [*tiny_data[1:], wrong])
        assert int(model.statistics.n) == 8 * 19 - 3
        assert hx.evaluate(model, tiny_data)["total"]["force_rmse"] < 0.2
        return
    wrong.info[{"forces": "force_weight"}.get(left_out, f"{left_out}_weight")] = 0.0
    without = kept(tiny_data[0], *({"energy", "forces", "stress"} - {left_out}))
    assert_same_fit(hx.fit(basis, [*tiny_data[1:], wrong]), hx.fit(basis, [*tiny_data[1:], without]))


def test_weights_of_structures_multiply_those_of_the_fit(basis, tiny_data):
    """Weight 2 on all labels of each structure, or on the fit, and four times their noise precision."""
    heavy = [atoms.copy() for atoms in tiny_data]
    for atoms, source in zip(heavy, tiny_data, strict=True):
        atoms.calc = source.calc
        atoms.info.update(energy_weight=2.0, force_weight=4.0, stress_weight=2.0)
        atoms.arrays["force_weight"] = np.full((4, 3), 0.5)
    assert_same_fit(
        hx.fit(basis, heavy),
        hx.fit(basis, tiny_data, energy_weight=600.0, force_weight=20.0, stress_weight=60.0),
        rtol=1e-7,
    )


def test_only_ratios_of_weights_matter(basis, tiny_data, tiny_model):
    double = hx.fit(basis, tiny_data, energy_weight=600.0, force_weight=20.0, stress_weight=60.0)
    # To the hyper-priors, of weight 1e-6.
    np.testing.assert_allclose(4 * double.posterior.noise_precision, tiny_model.posterior.noise_precision, rtol=1e-4)
    np.testing.assert_allclose(
        double.posterior.mean, tiny_model.posterior.mean, atol=1e-4 * np.abs(tiny_model.posterior.mean).max()
    )
    more_energy = hx.fit(basis, tiny_data, energy_weight=30000.0)
    a, b = (hx.evaluate(model, tiny_data)["total"] for model in (more_energy, tiny_model))
    assert a["energy_rmse"] < b["energy_rmse"] and a["force_rmse"] > b["force_rmse"]


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_bad_weights(basis, tiny_data, weight):
    with pytest.raises(ValueError, match=f"force_weight must be a finite number >= 0, not {weight}"):
        hx.fit(basis, tiny_data, force_weight=weight)


def test_nothing_weighs_anything(basis, tiny_data):
    with pytest.raises(ValueError, match="nothing to learn from: every label is missing or has weight 0"):
        hx.fit(basis, tiny_data, e0=E0, energy_weight=0, force_weight=0, stress_weight=0)


# Updates


@pytest.mark.parametrize("solver", ["brr", "ard"])
def test_update_is_a_fit_at_fixed_hyperparameters(basis, tiny_data, labelled, solver):
    model = hx.fit(basis, tiny_data, solver=solver)
    new = [labelled(40), kept(labelled(41), "energy"), labelled_by(model, MOLECULE)]
    updated = hx.update(model, new)
    assert updated.n_structures == 11 and int(updated.statistics.n) == 8 * 19 + 19 + 1 + 10
    again = hx.refit(model, new)  # learns other hyperparameters from the same statistics
    assert_same_fit(replace(updated, posterior=model.posterior), replace(again, posterior=model.posterior))
    expected = bayes.posterior(
        updated.statistics,
        model.posterior.noise_precision,
        model.posterior.prior_precision,
        jnp.asarray(model.active),
    )
    assert_same_posterior(updated.posterior, expected)
    assert np.abs(updated.posterior.mean - model.posterior.mean).max() > 1e-4  # it did learn
    one_by_one = model
    for atoms in new:
        one_by_one = hx.update(one_by_one, [atoms])
    assert_same_posterior(one_by_one.posterior, expected)


@pytest.mark.parametrize("size", [1, 5])
def test_rows_of_updates_wait_until_they_are_needed(basis, tiny_data, labelled, tmp_path, size):
    """19 rows each: five at once or one by one are 95 rows, more than the 65 functions, and then absorbed."""
    model, new = hx.fit(basis, tiny_data), [labelled(i) for i in range(40, 46)]
    updated = model
    for start in range(0, 5, size):
        updated = hx.update(updated, new[start : start + size])
    assert updated.n_pending <= len(basis) and model.n_pending == 0
    updated = hx.update(updated, new[5:])
    assert updated.n_pending > 0 and updated.n_structures == 14
    whole = hx.refit(model, new)
    assert_same_fit(hx.refit(updated, []), whole)  # hyperparameters learned again from what had been waiting
    assert_same_posterior(hx.refit(updated, []).posterior, whole.posterior, 1e-7)
    assert_same_posterior(
        updated.posterior,
        bayes.posterior(whole.statistics, model.posterior.noise_precision, model.posterior.prior_precision),
    )
    updated.save(tmp_path / "model.npz")
    back = hx.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(back.posterior.factor, updated.posterior.factor)
    assert_same_fit(hx.refit(back, []), whole)


def test_refit_is_a_fit_to_all(basis, tiny_data, labelled):
    """At the E0 of the first fit, and with hyperparameters learned again."""
    first = hx.fit(basis, tiny_data[:3], solver="brr")
    again = hx.refit(hx.refit(first, tiny_data[3:4]), tiny_data[4:])
    whole = hx.fit(basis, tiny_data, e0=dict(zip(basis.elements, first.e0, strict=True)))
    assert_same_fit(again, whole)
    assert again.n_structures == 8 and again.settings == first.settings
    assert abs(float(again.posterior.noise_precision / first.posterior.noise_precision) - 1) > 0.01


# Selection


def test_select_is_greedy_by_conditional_variance(tiny_model, alloy):
    """Against the definition, with dense covariances and a label noise of 1/sqrt(alpha) after weighting."""
    # A supercell is as unknown per atom as its cell, and more so in total.
    pool = [alloy(i, (1, 1, 1)) for i in range(50, 58)] + [alloy(50, (1, 1, 1)) * (4, 1, 1), MOLECULE]
    factor = np.asarray(tiny_model.posterior.factor)
    covariance = factor @ factor.T
    rows = descriptors(tiny_model.basis, pool) * np.array([300 / len(atoms) for atoms in pool])[:, None]
    expected = []
    for _ in range(4):
        variance = np.einsum("im,mn,in->i", rows, covariance, rows)
        variance[expected] = -1
        best = int(np.argmax(variance))
        expected.append(best)
        column = covariance @ rows[best]
        covariance = covariance - np.outer(column, column) / (
            rows[best] @ column + 1 / float(tiny_model.posterior.noise_precision)
        )
    picked = hx.select(tiny_model, pool, 4)
    assert picked == expected and all(type(i) is int for i in picked)
    assert hx.select(tiny_model, iter(pool), 4) == picked


def test_select_leaves_copies_for_last(tiny_model, alloy):
    far = alloy(60, (1, 1, 1))
    far.rattle(0.3, seed=1)
    pool = [alloy(61, (1, 1, 1)), far, far.copy(), far * (2, 1, 1), alloy(62, (1, 1, 1))]
    picked = hx.select(tiny_model, pool, 5)
    assert sorted(picked) == [0, 1, 2, 3, 4]
    assert picked[0] in (1, 2, 3) and set(picked[1:3]) == {0, 4}


def test_select_knows_what_is_on_its_way(tiny_model, alloy):
    pool = [alloy(seed, (1, 1, 1)) for seed in range(20, 26)]
    best = hx.select(tiny_model, pool, 3)
    assert hx.select(tiny_model, pool, 2, given=[pool[best[0]]]) == best[1:]
    assert hx.select(tiny_model, pool, 1, given=[pool[i] for i in best[:2]]) == best[2:]


def test_select_of_a_fit_to_forces_alone(basis, tiny_data, alloy):
    forces = [kept(atoms, "forces") for atoms in tiny_data]
    model = hx.fit(basis, forces, e0=E0, energy_weight=0)
    odd = alloy(63, (1, 1, 1))
    odd.rattle(0.4, seed=2)
    assert hx.select(model, [*tiny_data, odd], 1) == [8]


def test_select_asks_for_a_pool(tiny_model, tiny_data):
    with pytest.raises(ValueError, match="the pool is empty"):
        hx.select(tiny_model, [], 1)
    with pytest.raises(ValueError, match="cannot select 9 of a pool of 8"):
        hx.select(tiny_model, tiny_data, 9)
    assert hx.select(tiny_model, tiny_data, 0) == []


# Bad input: one message that names the structure


def spoiled(atoms, change):
    copy = with_labels(atoms, **{k: np.array(v) for k, v in atoms.calc.results.items()})
    replaced = change(copy)
    return copy if replaced is None else replaced


BAD = {
    "energy NaN": (lambda a: with_labels(a, np.nan), r"structure 5 \(.*\): energy is NaN"),
    "force infinite": (lambda a: with_labels(a, 0.0, np.full((4, 3), np.inf)), r"structure 5 .*forces is NaN or inf"),
    "force shape": (lambda a: with_labels(a, 0.0, np.zeros((3, 3))), r"structure 5 .*forces has shape \(3, 3\)"),
    "stress shape": (lambda a: with_labels(a, 0.0, stress=np.zeros(5)), r"structure 5 .*stress has shape \(5,\)"),
    "no labels": (lambda a: a.copy(), "structure 5 .*has no energy, forces or stress"),
    "stale labels": (lambda a: a.positions.__setitem__((0, 0), 9.0), "structure 5 .*belong to other positions"),
    "weight": (lambda a: a.info.update(energy_weight=-1.0), "structure 5 .*energy_weight is negative"),
    "element": (
        lambda a: with_labels(Atoms("Ge2", [[0, 0, 0], [0, 0, 2]]), 0.0),
        r"structure 5 \(Ge2\): Ge is not among the basis' elements \(Al, Cu\)",
    ),
    "volume": (
        lambda a: with_labels(Atoms("Al", cell=[4, 4, 0], pbc=True), 0.0),
        "structure 5 .*has no volume",
    ),
    "coincident": (
        lambda a: with_labels(Atoms("Al2", [[0, 0, 0], [0, 0, 4]], cell=[4, 4, 4], pbc=True), 0.0),
        "structure 5 .*atoms 0 and 1 .*on one place",
    ),
    "empty": (lambda a: Atoms(info={"energy": 0.0}), r"structure 5 \(empty\) has no atoms"),
    "position": (lambda a: Atoms("Al", [[0, 0, np.nan]], info={"energy": 0.0}), "structure 5 .*positions of atoms"),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("e0", ["lsq", "isolated"])
def test_bad_structures(basis, tiny_model, tiny_data, bad, e0):
    change, message = BAD[bad]
    alone = [with_labels(Atoms("Al"), 0.0), with_labels(Atoms("Cu"), 0.0)]  # not counted, not to shift the index
    with pytest.raises(ValueError, match=message):
        hx.fit(basis, [*alone, *tiny_data[:3], spoiled(tiny_data[3], change)], e0=e0)
    if e0 == "lsq":
        for learn in (hx.update, hx.refit):
            with pytest.raises(ValueError, match=message):
                learn(tiny_model, [*tiny_data[:5], spoiled(tiny_data[5], change)])


def test_a_fit_needs_structures_and_a_solver(basis, tiny_data):
    with pytest.raises(ValueError, match="nothing to fit: give at least one labelled structure"):
        hx.fit(basis, [])
    with pytest.raises(ValueError, match="solver must be 'brr' or 'ard', not 'bayes'"):
        hx.fit(basis, tiny_data, solver="bayes")


def test_extreme_labels_are_reported(basis, tiny_data):
    huge = with_labels(tiny_data[0], 1e300)
    with pytest.raises(ValueError, match="the fit is not finite: look for extreme labels"):
        hx.fit(basis, [huge, *tiny_data], e0=E0)


def test_a_fit_that_was_cut_off_says_so(tiny_data, monkeypatch, caplog):
    basis = hx.ace_basis(("Al", "Cu"), cutoff=4.5, order=2, max_degree=5)
    hx.fit(basis, tiny_data, solver="ard")
    assert not caplog.records
    monkeypatch.setitem(training._SOLVERS, "ard", lambda *arguments: bayes.ard(*arguments, max_iterations=2))
    hx.fit(basis, tiny_data, solver="ard")
    assert "the evidence still grew after 2 steps of ard" in caplog.text
