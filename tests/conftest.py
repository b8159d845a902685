import os

# The tests spend their time compiling; without optimisation it is a third less. `haljax check` computes with it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """A process that keeps the programs of a thousand tests runs out of memory maps, and XLA aborts."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def alloy():
    """alloy(seed, repeat): a strained, rattled fcc Al-Cu cell of 4 x repeat atoms, half of each."""
    import numpy as np
    from ase.build import bulk

    def make(seed, repeat=(2, 2, 1)):
        rng = np.random.default_rng(seed)
        atoms = bulk("Al", "fcc", a=3.9, cubic=True) * repeat
        atoms.symbols[rng.permutation(len(atoms))[: len(atoms) // 2]] = "Cu"
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
        return atoms

    return make


@pytest.fixture(scope="session")
def small_model(alloy):
    """A real, small model: 98 functions of order 2 fitted to six 16-atom cells labelled by EMT."""
    from ase.calculators.emt import EMT

    import haljax as hx
    from haljax.structures import with_labels

    def label(atoms):
        atoms.calc = EMT()
        return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())

    return hx.fit(hx.ace_basis(("Al", "Cu"), cutoff=4.0, order=2, max_degree=6), [label(alloy(i)) for i in range(6)])


@pytest.fixture(scope="session")
def labelled(alloy):
    """labelled(seed, repeat): a cell of `alloy` labelled by EMT."""
    from ase.calculators.emt import EMT

    from haljax.structures import with_labels

    def make(seed, repeat=(1, 1, 1)):
        atoms = alloy(seed, repeat)
        atoms.calc = EMT()
        return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())

    return make


@pytest.fixture(scope="session")
def tiny_data(labelled):
    """Eight 4-atom cells labelled by EMT: 152 labels."""
    return [labelled(i) for i in range(8)]


@pytest.fixture(scope="session")
def tiny_model(tiny_data):
    """65 functions of order 2, fewer than its labels."""
    import haljax as hx

    return hx.fit(hx.ace_basis(("Al", "Cu"), cutoff=4.5, order=2, max_degree=5), tiny_data)
