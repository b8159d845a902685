from __future__ import annotations

import json
import logging
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.lattice import (
    ClusterExpansion,
    Supercell,
    check_range,
    correlations,
    energy,
    lattice,
    load_expansion,
    orbit,
    save_expansion,
)

from .crystals import fcc, hcp, lixcoo2, random_expansion, random_occupation, rocksalt

CUBE = Supercell(((4, 0, 0), (0, 4, 0), (0, 0, 4)), 1)
ROOT3 = Supercell(((3, 0, 0), (0, 3, 0), (0, 0, 3)), 1)
PRODUCTION = Supercell(((24, 12, 0), (0, 12, 24), (0, -12, 0)), 1)
SKEW = ((2, 1, 0), (0, 2, 1), (1, 0, 3))

QUARTERS = [((2, 1, 3), 2), ((2, 1, 3), 3), ((1, 3, 2), 3), ((1, 2, 3), 3), ((1, 2, 3), 2), ((1, 3, 2), 2)]
CELLS = CUBE.cells()
ZIGZAGS = [
    (1 + sign * np.array([1, 1, -1, -1])[(CELLS @ np.array(q) + offset) % 4]) // 2
    for q, offset in QUARTERS
    for sign in (1, -1)
]
THIRDS = (ROOT3.cells()[:, 0] - ROOT3.cells()[:, 1]) % 3 == 0

# eV per formula unit; energies of the Hamiltonian of examples/lixcoo2_eci.json, known to ten figures
REFERENCES = [
    ("all Li", CUBE, np.zeros(64, int), -0.0017260888),
    ("all vacant", CUBE, np.ones(64, int), -5.71646757e-5),
    *[(f"zigzag {i}", CUBE, occupation, -0.1701334192) for i, occupation in enumerate(ZIGZAGS)],
    ("rows", CUBE, CELLS[:, 0] % 2, -0.1673410046),
    ("1/3 vacant", ROOT3, THIRDS.astype(int), -0.1434312346),
    ("2/3 vacant", ROOT3, 1 - THIRDS.astype(int), -0.1474194053),
]


@pytest.mark.parametrize("name, supercell, occupation, expected", REFERENCES, ids=[r[0] for r in REFERENCES])
def test_lixcoo2_reference_energies(name, supercell, occupation, expected):
    # the references are given to ten figures
    assert float(energy(lixcoo2(), supercell, occupation)) == pytest.approx(expected, abs=1e-9)


def test_a_single_vacancy_costs_the_point_eci():
    expansion = lixcoo2()
    occupations = np.zeros((2, PRODUCTION.n_sites), np.int8)
    occupations[1, 17] = 1
    full, one = np.asarray(energy(expansion, PRODUCTION, occupations))
    assert (one - full) * PRODUCTION.n_cells == pytest.approx(expansion.eci[1], abs=1e-9)


def test_lixcoo2_terms_and_range():
    terms = lixcoo2().terms()
    order = np.array([len(term.factors) for term in terms])
    assert [int(k * np.sum(order == k)) for k in (2, 3, 4)] == [144, 219, 164]  # per flip; 527 in all
    vectors = {
        tuple(np.subtract(a[:3], b[:3]).tolist())
        for term in terms
        for a in term.factors
        for b in term.factors
        if a != b
    }
    assert len(vectors) == 150


def term_energy(expansion, supercell, occupation):
    """The energy by the polynomial in indicators, straight from its definition."""
    total = 0.0
    for coefficient, factors in expansion.terms():
        if not factors:
            total += coefficient
            continue
        place = supercell.neighbours(np.array([f[:4] for f in factors]))
        total += coefficient * np.mean(np.prod(occupation[place] == np.array([f[4] for f in factors])[None], axis=1))
    return total


def brute_energy(expansion, supercell, occupation):
    """The energy by loops over cells, clusters and sites."""
    total = 0.0
    for found, eci in zip(expansion.orbits, expansion.eci, strict=True):
        values = []
        for cell in supercell.cells():
            for sites, functions in zip(found.clusters, found.functions, strict=True):
                value = 1.0
                for (l, m, n, s), a in zip(sites, functions, strict=True):
                    species = occupation[supercell.index(np.array([*(cell + [l, m, n]), s]))]
                    value *= expansion.site_functions[s][a - 1][species]
                values.append(value)
        total += eci * np.mean(values)
    return total


def trigonometric(n):
    """Site functions orthogonal over n equally likely species."""
    k = np.arange(n)
    angle = [2 * np.pi * ((a + 2) // 2) * k / n for a in range(n - 1)]
    return [(-np.cos(x) if a % 2 == 0 else -np.sin(x)) for a, x in enumerate(angle)]


CASES = [
    (fcc("A", "B"), {2: 4.1, 3: 2.9, 4: 2.9}, ()),
    (fcc("A", "B", "C"), {2: 4.1, 3: 2.9}, ()),
    (fcc("A", "B", "C"), {2: 4.1, 3: 2.9}, (trigonometric(3),)),
    (rocksalt(), {2: 3.1, 3: 3.1}, ()),
    (rocksalt(), {2: 3.1, 3: 3.1}, (trigonometric(3), [[-1, 1]])),
    (hcp(), {2: 3.0, 3: 3.0}, ([[1.5, -0.3]],) * 2),
]


@pytest.mark.parametrize("crystal, cutoffs, tables", CASES)
def test_energies_against_loops_and_the_polynomial(crystal, cutoffs, tables):
    expansion = random_expansion(crystal, cutoffs, site_functions=tables)
    supercell = Supercell(SKEW, crystal.n_sites)
    occupations = random_occupation(crystal, supercell, batch=(3,))
    found = np.asarray(energy(expansion, supercell, occupations))
    expected = [brute_energy(expansion, supercell, occupation) for occupation in occupations]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose([term_energy(expansion, supercell, o) for o in occupations], expected, rtol=1e-12)


def test_what_nearly_cancels_is_kept():
    # a point function 2 p - 1 and pairs of it: the indicators' coefficient is 2 (point - 2 pair)
    crystal = fcc("A", "B")
    pair = orbit(crystal, [[0, 0, 0, 0], [1, 0, 0, 0]])
    point = orbit(crystal, [[0, 0, 0, 0]])
    for rest, number in ((1e-9, 8), (0.0, 7)):
        expansion = ClusterExpansion(crystal, (point, pair), (2 * 0.1 + rest, 0.1), ([[-1, 1]],))
        terms = expansion.terms()
        assert len(terms) == number  # the constant, the point where it remains, six pairs
        assert sum(t.coefficient for t in terms if len(t.factors) == 1) == pytest.approx(2 * rest, abs=1e-15)


def test_another_site_basis_says_the_same():
    # the ternary's polynomial, read as an expansion in indicators of single clusters, is one in the other basis too
    crystal = fcc("A", "B", "C")
    first = random_expansion(crystal, {2: 4.1, 3: 2.9}, site_functions=(trigonometric(3),))
    merged: dict = {}
    for coefficient, factors in first.terms():
        found = orbit(crystal, [f[:4] for f in factors], [f[4] for f in factors])
        merged[found] = merged.get(found, 0.0) + coefficient
    second = ClusterExpansion(crystal, tuple(merged), tuple(merged.values()))
    assert len(second.terms()) == len(first.terms())
    for a, b in zip(first.terms(), second.terms(), strict=True):
        assert a.factors == b.factors and a.coefficient == pytest.approx(b.coefficient, abs=1e-13)
    supercell = Supercell(SKEW, 1)
    occupations = random_occupation(crystal, supercell, batch=(4,))
    np.testing.assert_allclose(
        energy(first, supercell, occupations), energy(second, supercell, occupations), rtol=1e-12
    )


@pytest.mark.parametrize("crystal", [lixcoo2().lattice, rocksalt(), hcp()], ids=["lixcoo2", "rocksalt", "hcp"])
def test_energies_are_invariant_under_the_space_group(crystal):
    expansion = random_expansion(crystal, {2: 4.0, 3: 3.2})
    supercell = Supercell(((4, 0, 0), (0, 4, 0), (0, 0, 4)), crystal.n_sites)  # every rotation leaves it as it is
    occupation = random_occupation(crystal, supercell)
    places = supercell.index(crystal.operate(supercell.sites() + [1, 3, 2, 0]))
    moved = np.zeros_like(places, np.int32)
    np.put_along_axis(moved, places, np.broadcast_to(occupation, places.shape), axis=1)
    np.testing.assert_allclose(
        energy(expansion, supercell, moved), float(energy(expansion, supercell, occupation)), rtol=1e-12
    )


def test_energies_do_not_depend_on_the_supercell():
    # also where clusters meet their own images: the same periodic crystal
    expansion = random_expansion(rocksalt(), {2: 4.3, 3: 3.1})
    small = Supercell(((2, 0, 0), (1, 1, 0), (0, 0, 1)), 2)
    large = Supercell(((4, 0, 0), (2, 3, 0), (0, 0, 2)), 2)
    occupation = random_occupation(expansion.lattice, small)
    repeated = occupation[small.index(large.sites())]
    a, b = energy(expansion, small, occupation), energy(expansion, large, repeated)
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_jit_vmap_and_single_precision():
    expansion = random_expansion(rocksalt(), {2: 4.3, 3: 3.1})
    supercell = Supercell(SKEW, 2)
    occupations = jnp.asarray(random_occupation(expansion.lattice, supercell, batch=(2, 3)))

    def f(o):
        return correlations(expansion.lattice, expansion.orbits, supercell, o)

    eager = f(occupations)
    assert eager.shape == (2, 3, len(expansion.orbits))
    np.testing.assert_allclose(jax.jit(f)(occupations), eager, rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.vmap(f))(occupations), eager, rtol=1e-13)
    np.testing.assert_allclose(f(occupations.astype(jnp.int8)), eager, rtol=1e-13)
    static = jax.jit(energy, static_argnums=(0, 1))
    np.testing.assert_allclose(static(expansion, supercell, occupations), eager @ np.array(expansion.eci), rtol=1e-12)
    with jax.enable_x64(False):
        single = f(np.asarray(occupations))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, eager, atol=1e-6)  # means of at most 1, of 11 cells


def test_a_species_that_a_site_lacks_is_nan():
    expansion = random_expansion(rocksalt(), {2: 3.1})
    supercell = Supercell(SKEW, 2)
    occupation = random_occupation(expansion.lattice, supercell)
    for species in (-1, -2, -3, 2, 3, 100):
        occupation[-1] = species  # a site of O and S
        assert np.isnan(float(energy(expansion, supercell, occupation)))


def test_self_interaction_is_found(caplog):
    expansion = lixcoo2()
    assert check_range(expansion, PRODUCTION) == ()
    with pytest.raises(ValueError, match="2 of 35 orbits are outside the supercell's range.*orbits 13, 16 meet"):
        check_range(expansion, CUBE)
    with caplog.at_level(logging.WARNING):
        outside = check_range(expansion, CUBE, allow_aliasing=True)
    assert "outside the supercell's range" in caplog.text
    # (-8, 4, 0) and (-8, 0, 0) are periods of the 4 x 4 x 4 cell, the other clusters' vectors are not
    assert [expansion.orbits[o].clusters[0][0][:3] for o in outside] == [(-8, 4, 0), (-8, 0, 0)]
    with pytest.raises(ValueError, match="2 basis sites, the lattice 1"):
        check_range(expansion, Supercell(SKEW, 2))


def test_other_ecis():
    expansion = random_expansion(fcc("A", "B"), {2: 4.1})
    doubled = expansion.replace_eci(2 * np.array(expansion.eci))
    occupation = random_occupation(expansion.lattice, Supercell(SKEW, 1))
    pair = [float(energy(e, Supercell(SKEW, 1), occupation)) for e in (expansion, doubled)]
    assert pair[1] == pytest.approx(2 * pair[0], rel=1e-14)
    assert hash(expansion) == hash(random_expansion(fcc("A", "B"), {2: 4.1}))


def test_saved_and_loaded(tmp_path):
    expansion = random_expansion(rocksalt(), {2: 3.1, 3: 3.1}, site_functions=(trigonometric(3), [[-1, 1]]))
    save_expansion(expansion, tmp_path / "ce.json", source="nowhere")
    assert load_expansion(tmp_path / "ce.json") == expansion
    assert json.loads((tmp_path / "ce.json").read_text())["source"] == "nowhere"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "casm"}, "is not a cluster expansion"),
        ({"version": 2}, "version 2; this haljax reads version 1"),
        ({"cell": None}, "lacks 'cell'"),
        ({"cell": [[2.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0]]}, "belong to another lattice"),
        ({"positions": [[0, 0, 0], [0.5, 0.5, 0.5]]}, "2 positions but 1 lists"),
        ({"clusters": [{"sites": [[0, 0, 0, 1]], "eci": 1.0}]}, "cluster 0 does not match the lattice"),
        ({"clusters": [{"sites": [[0, 0, 0, 0]]}]}, "lacks 'eci'"),
    ],
)
def test_files_that_do_not_match(tmp_path, change, message):
    save_expansion(random_expansion(fcc("A", "B"), {2: 2.9}), tmp_path / "ce.json")
    content = json.loads((tmp_path / "ce.json").read_text()) | change
    (tmp_path / "ce.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        load_expansion(tmp_path / "ce.json")


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "ce.json").write_text("ECI 1 2 3")
    with pytest.raises(ValueError, match="not JSON"):
        load_expansion(tmp_path / "ce.json")


def test_bad_expansions():
    crystal = rocksalt()
    point = orbit(crystal, [[0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"1 orbits but ECIs of shape \(2,\)"):
        ClusterExpansion(crystal, (point,), (1.0, 2.0))
    with pytest.raises(ValueError, match="orbit 0 is NaN"):
        ClusterExpansion(crystal, (point,), (np.nan,))
    with pytest.raises(ValueError, match="is there twice"):
        ClusterExpansion(crystal, (point, point), (1.0, 2.0))
    with pytest.raises(ValueError, match="not an orbit of the lattice"):
        other = orbit(lattice(np.diag([3, 4, 5.0]), [[0, 0, 0]], [("Mg", "Zn", "Va")]), [[0, 0, 0, 0], [1, 0, 0, 0]])
        ClusterExpansion(crystal, (other,), (1.0,))
    for tables, message in [
        (([[0, 1, 0], [0, 0, 1]],), "1 tables of site functions for 2"),
        (([[0, 1]], [[0, 1]]), r"must be \(2, 3\)"),
        (([[0, 1, 0], [1, 0, 1]], [[0, 1]]), "not linearly independent"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClusterExpansion(crystal, (point,), (1.0,), tables)
    with pytest.raises(ValueError, match="equivalent but have different site functions"):
        ClusterExpansion(hcp(), (orbit(hcp(), ()),), (1.0,), ([[0, 1]], [[1, 0]]))


def test_occupations_that_do_not_fit():
    expansion = random_expansion(fcc("A", "B"), {2: 2.9})
    supercell = Supercell(SKEW, 1)
    for occupation, message in [
        (np.zeros(5, int), "supercell of 13 sites"),
        (np.zeros(13), "integer species numbers"),
        (np.array(1), "supercell of 13 sites"),
    ]:
        with pytest.raises(ValueError, match=message):
            energy(expansion, supercell, occupation)
    with pytest.raises(ValueError, match="2 basis sites, the lattice 1"):
        energy(expansion, Supercell(SKEW, 2), np.zeros(26, int))


def test_the_random_alloy_by_enumeration():
    # the mean over all 2^6 occupations of a cell is sum eci x^order where no cluster meets itself
    expansion = random_expansion(fcc("A", "B"), {2: 2.9})
    supercell = Supercell(((2, 0, 0), (0, 3, 0), (0, 0, 1)), 1)
    inside = [o for o in range(len(expansion.orbits)) if o not in check_range(expansion, supercell, True)]
    occupations = np.array(list(product((0, 1), repeat=6)))
    means = np.mean(correlations(expansion.lattice, expansion.orbits, supercell, occupations), axis=0)
    for o in inside:
        assert means[o] == pytest.approx(0.5 ** expansion.orbits[o].order)
