from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from haljax.lattice import Supercell, decompose, orbit, orbits

from .crystals import fcc, hcp, lixcoo2, reference_data, rocksalt

# multiplicities of the LixCoO2 expansion (arXiv:2503.07619), in the order of its data
MULTIPLICITIES = [
    1,
    1,
    3,
    3,
    3,
    3,
    6,
    3,
    6,
    3,
    6,
    6,
    6,
    3,
    6,
    6,
    3,
    6,
    2,
    6,
    2,
    3,
    12,
    6,
    12,
    12,
    12,
    6,
    3,
    2,
    6,
    6,
    12,
]
MULTIPLICITIES += [6, 6]


def test_lixcoo2_multiplicities():
    expansion = lixcoo2()
    assert [found.multiplicity for found in expansion.orbits] == MULTIPLICITIES


@pytest.mark.slow
def test_lixcoo2_orbits_are_the_published_ones():
    expansion = lixcoo2()
    terms = reference_data("lco_cluster_expansion.json")["terms"]
    assert len(terms) == len(expansion.orbits) == 35

    def normal(cluster):
        last = max(map(tuple, cluster))
        return tuple(sorted(tuple(a - b for a, b in zip(site, last, strict=True)) for site in cluster))

    for term, found, eci in zip(terms, expansion.orbits, expansion.eci, strict=True):
        assert eci == term["eci"]
        clusters = {tuple(site[:3] for site in cluster) for cluster in found.clusters}
        assert clusters == {normal(c) for c in term.get("orbit", [term["prototype"]]) if c} or not term["prototype"]


def brute_force(crystal, order, cutoff):
    """All decorated clusters of one order with a site in cell 0, as sets, found by trying every combination."""
    cells = np.array(list(product(range(-3, 4), repeat=3)))
    sites = [(*cell, s) for s in crystal.active for cell in cells.tolist()]
    position = {site: crystal.cartesian(np.array(site)) for site in sites}
    found = set()
    for s in crystal.active:
        first = (0, 0, 0, s)
        near = [b for b in sites if b != first and np.linalg.norm(position[b] - position[first]) <= cutoff + 1e-5]
        for others in combinations(near, order - 1):
            if all(np.linalg.norm(position[a] - position[b]) <= cutoff + 1e-5 for a, b in combinations(others, 2)):
                cluster = sorted((first, *others))
                shift = cluster[-1][:3]
                moved = [(*(a - b for a, b in zip(site[:3], shift, strict=True)), site[3]) for site in cluster]
                for functions in product(*[range(1, crystal.n_species[site[3]]) for site in moved]):
                    found.add((tuple(moved), functions))
    return found


@pytest.mark.parametrize("crystal, cutoff", [(fcc("A", "B", "C"), 4.1), (rocksalt(), 3.1), (hcp(), 3.0)])
@pytest.mark.parametrize("order", [2, 3])
def test_orbits_are_all_clusters_once(crystal, cutoff, order):
    found = [o for o in orbits(crystal, {order: cutoff}) if o.order == order]
    listed = [member for o in found for member in zip(o.clusters, o.functions, strict=True)]
    assert len(listed) == len(set(listed))
    assert set(listed) == brute_force(crystal, order, cutoff)


def test_the_order_of_orbits():
    crystal = fcc("A", "B")
    found = orbits(crystal, {2: 6.4, 3: 4.1, 4: 2.9})
    assert [o.order for o in found] == sorted(o.order for o in found)
    assert found[0].clusters == ((),) and found[1].clusters == (((0, 0, 0, 0),),)
    # fcc shells: 12, 6, 24, 12, 24 neighbours; the triangle and the tetrahedron of nearest neighbours
    assert [o.multiplicity for o in found if o.order == 2] == [6, 3, 12, 6, 12]
    assert [o.multiplicity for o in found if o.order == 3] == [8, 12]
    assert [o.multiplicity for o in found if o.order == 4] == [2]
    assert [o.order for o in orbits(crystal, {})] == [0, 1]


def test_an_orbit_does_not_depend_on_its_prototype():
    crystal = rocksalt()
    for found in orbits(crystal, {3: 4.3})[::7]:
        for sites, functions in zip(found.clusters, found.functions, strict=True):
            moved = [(l + 2, m - 1, n, s) for l, m, n, s in sites]
            backwards = orbit(crystal, moved[::-1], functions[::-1]) if sites else orbit(crystal, ())
            assert backwards == found


def test_decorations_of_a_pair():
    # two species beside the reference on equivalent sites: 11, 12 = 21 and 22
    functions = [o.functions for o in orbits(fcc("A", "B", "C"), {2: 2.9}) if o.order == 2]
    assert [len(f) for f in functions] == [6, 12, 6]
    assert set(functions[1]) == {(1, 2), (2, 1)}


def test_decompose():
    crystal = rocksalt()
    first, second = (o for o in orbits(crystal, {2: 2.2}) if o.order == 2)
    clusters = np.array(first.clusters * 2 + second.clusters)
    functions = np.array(first.functions * 2 + second.functions)
    shares = dict(decompose(crystal, clusters, functions))
    assert shares == pytest.approx({first: 2 / 3, second: 1 / 3})
    with pytest.raises(ValueError, match="another symmetry"):
        decompose(crystal, clusters[1:], functions[1:])


@pytest.mark.parametrize(
    "prototype, functions, message",
    [
        ([[0, 0, 0, 0], [0, 0, 0, 0]], None, "a site twice"),
        ([[0, 0, 0, 2]], None, "basis site 2"),
        ([[0, 0, 0, 0]], [3], "functions 1 to 2"),
        ([[0, 0, 0, 0]], [0], "functions 1 to 2"),
        ([[0, 0, 0, 0]], [1, 1], "one function for each site"),
        ([[0, 0, 0]], None, "integers l, m, n, s"),
        ([[0, 0, 0.5, 0]], None, "integers l, m, n, s"),
    ],
)
def test_bad_clusters(prototype, functions, message):
    with pytest.raises(ValueError, match=message):
        orbit(rocksalt(), prototype, functions)


@pytest.mark.parametrize(
    "cutoffs, message", [({1: 2.0}, "orders 2"), ({2: -1.0}, "positive"), ({2: np.inf}, "positive")]
)
def test_bad_cutoffs(cutoffs, message):
    with pytest.raises(ValueError, match=message):
        orbits(fcc("A", "B"), cutoffs)


def test_sites_without_a_choice_take_no_part():
    from haljax.lattice import lattice

    crystal = rocksalt()
    with_spectator = lattice(crystal.cell, crystal.positions, [("Mg", "Zn"), ("O",)])
    found = orbits(with_spectator, {2: 4.3})
    assert {site[3] for o in found for cluster in o.clusters for site in cluster} == {0}
    assert Supercell(((1, 0, 0), (0, 1, 0), (0, 0, 1)), 2).n_sites == 2
    with pytest.raises(ValueError, match="basis site 1"):
        orbit(with_spectator, [[0, 0, 0, 1]])
