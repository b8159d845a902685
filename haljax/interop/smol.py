"""Cluster expansions of smol (doi:10.21105/joss.04504), read from its ``.mson`` files without smol."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from haljax.lattice.clusters import Orbit, decompose, orbit
from haljax.lattice.crystal import Lattice, lattice
from haljax.lattice.expansion import ClusterExpansion

VACANCY = "Va"


def read_smol(path: str | os.PathLike[str]) -> ClusterExpansion:
    """Read a cluster expansion that ``smol.io.save_work`` or a JSON dump of ``as_dict()`` wrote.

    The lattice is smol's primitive structure with all its sites; species keep smol's order and names ("Li+"), with a
    vacancy, "Va", last. Energies are per primitive cell, as smol's normalised ones.

    Raises
    ------
    ValueError : not such a file; an expansion with external terms (Ewald) or of a Potts subspace, which are no
        cluster expansions in site functions; as `from_smol`.
    """
    try:
        content = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    entries = [content, *content.values()] if isinstance(content, dict) else []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("@class") == "ClusterExpansion":
            return from_smol(entry)
    raise ValueError(f"{path} holds no cluster expansion of smol: save one with smol.io.save_work(path, expansion)")


def from_smol(entry: Mapping[str, Any]) -> ClusterExpansion:
    """The expansion of the dict that smol's ``ClusterExpansion.as_dict()`` makes, see `read_smol`.

    Raises
    ------
    ValueError : as `read_smol`; a key missing; the number of coefficients or the symmetry does not fit the orbits; a
        species order that cannot be told (give the sites their default labels, or install pymatgen).
    """
    try:
        space = entry["cluster_subspace"]
        if space.get("@class", "ClusterSubspace") != "ClusterSubspace":
            raise ValueError(
                f"a {space['@class']} of smol is no expansion in site functions: refit in a ClusterSubspace"
            )
        if space.get("external_terms"):
            names = [term.get("@class", "?") for term in space["external_terms"]]
            raise ValueError(
                f"the expansion has the external terms {', '.join(names)}, which are no cluster functions: refit it "
                "without them"
            )
        return _converted(space, np.asarray(entry["coefs"], float))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"this cluster expansion of smol has another layout ({type(error).__name__}: {error}), of an old version "
            "perhaps: load it with smol and save it again"
        ) from error


def _converted(space: Mapping[str, Any], coefficients: np.ndarray) -> ClusterExpansion:
    sites = space["structure"]["sites"]
    crystal = lattice(
        space["structure"]["lattice"]["matrix"], [site["abc"] for site in sites], [_species(site) for site in sites]
    )
    tables: dict[int, list[list[float]]] = {}
    eci: dict[Orbit, float] = {orbit(crystal, ()): float(coefficients[0])}
    at = 1
    for group in (g for order in sorted(space["orbits"], key=int) for g in space["orbits"][order]):
        base = _sites(crystal, np.array(group["sites"]))
        for s, basis in zip(base[:, 3], group["site_bases"], strict=True):
            tables[int(s)] = np.array(basis["func_array"])[1:].tolist()
        images = _images(crystal, np.array(group["sites"]), group["structure_symops"])  # (G, k, 4)
        for combination in group["_bit_combos"]:
            if at >= len(coefficients):
                raise ValueError(f"{len(coefficients)} coefficients, but the orbits have more functions")
            bits = np.array(combination) + 1  # (b, k)
            clusters = np.repeat(images, len(bits), axis=0)
            for found, share in _means(crystal, clusters, np.tile(bits, (len(images), 1))):
                eci[found] = eci.get(found, 0.0) + share * float(coefficients[at])
            at += 1
    if at != len(coefficients):
        raise ValueError(f"{len(coefficients)} coefficients for {at} functions")
    for image in crystal.operations.permutation:  # sites that no cluster stands on
        for s, t in enumerate(image):
            if t in tables:
                tables.setdefault(s, tables[t])
    every = [tables.get(s, np.eye(n)[1:].tolist()) for s, n in enumerate(crystal.n_species)]
    return ClusterExpansion(crystal, tuple(eci), tuple(eci.values()), tuple(every))


def _means(crystal: Lattice, clusters: np.ndarray, functions: np.ndarray) -> list[tuple[Orbit, float]]:
    """`decompose` of the different ones among images, each of which may be met many times."""
    order = np.lexsort(tuple(clusters[..., i] for i in (3, 2, 1, 0)), axis=-1)
    clusters = np.take_along_axis(clusters, order[..., None], axis=1)
    functions = np.take_along_axis(functions, order, axis=1)
    clusters[..., :3] -= clusters[:, -1:, :3].copy()
    rows = np.unique(np.concatenate([clusters, functions[..., None]], axis=2), axis=0)
    return decompose(crystal, rows[..., :4], rows[..., 4])


def _images(crystal: Lattice, positions: np.ndarray, operations: list[Mapping[str, Any]]) -> np.ndarray:
    """Sites (G, k, 4) of a cluster's images under affine operations on fractional coordinates."""
    matrices = np.array([operation["matrix"] for operation in operations])
    images = np.einsum("gij,kj->gki", matrices[:, :3, :3], positions) + matrices[:, None, :3, 3]
    return _sites(crystal, images)


def _sites(crystal: Lattice, positions: np.ndarray) -> np.ndarray:
    """Sites (..., 4) at fractional positions (..., 3)."""
    difference = positions[..., None, :] - np.array(crystal.positions)  # (..., S, 3)
    cells = np.round(difference)
    distance = np.linalg.norm((difference - cells) @ np.array(crystal.cell), axis=-1)
    s = np.argmin(distance, axis=-1)
    if np.any(np.min(distance, axis=-1) > 0.1):
        raise ValueError("a cluster stands where the structure has no site: the file is inconsistent")
    cells = np.take_along_axis(cells, s[..., None, None], axis=-2)[..., 0, :]
    return np.concatenate([cells, s[..., None]], axis=-1).astype(int)


def _species(site: Mapping[str, Any]) -> list[str]:
    """Names of a site's species in smol's order, which is pymatgen's, by electronegativity; a vacancy last."""
    vacancies = [kind for kind in site["species"] if kind.get("@class") == "Vacancy"]
    atoms = [kind for kind in site["species"] if kind.get("@class") != "Vacancy"]
    occupied = sum(kind["occu"] for kind in atoms)
    names = [_name(kind) for kind in atoms]
    if len(names) > 1:
        labels = [part.split(":")[0].strip() for part in str(site.get("label", "")).split(",")]
        labels = [name for name in labels if not name.startswith("vac")]
        names = labels if sorted(labels) == sorted(names) else _sorted_by_pymatgen(names)
    return names + [VACANCY] * bool(vacancies or occupied < 0.99)


def _name(kind: Mapping[str, Any]) -> str:
    """pymatgen's name of a species: Li+, Mn3+, O2-."""
    charge = kind.get("oxidation_state")
    if charge is None:
        return kind["element"]
    size = "" if abs(charge) == 1 else f"{abs(charge):g}"
    return f"{kind['element']}{size}{'-' if charge < 0 else '+'}"


def _sorted_by_pymatgen(names: list[str]) -> list[str]:
    try:
        from pymatgen.core.periodic_table import get_el_sp
    except ImportError as error:
        raise ValueError(
            f"the order of the species {names} cannot be told from the file, whose sites have labels of their own: "
            "pip install pymatgen, and read it again"
        ) from error
    return [str(species) for species in sorted(map(get_el_sp, names))]
