"""Pictures of a campaign of hyperactive learning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from haljax.md import Status
from haljax.report.drawing import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Section,
    canvas,
    cloud,
    embedded,
    log_ticks,
    note,
    number,
    save,
    section,
    tidy,
)

if TYPE_CHECKING:
    from ase import Atoms
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from haljax.evaluation import Calibration, Prediction
    from haljax.model import Model

ROLES = {
    "train": ("train", BLUE, "o"),
    "held_out": ("held out", GREEN, "^"),
    "test": ("test", VERMILLION, "s"),
}

HOLE = 0.05  # eV; a shallower dip of a dimer curve cannot trap atoms that are warm


# ----------------------------------------------------------------------------------------------- trajectories


def trajectory_picture(path_npz: str | Path, out_png: str | Path) -> None:
    """Draw f, T, P and energy of every replica against time, and where and why each stopped.

    In the manner of Fig. 4 of van der Oord et al. (doi:10.1038/s41524-023-01104-6).

    Parameters
    ----------
    path_npz : the fields of `haljax.hal.trajectory.Observation`, (checks, replicas), padded with -1 and NaN,
        and ``tolerance`` (of the relative force error) and ``timestep_fs``, (replicas,).
    out_png : written atomically; its directory is made.
    """
    with np.load(path_npz) as data:
        step, status, tolerance = data["step"], data["status"], data["tolerance"]
        time = np.where(step >= 0, step, np.nan) * data["timestep_fs"][None, :]
        seen = {name: data[name] for name in ("criterion", "temperature", "pressure", "energy")}
    n = step.shape[1]
    seen["energy"] = seen["energy"] - seen["energy"][:1]  # replicas may differ in composition
    ends = [int(np.sum(step[:, i] >= 0)) - 1 for i in range(n)]

    panels = {
        "criterion": "relative force\nerror f",
        "temperature": "temperature\n(K)",
        "pressure": "pressure\n(GPa)",
        "energy": "energy since\nfirst look (eV/atom)",
    }
    panels = {name: label for name, label in panels.items() if np.isfinite(seen[name]).any()}
    row = min(0.19, 5.0 / n)
    strip = row * n + 0.1
    figure = canvas(9, strip + 1.35 * len(panels) + 0.6)
    heights = [strip, *[1.35] * len(panels)]
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]

    def style(i: int) -> dict[str, Any]:
        return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":")[i // len(COLOURS) % 3]}

    def mark(ax: Axes, i: int, x: float, y: float) -> None:
        shape = {Status.UNCERTAIN: "o", Status.FINISHED: "o"}.get(status[ends[i], i], "X")
        colour = style(i)["color"]
        face = "white" if status[ends[i], i] in (Status.FINISHED, Status.RUNNING) else colour
        ax.plot(x, y, shape, color=colour, markerfacecolor=face, markersize=6, clip_on=False, zorder=5)

    bars = tidy(axes[0], ylabel="replica")
    bars.grid(False, axis="y")
    bars.set_ylim(n - 0.4, -0.6)
    size = min(8.0, 60 * row)
    bars.set_yticks(range(n), [str(i) for i in range(n)])
    bars.tick_params(axis="y", length=0, labelsize=size)
    for i, end in enumerate(ends):
        why = "was never looked at"
        if end >= 0:
            bars.plot([0, time[end, i]], [i, i], linewidth=2, **style(i))
            mark(bars, i, time[end, i], i)
            why = f"{_words(Status(int(status[end, i])).name)} at {time[end, i]:g} fs"
            why += f", f = {seen['criterion'][end, i]:.3g}"
        note(bars, 1.015, i, why, transform=bars.get_yaxis_transform(), va="center", fontsize=size)

    for ax, (name, label) in zip(axes[1:], panels.items(), strict=True):
        tidy(ax, ylabel=label)
        values = seen[name]
        finite = values[np.isfinite(values) & (time >= 0)]
        if name == "criterion":
            ax.set_yscale("log")
            finite = np.concatenate([finite[finite > 0], tolerance])
            low, high = finite.min() / 1.3, finite.max() * 1.3
            for value in np.unique(tolerance):
                ax.axhline(value, color=INK, linewidth=1, linestyle=(0, (5, 3)))
                note(ax, 1.015, value, f"tolerance {value:.3g}", transform=ax.get_yaxis_transform(), va="center")
        else:  # what a replica does in its last instants must not flatten all the others
            low, high = np.percentile(finite, [1, 99])
            margin = 0.25 * (high - low) or 1.0
            low = max(finite.min(), low - margin) - margin / 3
            high = min(finite.max(), high + margin) + margin / 3
        ax.set_ylim(low, high)
        if name == "criterion":
            log_ticks(ax.yaxis)
        for i, end in enumerate(ends):
            ax.plot(time[:, i], values[:, i], linewidth=0.9, alpha=0.85, **style(i))
            if end >= 0 and np.isfinite(values[end, i]):
                mark(ax, i, time[end, i], np.clip(values[end, i], low, high))
    axes[-1].set_xlabel("time (fs)", fontsize=9, color=INK)
    axes[-1].set_xlim(0, np.nanmax(time, initial=1.0) * 1.01)
    figure.align_ylabels(axes)
    save(figure, Path(out_png))


def _words(status: str) -> str:
    return status.lower().replace("_", " ")


# -------------------------------------------------------------------------------------------------- the model


def _parity_picture(sets: Mapping[str, Sequence[tuple[Prediction, float]]]) -> Figure:
    """Predicted against reference, and their difference.

    Parameters
    ----------
    sets : by role, the predictions, each with the mean E0 of its atoms, eV.
    """
    energies, forces = {}, {}
    for role, members in sets.items():
        energies[role] = _known([(p.energy_label - e0, p.energy - e0) for p, e0 in members])
        forces[role] = _known([(p.forces_label, p.forces) for p, _ in members])
    columns = [("energy", "eV/atom", "meV/atom", 1e3, energies)]
    columns += [("force", "eV/Å", "eV/Å", 1.0, {role: pairs}) for role, pairs in forces.items()]
    columns = [column for column in columns if any(pairs.size for pairs in column[4].values())]
    largest = max((np.abs(y - x).max() for x, y in forces.values() if len(x)), default=0.0)

    figure = canvas(min(9.0, 3.2 * len(columns)), 4.4)
    axes = figure.subplots(2, len(columns), sharex="col", squeeze=False, height_ratios=[2.2, 1])
    leftmost = {column[0]: k for k, column in reversed(list(enumerate(columns)))}
    for k, (what, unit, small, factor, shown) in enumerate(columns):
        top, bottom = axes[:, k]
        everything = energies if what == "energy" else forces
        values = np.concatenate([pairs.ravel() for pairs in everything.values()])
        pad = 0.05 * np.ptp(values) or 0.1
        limits = (values.min() - pad, values.max() + pad)
        first = leftmost[what] == k
        tidy(top, ylabel=f"predicted {what} ({unit})" if first else "").set(xlim=limits, ylim=limits)
        tidy(bottom, f"reference {what} ({unit})", f"error ({small})" if first else "")
        if what == "force":
            bottom.set_ylim(-1.1 * largest - 1e-9, 1.1 * largest + 1e-9)
            for ax in (top, bottom):
                ax.tick_params(axis="y", labelleft=first)
        top.plot(limits, limits, color=FAINT, linewidth=0.8, zorder=1)
        bottom.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        for line, (role, (x, y)) in enumerate(reversed(shown.items())):
            name, colour, shape = ROLES[role]
            cloud(top, x, y, colour, shape)
            cloud(bottom, x, (y - x) * factor, colour, shape)
            rmse = factor * np.sqrt(np.mean((y - x) ** 2)) if len(x) else np.nan
            text = f"{name}: RMSE {rmse:.3g} {small}"
            note(top, 0.0, 1.02 + 0.07 * line, text, colour, va="bottom", fontweight="bold")
    figure.align_ylabels(axes)
    return figure


def _known(pairs: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """(2, n) references and predictions, without those that have no label."""
    flat = np.concatenate([np.stack([np.ravel(x), np.ravel(y)]) for x, y in pairs], axis=1)
    return flat[:, np.isfinite(flat).all(axis=0)]


def _coefficient_picture(model: Model) -> Figure:
    """|c| by correlation order and by pair or centre, as Fig. 5 of van der Oord et al."""
    elements, labels = model.basis.elements, model.basis.labels
    columns: dict[tuple[int, str], list[int]] = {}
    for i, label in enumerate(labels):
        name = label.centre or "–".join(element for element, *_ in label.factors)
        columns.setdefault((label.order, name), []).append(i)
    columns = dict(sorted(columns.items(), key=lambda item: item[0][0]))  # by order; elements as in the basis
    size = np.abs(model.coefficients)
    kept = model.active & (size > 0)
    floor = 10 ** np.floor(np.log10(size[kept].min(initial=1.0)))

    figure = canvas(max(6.0, min(14.0, 1.1 + 0.85 * len(columns))), 3.8)
    ax = tidy(figure.subplots(), ylabel="magnitude of coefficient (eV)")
    ax.set_yscale("log")
    ax.grid(False, axis="x")
    for place, ((order, name), members) in enumerate(columns.items()):
        colour = "#555555" if order == 1 else COLOURS[elements.index(name) % len(COLOURS)]
        index = np.array(members)
        x = place + np.linspace(-0.36, 0.36, len(index) + 2)[1:-1]
        on = kept[index]
        ax.plot(x[on], size[index][on], ".", color=colour, markersize=4, alpha=0.7, markeredgewidth=0)
        ax.plot(x[~on], np.full((~on).sum(), floor / 2), "x", color=FAINT, markersize=4, markeredgewidth=0.7)
        if on.any():
            middle = np.median(size[index][on])
            ax.plot([place - 0.4, place + 0.4], [middle, middle], color=INK, linewidth=1.2)
        note(
            ax, place, 1.01, f"{len(index)}" + (f"\n{(~on).sum()} pruned" if not on.all() else ""), FAINT,
            transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7,
        )  # fmt: skip
    for order in sorted({order for order, _ in columns}):
        places = [k for k, (o, _) in enumerate(columns) if o == order]
        title = "pair terms" if order == 1 else f"order {order}"
        note(
            ax, float(np.mean(places)), 1.1, title, transform=ax.get_xaxis_transform(), ha="center", va="bottom",
            fontweight="bold",
        )  # fmt: skip
        if order > 1:
            ax.axvline(places[0] - 0.5, color=FAINT, linewidth=0.8)
    ax.set_xticks(range(len(columns)), [name for _, name in columns])
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.tick_params(axis="x", length=0)
    log_ticks(ax.yaxis)
    return figure


class Hole(NamedTuple):
    """A fall of the energy, eV deep, from the rim (Å) inwards to the bottom (Å)."""

    depth: float
    rim: float
    bottom: float


class Dimer(NamedTuple):
    """The energy of two atoms against their distance.

    Attributes
    ----------
    name : "Al–Cu".
    r : (n,) Å.
    core, fitted : (n,) eV; their sum is the energy less E0.
    radii : Å; the core alone acts below the first, the fit alone above the second.
    seen : shortest distance in the data, Å, NaN where the pair is not in it.
    covalent : sum of the covalent radii, Å, the unit of ``dynamics.min_distance``.
    """

    name: str
    r: np.ndarray
    core: np.ndarray
    fitted: np.ndarray
    radii: tuple[float, float]
    seen: float
    covalent: float

    @property
    def total(self) -> np.ndarray:
        return self.core + self.fitted

    def hole(self) -> Hole | None:
        """The deepest fall of the energy as the atoms come closer than in any data.

        None where the curve only rises there, give or take `HOLE`. A pair that is not in the data is judged
        inside its core: beyond it a bond may well be.
        """
        unknown = self.r <= (self.radii[1] if np.isnan(self.seen) else self.seen)
        r, energy = self.r[unknown][::-1], self.total[unknown][::-1]  # from the outside inwards
        if not len(r):
            return None
        fall = np.maximum.accumulate(energy) - energy
        bottom = int(np.argmax(fall))
        rim = int(np.argmax(energy[: bottom + 1]))
        return Hole(float(fall[bottom]), float(r[rim]), float(r[bottom])) if fall[bottom] > HOLE else None


def dimers(model: Model, train: Sequence[Atoms]) -> list[Dimer]:
    """Dimer curves of every element pair, from 0.3 of the sum of the covalent radii to the cutoff."""
    import jax.numpy as jnp

    from haljax.ace.basis import CORE_OUTER
    from haljax.close import dimer

    basis = model.basis
    seen = _shortest(basis.numbers, basis.cutoff, train)
    radii = jnp.asarray(model.radii)

    curves = []
    for a, b in basis.pairs:
        inner, outer = (float(radius[a, b]) for radius in model.radii)
        covalent = float(basis.core_radii[1][a, b] / CORE_OUTER)
        r = np.linspace(0.3 * covalent, basis.cutoff, 500)
        core, functions = dimer(basis, radii, jnp.array([a, b]), jnp.asarray(r))
        fitted = np.asarray(functions) @ model.coefficients
        name = f"{basis.elements[a]}–{basis.elements[b]}"
        curves.append(Dimer(name, r, np.asarray(core), fitted, (inner, outer), seen[a, b], covalent))
    return curves


def _shortest(numbers: Sequence[int], cutoff: float, structures: Sequence[Atoms]) -> np.ndarray:
    """(Z, Z) shortest distances in Å, NaN for pairs that never come within the cutoff."""
    from ase.neighborlist import neighbor_list

    shortest = np.full((len(numbers), len(numbers)), np.inf)
    position = {number: k for k, number in enumerate(numbers)}
    for atoms in structures:
        i, j, distance = neighbor_list("ijd", atoms, cutoff)
        z = np.array([position[number] for number in atoms.numbers])
        np.minimum.at(shortest, (z[i], z[j]), distance)
    return np.where(np.isfinite(shortest), shortest, np.nan)


def _dimer_picture(curves: Sequence[Dimer]) -> Figure:
    """Core, fitted pair part and total, as Fig. 6 of van der Oord et al."""
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    across = min(3, len(curves))
    down = -(-len(curves) // across)
    figure = canvas(max(4.5, 3.2 * across), 3.2 * down)
    axes = figure.subplots(down, across, sharey=True, squeeze=False)
    for ax in axes.flat[len(curves) :]:
        ax.remove()
    lowest = min(curve.total.min() for curve in curves)
    highest = max(curve.total.max() for curve in curves)
    decades = [10.0**k for k in range(-1, 9)]
    for ax, curve in zip(axes.flat, curves, strict=False):
        left = ax.get_subplotspec().is_first_col()
        tidy(ax, "distance (Å)", "energy less E0 (eV)" if left else "")
        ax.set_yscale("asinh", linear_width=0.1)
        ax.yaxis.set_major_locator(FixedLocator([*(-y for y in reversed(decades)), 0.0, *decades]))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_ylim(3 * min(lowest, -0.1), 5 * max(highest, 1.0))
        ax.set_xlim(curve.r[0], curve.r[-1])
        ax.axvspan(*curve.radii, color="#F0E9DC", zorder=0, linewidth=0)
        ax.axhline(0, color=FAINT, linewidth=0.8)
        if not np.isnan(curve.seen):
            ax.axvline(curve.seen, color=GREEN, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.plot(curve.r, curve.total, color=INK, linewidth=3)
        ax.plot(curve.r, curve.core, color=ORANGE, linewidth=1.6, linestyle=(0, (3, 1.5)))
        ax.plot(curve.r, curve.fitted, color=SKY, linewidth=1.6, linestyle=(0, (3, 1.5)))
        seen = "not in the data" if np.isnan(curve.seen) else f"shortest in data {curve.seen:.2f} Å"
        lines = [(seen, GREEN), ("total", INK), ("core", ORANGE), ("fitted pair part", SKY)]
        for k, (text, colour) in enumerate(lines if curve is curves[0] else lines[:1]):
            note(ax, 0.98, 0.98 - 0.07 * k, text, colour, ha="right", fontweight="bold")
        note(
            ax, float(np.mean(curve.radii)), 0.98, "hand-over", "#8A7A58", transform=ax.get_xaxis_transform(),
            ha="center", fontsize=7,
        )  # fmt: skip
        if hole := curve.hole():
            y = np.interp(hole.bottom, curve.r, curve.total)
            ax.plot(hole.bottom, y, "v", color=VERMILLION, markersize=8, zorder=5)
            text = f"   hole, {hole.depth:.2g} eV"
            note(ax, hole.bottom, y, text, VERMILLION, transform=ax.transData, fontweight="bold")
        ax.set_title(curve.name, fontsize=10, color=INK, loc="left", fontweight="bold")
    return figure


# ----------------------------------------------------------------------------------------------- the campaign


def _learning_picture(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Errors on the test set, by group, and on structures left out of the fit, against the number of labels."""
    labels = [record["labels"] for record in records]
    groups = list(dict.fromkeys(group for record in records for group in record["errors"]))
    groups.sort(key="total".__eq__)  # last, so that it lies on top
    figure = canvas(9, 3.3)
    for ax, what, unit in zip(figure.subplots(1, 2), ("energy", "force"), ("meV/atom", "eV/Å"), strict=True):
        tidy(ax, "labels", f"{what} RMSE ({unit})")
        ax.set_yscale("log")
        factor = 1e3 if what == "energy" else 1.0
        left_out = [factor * number(r.get("leave_one_out", {}).get(what)) for r in records]
        lines = {"left out": (np.array(left_out), FAINT, "s--", 1.2)}
        for k, group in enumerate(groups):
            values = np.array([number(r["errors"].get(group, {}).get(f"{what}_rmse")) for r in records])
            colour, width = (INK, 2.0) if group == "total" else (COLOURS[k % len(COLOURS)], 1.2)
            lines[group] = values, colour, "o-", width
        ends = {}
        for name, (values, colour, style, width) in lines.items():
            if (values > 0).any():
                ax.plot(labels, values, style, color=colour, markersize=3.5, linewidth=width)
                ends[name] = (float(values[values > 0][-1]), colour)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if not ends:
            continue
        low, high = ax.get_ylim()
        ax.set_ylim(low / 1.1, high * 1.1)
        log_ticks(ax.yaxis)
        bottom, top = np.log(ax.get_ylim())
        heights = [(np.log(y) - bottom) / (top - bottom) for y, _ in ends.values()]
        for height, (name, (_, colour)) in zip(_spread(heights, 0.065), ends.items(), strict=True):
            bold = "bold" if name == "total" else "normal"
            note(ax, 1.02, height, name, colour, va="center", fontweight=bold)
    return figure


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved up as far as needed for labels not to overlap."""
    placed, last = [0.0] * len(heights), -np.inf
    for k in np.argsort(heights):
        placed[k] = last = max(heights[k], last + gap)
    return placed


def _calibration_picture(calibration: Calibration) -> Figure:
    """Observed against nominal coverage."""
    figure = canvas(6.6, 3.3)
    for ax, what in zip(figure.subplots(1, 2), ("energy", "force"), strict=True):
        tidy(ax, "nominal coverage (%)", "observed coverage (%)" if what == "energy" else "")
        ax.plot([0, 100], [0, 100], color=FAINT, linewidth=0.8)
        nominal = 100 * np.array(calibration.levels)
        ax.set(xlim=(40, 102), ylim=(0, 104), xticks=nominal)
        for k, (when, colour, shape) in enumerate((("before", FAINT, "o--"), ("after", BLUE, "s-"))):
            observed = 100 * np.array(getattr(calibration, f"{what}_{when}"), float)
            ax.plot(nominal, observed, shape, color=colour, markersize=5)
            factor = getattr(calibration, f"{what}_factor")
            count = getattr(calibration, f"{what}_values")
            text = f"after: × {factor:.3g} ({count} values)" if when == "after" else when
            note(ax, 0.97, 0.13 - 0.07 * k, text, colour, ha="right", fontweight="bold")
        ax.set_title({"energy": "energies", "force": "forces"}[what], fontsize=9, color=INK, loc="left")
    return figure


# ------------------------------------------------------------------------------------------------- the report


def contents(
    directory: Path, of: Mapping[str, Sequence[dict[str, Any]]], last: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Template and what to fill it with, from the journal's records by type and the stop that counts, if any."""
    iterations, labels = of.get("iteration", []), of.get("label", [])
    pictures = directory / "pictures"
    return "hal.html.j2", {
        "roles": Counter(r["role"] for r in labels),
        "names": {role: name for role, (name, *_) in ROLES.items()},
        "statuses": [Counter(_words(replica["status"]) for replica in r["replicas"]) for r in iterations],
        "bolder": [_bolder_words(r.get("boldness", {})) for r in iterations],
        "errors": next((r["errors"] for r in reversed(iterations) if r["errors"]), {}),
        "sections": _model_sections(directory, pictures, labels, iterations, last.get("calibration")),
        "trajectories": _trajectory_sections(directory, pictures, iterations),
    }


def _bolder_words(factors: Mapping[str, float]) -> str:
    """The factors by which an iteration explored more boldly than asked for; empty where it did not."""
    return ", ".join(f"{name} × {factor:.3g}" for name, factor in factors.items() if name != "level" and factor != 1)


def _model_sections(
    directory: Path,
    pictures: Path,
    labels: Sequence[dict[str, Any]],
    iterations: Sequence[dict[str, Any]],
    calibration: Mapping[str, Any] | None,
) -> list[Section]:
    from haljax.close import collapses
    from haljax.evaluation import Calibration, hole_words, predict
    from haljax.hal.reference import decode
    from haljax.model_file import load

    sections: list[Section] = []
    judged = [r for r in iterations if r["errors"] or r.get("leave_one_out", {}).get("groups")]

    def add(name: str, title: str, caption: str, make: Callable[[], Figure], warnings: Sequence[str] = ()) -> None:
        sections.append(section(pictures, name, title, caption, make, *warnings))

    if judged:
        add(
            "learning",
            "Error against labels",
            "Errors after each fit: on the independent test set, where there is one, and on training structures left "
            "out of the fit (dashed), structures of one iteration together. Structures are chosen where the model is "
            "unsure, so that those left out are harder than the test set.",
            lambda: _learning_picture(judged),
        )
    if calibration:
        add(
            "calibration",
            "Calibration of the uncertainty",
            "How often the errors of held-out labels (with the test set, where these were few) lie within "
            "the predicted intervals of energy_std and forces_std, before and after calibration. On the diagonal "
            "the standard deviations are true; below it the model is too sure.",
            lambda: _calibration_picture(Calibration(**calibration)),
        )
    written = [p for p in (directory / "model.npz", *directory.glob("iterations/*/model.npz")) if p.exists()]
    if not written:
        return sections
    try:
        model = load(max(written, key=lambda path: path.stat().st_mtime))
    except ValueError as error:
        return [*sections, Section("Model", "", None, [str(error)])]

    sets = {role: [decode(r) for r in labels if r["role"] == role] for role in ROLES}
    sets = {role: structures for role, structures in sets.items() if structures}

    def parity() -> Figure:
        def with_e0(structures: Sequence[Atoms]) -> list[tuple[Prediction, float]]:
            e0 = dict(zip(model.basis.elements, model.e0, strict=True))
            means = [float(np.mean([e0[symbol] for symbol in atoms.symbols])) for atoms in structures]
            return list(zip(predict(model, structures), means, strict=True))

        return _parity_picture({role: with_e0(structures) for role, structures in sets.items()})

    if sets:
        add(
            "parity",
            "Energies and forces",
            "Predicted against reference, and the errors below. Energies are relative to the one-body "
            "energies E0. Where points are many, darker means more of them, on a logarithmic scale.",
            parity,
        )
    curves = dimers(model, sets.get("train", []))
    add(
        "dimers",
        "Dimers",
        "Energy of two atoms alone, where all many-body functions vanish: the fixed repulsive core, the "
        "fitted pair part and their sum. Between the core radii (shaded) the core hands over to the fit. The "
        "energy axis is linear about zero and logarithmic beyond.",
        lambda: _dimer_picture(curves),
        [_hole_warning(curve, hole) for curve in curves if (hole := curve.hole())]
        + hole_words(collapses(model.basis, model.coefficients, model.radii, model.near)),
    )
    add(
        "coefficients",
        "Coefficients",
        "Magnitude of each coefficient, by correlation order and by element pair or centre element; the line "
        "is the median, the number above how many functions there are. Crosses at the bottom: pruned ones.",
        lambda: _coefficient_picture(model),
    )
    return sections


def _hole_warning(curve: Dimer, hole: Hole) -> str:
    known = (
        "the pair is not in the data, and inside its core" if np.isnan(curve.seen)
        else f"below {curve.seen:.2f} Å, the shortest distance in the data,"
    )  # fmt: skip
    guard = hole.rim / curve.covalent
    return (
        f"Attractive hole in {curve.name}: {known} the dimer energy falls by {hole.depth:.2g} eV as the "
        f"atoms approach from {hole.rim:.2f} to {hole.bottom:.2f} Å. Atoms that get there may stay there. "
        f"Set dynamics.min_distance to at least {guard:.2f}, and give the fit structures with shorter bonds "
        "of this pair, for instance compressed ones."
    )


def _trajectory_sections(directory: Path, pictures: Path, iterations: Sequence[dict[str, Any]]) -> list[Section]:
    """One a round of dynamics, the latest first and open. Pictures already made are used as they are."""
    sections: list[Section] = []
    for record in reversed(iterations):
        number = record["iteration"]
        source = directory / "iterations" / f"{number:04d}" / "trajectory.npz"
        if not source.exists():
            continue
        picture = pictures / f"trajectory_{number:04d}.png"
        if not picture.exists() or picture.stat().st_mtime < source.stat().st_mtime:
            trajectory_picture(source, picture)
        sections.append(Section(f"Iteration {number}", "", embedded(picture), fold=bool(sections)))
    return sections
