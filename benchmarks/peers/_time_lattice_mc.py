"""Times a peer's lattice Monte Carlo in its own interpreter: CODE CASE N_STEPS; see latticemc.py."""

import json
import sys
import time

import numpy as np
from ase import Atoms
from ase.build import make_supercell

CASES = {
    # cell, cutoffs of pairs, triplets, quadruplets (Å), supercell (columns)
    "fcc": (2.0 * (1 - np.eye(3)), (3.0,), 12 * np.eye(3, dtype=int)),
    "LixCoO2": (
        np.array([[2.83, 0, 0], [1.415, 2.4509, 0], [1.415, 0.81695, 4.68]]),
        (11.5, 6.0, 5.0),
        np.array([[24, 12, 0], [0, 12, 24], [0, -12, 0]]),
    ),
}


def mchammer(cell, cutoffs, supercell, steps):
    from icet import ClusterExpansion, ClusterSpace
    from mchammer.calculators import ClusterExpansionCalculator
    from mchammer.ensembles import SemiGrandCanonicalEnsemble

    space = ClusterSpace(Atoms("H", cell=cell, pbc=True), list(cutoffs), ["H", "He"])
    rng = np.random.default_rng(0)
    atoms = make_supercell(space.primitive_structure, supercell.T)
    atoms.symbols = rng.choice(["H", "He"], len(atoms))
    calculator = ClusterExpansionCalculator(atoms, ClusterExpansion(space, 0.01 * rng.normal(size=len(space))))
    ensemble = SemiGrandCanonicalEnsemble(
        atoms, calculator, temperature=600, chemical_potentials={"H": 0.0, "He": 0.0},
        ensemble_data_write_interval=steps, trajectory_write_interval=10 * steps,
    )  # fmt: skip
    ensemble.run(steps // 10)
    start = time.process_time()
    ensemble.run(steps)
    return time.process_time() - start, len(space), len(atoms)


def smol(cell, cutoffs, supercell, steps):
    if len(cutoffs) > 1:  # its set-up of 6912 sites takes minutes; a step costs the same in a smaller cell
        supercell = np.array([[12, 6, 0], [0, 6, 12], [0, -6, 0]])
    from pymatgen.core import Lattice, Structure
    from smol.cofe import ClusterExpansion, ClusterSubspace
    from smol.moca import Ensemble, Sampler

    prim = Structure(Lattice(cell), [{"H": 0.5, "He": 0.5}], [[0, 0, 0]])
    space = ClusterSubspace.from_cutoffs(prim, dict(enumerate(cutoffs, 2)), basis="indicator")
    rng = np.random.default_rng(0)
    expansion = ClusterExpansion(space, 0.01 * rng.normal(size=space.num_corr_functions))
    ensemble = Ensemble.from_cluster_expansion(
        expansion, supercell.T, processor_type="decomposition", chemical_potentials={"H": 0.0, "He": 0.0}
    )
    sampler = Sampler.from_ensemble(ensemble, temperature=600, step_type="flip", seeds=[0])
    occupation = rng.integers(0, 2, (1, ensemble.num_sites)).astype(np.int32)
    sampler.run(steps // 10, occupation, thin_by=steps // 10, progress=False)
    start = time.process_time()
    sampler.run(steps, thin_by=steps, progress=False)
    return time.process_time() - start, space.num_corr_functions, ensemble.num_sites


code, case, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
seconds, parameters, sites = {"mchammer": mchammer, "smol": smol}[code](*CASES[case], steps)
print(json.dumps({"seconds": seconds, "steps": steps, "parameters": parameters, "sites": sites}))
