"""Pictures of a campaign for a free energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haljax.report.drawing import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    INK,
    VERMILLION,
    Section,
    canvas,
    cloud,
    log_ticks,
    note,
    section,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from haljax.free_energy.network import Surface
    from haljax.lattice import OrderParameters

Records = Sequence[Mapping[str, Any]]

GRID = 121  # compositions of the curves


def contents(directory: Path, of: Mapping[str, Records], last: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Template and what to fill it with, from the journal's records by type and the stop that counts, if any."""
    iterations, windows = of.get("iteration", []), list({w["id"]: w for w in of.get("label", [])}.values())
    config = of["start"][0]["config"]
    mu = np.array([w["label"]["mu"] for w in windows if w["role"] == "test"])
    return "free_energy.html.j2", {
        "windows": windows,
        "unconverged": [w for w in windows if not w["converged"]],
        "test": next((r["test"] for r in reversed(iterations) if r["test"]), None),
        "spread": mu.std(axis=0).tolist() if len(mu) else None,
        "sections": _sections(directory, config, iterations, windows),
    }


def _sections(directory: Path, config: Mapping[str, Any], iterations: Records, windows: Records) -> list[Section]:
    pictures = directory / "pictures"
    sections: list[Section] = []

    def add(name: str, title: str, caption: str, make: Any) -> None:
        sections.append(section(pictures, name, title, caption, make))

    if any(r["test"] or r["ahead"] for r in iterations):
        add(
            "learning",
            "Error against windows",
            "Root mean square error of the chemical potentials: of the composition (left), and of the other order "
            "parameters together (right). Ahead: on the windows of an iteration before they were learned from.",
            lambda: _learning(iterations),
        )
    learned = [w for w in windows if w["role"] == "train"]
    if learned:
        add(
            "points",
            "Where it was sampled",
            "Means of the windows: composition and the largest of the other order parameters, by the criterion that "
            "asked for them. Crosses: windows that did not converge to the precision asked for; they count with the "
            "error bars they have.",
            lambda: _points(learned),
        )
    if len(iterations) > 1:
        add(
            "weights",
            "Weights of the criteria",
            "Each iteration shares the points out by these; they follow what a criterion's points taught the surface.",
            lambda: _weights(iterations),
        )
    if iterations:
        path = directory / "iterations" / f"{iterations[-1]['iteration']:04d}" / "surface.npz"
        sections += _surface_sections(directory, config, path, windows) if path.exists() else []
    return sections


def _surface_sections(
    directory: Path, config: Mapping[str, Any], surface_path: Path, windows: Records
) -> list[Section]:
    from haljax.config.free_energy import OrderParameters
    from haljax.free_energy.network import load
    from haljax.free_energy.problem import order_parameters_of
    from haljax.lattice import load_expansion
    from haljax.lattice.fit import VACANCIES

    surface, pictures = load(surface_path), directory / "pictures"
    parity = section(
        pictures,
        "parity",
        "Chemical potentials",
        "Learned against sampled: of the composition (left), of the other order parameters (right). The windows of "
        "the test set were never learned from.",
        lambda: _parity(surface, windows),
    )
    try:
        lattice = load_expansion(directory / "expansion.json").lattice
        known = order_parameters_of(lattice, OrderParameters.model_validate(config["order_parameters"]))
    except (OSError, ValueError) as error:
        return [parity, Section("Free energy", "", None, [f"The phases could not be drawn: {error}"])]
    wells, temperatures = config["order_parameters"]["wells"], config["sampling"]["temperature_K"]
    # A voltage takes something that comes and goes; where atoms exchange, the chemical potential says the same.
    mobile = any(name in VACANCIES for name in lattice.species[known.sites[0]])
    vacancies = (config["order_parameters"]["species"] in VACANCIES) if mobile else None
    slope = "voltage" if mobile else "chemical potential"
    sections = [parity]
    for temperature in temperatures:
        at = f" at {temperature:g} K"
        sections.append(
            section(
                pictures,
                f"phases_{temperature:g}",
                f"Free energy and {slope}{at}",
                "Top: the free energy per cell above the line between its ends, with the most stable order at each "
                "composition, without order, and its convex hull; the band is the spread of the ensemble. Bottom: the "
                f"{slope} that follows, up to a constant, flat where two phases coexist.",
                partial(_phases, surface, known, temperature, wells, vacancies),
            )
        )
    if len(temperatures) > 2:
        sections.append(
            section(
                pictures,
                "phase_diagram",
                "Phase diagram",
                "Shaded: two phases coexist, the darker the more members of the ensemble say so. Points: the ends of "
                "the tie lines, with error bars.",
                lambda: _phase_diagram(surface, known, temperatures, wells),
            )
        )
    return sections


def _learning(iterations: Records) -> Figure:
    figure = canvas(9, 3.2)
    for ax, part, label in zip(
        figure.subplots(1, 2), (slice(0, 1), slice(1, None)), ("RMSE of mu_0 (meV)", "RMSE of the other mu_i (meV)"),
        strict=True,
    ):  # fmt: skip
        tidy(ax, "windows learned from", label)
        drawn = []
        for name, colour, shape in (("test", VERMILLION, "s-"), ("ahead", BLUE, "o--")):
            rows = [(r["labels"], r[name]) for r in iterations if r[name] and len(r[name][part])]
            if not rows:
                continue
            values = [1e3 * np.sqrt(np.mean(np.square(v[part]))) for _, v in rows]
            ax.plot([n for n, _ in rows], values, shape, color=colour, markersize=4, linewidth=1.2, label=name)
            drawn += values
        if drawn:
            ax.set_yscale("log")
            ax.set_ylim(min(drawn) / 1.3, max(drawn) * 1.3)
            log_ticks(ax.yaxis)
            ax.legend(fontsize=8, frameon=False)
    return figure


def _points(windows: Records) -> Figure:
    figure = canvas(9, 4)
    ax = tidy(figure.subplots(), "composition eta_0", "largest other order parameter")
    names = list(dict.fromkeys(w["criterion"] for w in windows))
    for i, name in enumerate(names):
        own = [w for w in windows if w["criterion"] == name]
        eta = np.array([w["label"]["eta"] for w in own])
        good = np.array([w["converged"] for w in own])
        order = np.abs(eta[:, 1:]).max(axis=1, initial=0)
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(eta[good, 0], order[good], "o", color=colour, markersize=3.5, alpha=0.7, mew=0, label=name)
        ax.plot(eta[~good, 0], order[~good], "x", color=colour, markersize=4)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _weights(iterations: Records) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = canvas(9, 2.8)
    ax = tidy(figure.subplots(), "iteration", "weight")
    for i, name in enumerate(iterations[-1]["weights"]):
        values = [r["weights"][name] for r in iterations]
        ax.plot([r["iteration"] for r in iterations], values, "o-", color=COLOURS[i % len(COLOURS)], ms=3.5, label=name)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _parity(surface: Surface, windows: Records) -> Figure:
    figure = canvas(9, 4)
    left, right = figure.subplots(1, 2)
    tidy(left, "sampled mu_0 (eV)", "learned mu_0 (eV)")
    tidy(right, "sampled mu_i (meV)", "learned mu_i (meV)")
    for role, colour, shape in (("train", BLUE, "o"), ("test", VERMILLION, "s")):
        own = [w["label"] for w in windows if w["role"] == role]
        if not own:
            continue
        eta, mu, kelvin = (np.array([w[name] for w in own]) for name in ("eta", "mu", "temperature"))
        learned = np.asarray(surface.chemical_potential(eta, kelvin))
        for ax, part, unit in ((left, slice(0, 1), 1.0), (right, slice(1, None), 1e3)):
            x, y = unit * mu[:, part].ravel(), unit * learned[:, part].ravel()
            if not len(x):
                continue
            ax.axline((x[0], x[0]), slope=1, color=FAINT, linewidth=0.8, zorder=1)
            cloud(ax, x, y, colour, shape)
            rmse = 1e3 * np.sqrt(np.mean((y - x) ** 2)) / unit
            place = 0.97 if role == "train" else 0.9
            note(ax, 0.03, place, f"{role}: RMSE {rmse:.3g} meV", colour, fontweight="bold")
    return figure


def _phases(surface: Surface, known: OrderParameters, temperature: float, wells: Any, vacancies: bool | None) -> Figure:
    import jax

    from haljax.free_energy.phases import coexistence, members_of, relaxed, seeds, voltage

    domain = known.polytope
    x = np.linspace(0.005, 0.995, GRID)
    directions = seeds(jax.random.key(0), domain, known.group, wells or None)
    path = relaxed(surface, domain, temperature, x, directions, group=known.group)
    pairs = coexistence(surface, domain, temperature, path)
    flat = np.zeros((len(x), known.d))
    flat[:, 0] = x
    line = np.array([0.0, 1.0]), np.asarray(surface.free_energy(flat[[0, -1]], temperature))
    base = line[1][0] + (line[1][1] - line[1][0]) * (x - x[0]) / (x[-1] - x[0])

    figure = canvas(9, 6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    tidy(top, "", "g above the ends (meV)")
    shown = 1e3 * (path.free_energy - base)
    top.plot(x, 1e3 * (np.asarray(surface.free_energy(flat, temperature)) - base), "--", color=FAINT, label="no order")
    spread = []
    for part in members_of(surface):
        own = np.asarray(part.free_energy(path.eta, temperature))
        ends = np.asarray(part.free_energy(flat[[0, -1]], temperature))
        spread.append(1e3 * (own - ends[0] - (ends[1] - ends[0]) * (x - x[0]) / (x[-1] - x[0])))
    if spread:
        error = np.std(spread, axis=0)
        top.fill_between(x, shown - error, shown + error, color=BLUE, alpha=0.25, linewidth=0)
    top.plot(x, shown, color=BLUE, label="most stable")
    for ends, eta in zip(pairs.composition, pairs.eta, strict=True):
        value = np.asarray(surface.free_energy(eta, temperature))
        level = line[1][0] + (line[1][1] - line[1][0]) * (ends - x[0]) / (x[-1] - x[0])
        top.plot(ends, 1e3 * (value - level), "o-", color=VERMILLION, markersize=4, linewidth=1.2)
    if len(pairs.composition):
        top.plot([], [], "o-", color=VERMILLION, markersize=4, label="coexisting phases")
    top.legend(fontsize=8, frameon=False)

    tidy(bottom, "composition eta_0", "mu_0 (eV per site)" if vacancies is None else "voltage (V, up to a constant)")
    of_vacancies = vacancies is not False  # then the voltage is mu_0 by its numbers
    found = voltage(
        surface, domain, temperature, x, directions, group=known.group, sites=len(known.sites), vacancies=of_vacancies
    )
    error = np.nan_to_num(found.error)
    bottom.fill_between(x, found.voltage - error, found.voltage + error, color=GREEN, alpha=0.25, linewidth=0)
    bottom.plot(x, found.voltage, color=GREEN)
    bottom.set_xlim(0, 1)
    figure.align_ylabels([top, bottom])
    return figure


def _phase_diagram(surface: Surface, known: OrderParameters, temperatures: Sequence[float], wells: Any) -> Figure:
    import jax

    from haljax.free_energy.phases import phase_diagram, seeds

    x = np.linspace(0.005, 0.995, GRID)
    directions = seeds(jax.random.key(0), known.polytope, known.group, wells or None)
    T = np.linspace(min(temperatures), max(temperatures), 9)
    found = phase_diagram(surface, known.polytope, T, x, directions, group=known.group)
    figure = canvas(9, 4)
    ax = tidy(figure.subplots(), "composition eta_0", "temperature (K)")
    ax.pcolormesh(x, T, found.two_phase, cmap="Blues", vmin=0, vmax=1.5, shading="nearest")
    for end in range(2):
        ax.errorbar(
            found.composition[:, end], found.temperature, xerr=np.nan_to_num(found.composition_error[:, end]),
            fmt="o", color=INK, markersize=3, linewidth=1,
        )  # fmt: skip
    ax.set_xlim(0, 1)
    return figure
