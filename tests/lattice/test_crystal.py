from __future__ import annotations

import pickle

import numpy as np
import pytest

from haljax.lattice import lattice

from .crystals import fcc, hcp, lixcoo2, rocksalt


@pytest.mark.parametrize(
    "crystal, order",
    [(lixcoo2().lattice, 12), (fcc("A", "B"), 48), (rocksalt(), 48), (hcp(), 24)],
)
def test_the_space_group(crystal, order):
    rotations, permutation, shift = crystal.operations
    assert len(rotations) == len(permutation) == len(shift) == order
    assert np.all(np.sort(permutation, axis=1) == np.arange(crystal.n_sites))
    rng = np.random.default_rng(0)
    sites = np.concatenate([rng.integers(-4, 5, (20, 3)), rng.integers(crystal.n_sites, size=(20, 1))], axis=1)
    images = crystal.operate(sites)
    assert images.shape == (order, 20, 4)

    def distances(points):
        p = crystal.cartesian(points)
        return np.linalg.norm(p[..., :, None, :] - p[..., None, :, :], axis=-1)

    # symmetry operations are isometries of the sites; spglib and the coordinates agree to 1e-5 Å
    assert np.abs(distances(images) - distances(sites)[None]).max() < 1e-4
    kinds = np.array([hash(names) for names in crystal.species])
    assert np.all(kinds[images[..., 3]] == kinds[sites[:, 3]][None])
    assert np.all(images == sites[None], axis=(1, 2)).sum() == 1  # one identity


def test_species_make_sites_different():
    rock = rocksalt()
    assert np.all(rock.operations.permutation == np.array([[0, 1]]))
    assert rock.active == (0, 1) and rock.n_species == (3, 2)
    same = lattice(rock.cell, rock.positions, [("A", "B")] * 2)  # simple cubic in a cell of two: twice the operations
    assert len(same.operations.rotations) == 96
    with_spectator = lattice(rock.cell, rock.positions, [("A", "B"), ("O",)])
    assert with_spectator.active == (0,)


def test_a_left_handed_cell_has_the_same_group():
    crystal = lixcoo2().lattice
    mirrored = lattice(np.array(crystal.cell)[::-1], [[0, 0, 0]], crystal.species)
    assert len(mirrored.operations.rotations) == 12


def test_static_and_picklable():
    crystal = hcp()
    assert hash(crystal) == hash(hcp()) and crystal == hcp()
    assert pickle.loads(pickle.dumps(crystal)) == crystal


@pytest.mark.parametrize(
    "cell, positions, species, message",
    [
        (np.eye(2), [[0, 0, 0]], [("A", "B")], "three finite rows"),
        (np.diag([1, 1, np.nan]), [[0, 0, 0]], [("A", "B")], "three finite rows"),
        ([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [[0, 0, 0]], [("A", "B")], "no volume"),
        (np.eye(3), [0, 0, 0], [("A", "B")], r"positions must be \(S, 3\)"),
        (np.eye(3), [[0, 0, 0]], [("A", "B")] * 2, "1 positions but 2 lists"),
        (np.eye(3), [[0, 0, 0]], ["AB"], "a list of names for each site"),
        (np.eye(3), [[0, 0, 0]], [("A", "A")], "each allowed species once"),
        (np.eye(3), [[0, 0, 0]], [("A",)], "no site has a choice"),
        (3 * np.eye(3), [[0, 0, 0], [1, 0, 1e-6]], [("A", "B")] * 2, "sites 0 and 1 coincide"),
    ],
)
def test_bad_lattices(cell, positions, species, message):
    with pytest.raises(ValueError, match=message):
        lattice(cell, positions, species)


def test_no_space_group(monkeypatch):
    import spglib

    def fails(*args, **kwargs):
        raise RuntimeError("no symmetry")

    for failing in (fails, lambda *args, **kwargs: None):
        monkeypatch.setattr(spglib, "get_symmetry", failing)
        with pytest.raises(ValueError, match="spglib finds no space group"):
            lattice(np.diag([2.0, 3.1, 4.7]), [[0, 0, 0]], [("A", "B")]).operations  # noqa: B018
