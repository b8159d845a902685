"""The config of a campaign of hyperactive learning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from haljax.config.tables import (
    Config,
    Count,
    ExistingFile,
    NotNegative,
    Positive,
    RunDirectory,
    Seconds,
    Seed,
    Table,
    corrections,
    plain_data,
    shown,
)
from haljax.devices import cores

if TYPE_CHECKING:
    from haljax.ace import ACEBasis, GrowingBasis

# Keys that may differ on resumption: those on which no result depends, limits that may be raised to go on, and the
# dynamics, since a label is true whatever found it.
MAY_CHANGE = frozenset(
    {
        "directory", "stop", "dynamics", "labels.within_tolerance", "reference.workers", "reference.timeout_s",
        "reference.max_attempts",
    }
)  # fmt: skip
# Keys of [dynamics] that a start structure may set for the replicas that set out from it.
OVERRIDES = (
    "temperature_K", "pressure_GPa", "tau_rel", "n_steps", "timestep_fs", "friction_per_fs", "tolerance", "epsilon",
    "tau_history", "cell_fixed_shape",
)  # fmt: skip


class Ramp(NamedTuple):
    """A value that changes linearly over a trajectory; ``{from = …, to = …}`` in TOML."""

    start: float
    end: float


Schedule = float | Ramp | tuple[float | Ramp, ...]


def per_replica(value: Schedule, i: int) -> tuple[float, float]:
    """Where the value starts and ends for replica ``i``; a list is cycled over the replicas."""
    if isinstance(value, Ramp):
        return value.start, value.end
    if isinstance(value, tuple):
        return per_replica(value[i % len(value)], i)
    return value, value


# ---------------------------------------------------------------------------------------------- types of keys


def _number(value: Any, lowest: float, open_end: bool) -> float:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not finite or value < lowest or (open_end and value == lowest):
        bound = f" {'above' if open_end else 'of at least'} {lowest:g}" if lowest > -float("inf") else ""
        raise ValueError(f"should be a number{bound}, a ramp {{from = …, to = …}}, or a list of these")
    return float(value)


def _schedule(lowest: float = -float("inf"), open_end: bool = False) -> PlainValidator:
    def one(value: Any) -> float | Ramp:
        if isinstance(value, Ramp):
            return value
        if isinstance(value, Mapping) and set(value) == {"from", "to"}:
            return Ramp(_number(value["from"], lowest, open_end), _number(value["to"], lowest, open_end))
        return _number(value, lowest, open_end)

    def parse(value: Any) -> Schedule:
        if isinstance(value, list | tuple) and not isinstance(value, Ramp) and value:
            return tuple(map(one, value))
        return one(value)

    return PlainValidator(parse)


def _plain(value: Schedule) -> Any:
    if isinstance(value, Ramp):
        return {"from": value.start, "to": value.end}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _chemical(elements: tuple[str, ...]) -> tuple[str, ...]:
    from ase.data import chemical_symbols

    known = chemical_symbols[1:]
    for element in elements:
        if element not in known:
            near = get_close_matches(element.capitalize(), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{element!r} is not a chemical symbol{hint}")
    if repeated := sorted({e for e in elements if elements.count(e) > 1}):
        raise ValueError(f"{', '.join(repeated)} stands in it more than once")
    return elements


def _one_body(value: Any) -> Any:
    if isinstance(value, Mapping) and value:
        for element, energy in value.items():
            if isinstance(energy, bool) or not isinstance(energy, int | float) or not abs(energy) < float("inf"):
                raise ValueError(f"{element} = {shown(energy)} should be an energy in eV")
        return {str(element): float(energy) for element, energy in value.items()}
    if value not in ("auto", "lsq", "isolated"):
        raise ValueError(
            "should be 'auto', 'lsq', 'isolated' or a table of energies in eV, such as {Al = -3.1, Cu = -3.5}"
        )
    return value


def _dotted(path: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*([.:][^\W\d]\w*)+", path):
        raise ValueError("should be the dotted path of an ASE calculator, such as 'ase.calculators.emt.EMT'")
    return path


def _multiple(interval: int, info: ValidationInfo) -> int:
    check = info.data.get("check_interval", 1)
    if interval % check:
        raise ValueError(f"should be a multiple of check_interval = {check}")
    return interval


AnySchedule = Annotated[Schedule, _schedule(), PlainSerializer(_plain)]
PositiveSchedule = Annotated[Schedule, _schedule(0, open_end=True), PlainSerializer(_plain)]
NotNegativeSchedule = Annotated[Schedule, _schedule(0), PlainSerializer(_plain)]


def _auto_or(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else number(value)


Number = TypeVar("Number")
OrAuto = Annotated[Number, WrapValidator(_auto_or), PlainSerializer(lambda value: value, return_type=Any)]


class Reference(Table):
    """``[reference]``: the truth."""

    calculator: Annotated[str, AfterValidator(_dotted)] | None = Field(None, validate_default=True)
    """dotted path of an ASE calculator class, or of a function that returns a calculator"""
    arguments: Annotated[dict[str, Any], AfterValidator(plain_data)] = {}
    """its keyword arguments"""
    workers: Count = Field(default_factory=cores)
    """labels computed at once"""
    timeout_s: Seconds | None = None
    """longest time for one label, s"""
    max_attempts: Count = 2
    """a label that failed so often is given up"""

    @field_validator("calculator")
    @classmethod
    def _given_somewhere(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is None and info.context is not None and not info.context.get("calculator_given"):
            raise ValueError(
                "missing; give the dotted path of an ASE calculator, such as 'ase.calculators.emt.EMT', "
                "or from Python a calculator: HAL(config, calculator=…)"
            )
        return path


def _names(keys: dict[str, str] | None) -> dict[str, str] | None:
    from haljax.structures import checked_keys

    return None if keys is None else checked_keys(keys)


Keys = Annotated[dict[str, str] | None, AfterValidator(_names)]


class Start(Table):
    """``[start]``: where it begins."""

    structures: ExistingFile
    """file of the first structures, labelled or not, in any format that ASE reads"""
    keys: Keys = None
    """names of the labels in it, such as {energy = "xtb_energy"}; usual spellings are found without"""


class Basis(Table):
    """``[basis]``: arguments of `haljax.ace_basis`."""

    elements: Annotated[tuple[str, ...], Strict(False), Field(min_length=1), AfterValidator(_chemical)]
    """list of the chemical symbols of all atoms"""
    cutoff: OrAuto[Annotated[float, Field(gt=0, le=30)]] = 5.0
    """radius of an environment, Å, or 'auto'"""
    order: OrAuto[Annotated[int, Field(ge=1, le=8)]] = 3
    """correlation order: body order minus one, or 'auto'"""
    max_degree: OrAuto[Annotated[int, Field(ge=1, le=100)]] = 10
    """bound on the sum of n + 1.5 l, or 'auto': it grows with the labels as far as leave-one-out errors support it"""
    budget: Positive | None = None
    """longest time of energy and forces, µs per atom, of a basis that grows"""

    @model_validator(mode="after")
    def _something_to_choose(self) -> Self:
        if self.budget is not None and "auto" not in (self.cutoff, self.order, self.max_degree):
            raise ValueError(
                "budget chooses among bases: set max_degree = 'auto', order = 'auto' or cutoff = 'auto' too"
            )
        return self


def _of_training(name: str) -> float:
    return getattr(import_module("haljax.training"), name)


class Fit(Table):
    """``[fit]``: arguments of `haljax.fit`."""

    e0: Annotated[str | dict[str, float], PlainValidator(_one_body)] = "auto"
    """energies of the isolated elements: 'auto' (isolated atoms where there are any), 'lsq', 'isolated' or a table in
    eV"""
    energy_weight: Positive = Field(default_factory=partial(_of_training, "ENERGY_WEIGHT"))
    """weight of an energy per atom, 1/eV"""
    force_weight: Positive = Field(default_factory=partial(_of_training, "FORCE_WEIGHT"))
    """weight of a force component, Å/eV"""
    stress_weight: NotNegative = Field(default_factory=partial(_of_training, "STRESS_WEIGHT"))
    """weight of a virial component per atom, 1/eV"""
    solver: Literal["auto", "brr", "ard"] = "auto"
    """'auto': a smooth prior learned from the data; 'brr': one prior precision for all functions; 'ard': one each"""
    smoothness: NotNegative = Field(default_factory=partial(_of_training, "SMOOTHNESS"))
    """power of the smoothness prior of 'brr' and 'ard'"""


Factor = Annotated[float, Field(ge=1)]


class Bolder(Table):
    """``bolder`` in ``[dynamics]``: largest factors by which exploration grows bolder while it finds nothing."""

    temperature: Factor = 1.25
    """largest factor of temperature_K; 1 leaves it as it is"""
    tau_rel: Factor = 1.0
    """largest factor of tau_rel; 1 leaves it as it is, since a stronger bias makes dynamics fail first"""
    n_steps: Factor = 2.0
    """largest factor of n_steps; 1 leaves it as it is"""


class Dynamics(Table):
    """``[dynamics]``: the biased trajectories."""

    replicas: Annotated[int, Field(ge=1, le=10**6)] = 8
    """trajectories of each iteration"""
    temperature_K: PositiveSchedule
    """K: a number above 0, a ramp {from = …, to = …}, or a list of these that the replicas cycle through"""
    pressure_GPa: AnySchedule | None = None
    """GPa, in the same forms; the cell is fixed where it is absent"""
    tau_rel: NotNegativeSchedule = 0.2
    """relative strength of the bias, in the same forms; 0 is no bias"""
    n_steps: Count = 2000
    """length of a trajectory"""
    timestep_fs: Positive = 1.0
    """fs"""
    friction_per_fs: NotNegative = 0.01
    """of the Langevin thermostat, 1/fs"""
    tolerance: Positive | None = None
    """a replica whose relative force error exceeds it stops; where absent, it follows from the errors that the model
    expects on its training structures, anew in each iteration"""
    epsilon: Positive = 0.2
    """eV/Å, in the denominator of the relative force error"""
    criterion: Literal["max", "softmax"] = "max"
    """how the errors of the atoms become one number"""
    committee: Annotated[int, Field(ge=2)] = 8
    """members that judge the forces"""
    bolder: Bolder = Bolder()
    """largest factors { temperature = 1.25, tau_rel = 1, n_steps = 2 } of bolder exploration: first higher
    temperatures, then a stronger bias, then longer runs, while no replica meets the tolerance or a guard"""
    tau_history: Count = 100
    """steps over which the strength of the bias is averaged"""
    tau_delay: Annotated[int, Field(ge=0)] | None = None
    """steps without bias; tau_history where it is absent"""
    check_interval: Count = 10
    """steps between two looks at forces and uncertainty"""
    cell_interval: Annotated[Count, AfterValidator(_multiple)] = 10
    """steps between two moves of the cell, where there is a pressure"""
    cell_fixed_shape: bool = False
    """let the volume change only"""
    cell_step: Positive = 0.01
    """strain of a move of the cell for 40 atoms at 500 K"""
    swap_interval: Annotated[int, Field(ge=0), AfterValidator(_multiple)] = 0
    """steps between two swaps of unlike atoms; 0 for none"""
    skin: Annotated[float, Field(gt=0.25, le=10)] = 0.5
    """margin of the neighbour lists, Å"""
    min_distance: NotNegative = 0.6
    """shortest distance allowed, in units of the sum of the covalent radii"""
    max_force: Positive = 20.0
    """largest force allowed, eV/Å"""
    max_temperature_K: Positive = 5000.0
    """highest temperature allowed, K"""
    max_pressure_GPa: Positive = 50.0
    """highest pressure of a periodic system allowed, of either sign, GPa"""
    precision: Literal["float64", "float32"] = "float64"
    """of the trajectories; fits and predictions are float64 always"""
    replicas_per_batch: Count | None = None
    """replicas stepped together; where absent, those of 64 atoms in all on each core of a CPU, and all on a GPU"""
    devices: Count | None = None
    """devices of jax on which replicas are shared out; where absent, all"""
    processes: Count | None = None
    """processes of jax.distributed on which they are, each started with the same command; where absent, those joined"""

    def overridden(self, info: Mapping[str, Any]) -> Self:
        """These for a replica from a start structure with ``info["hal_…"]``, as in ACEHAL; two numbers are a ramp.

        Raises
        ------
        ValueError : an unknown override, or a value that the config would not take either.
        """
        given = {str(name)[4:]: value for name, value in info.items() if str(name).startswith("hal_")}
        if unknown := [name for name in given if name not in OVERRIDES]:
            raise ValueError(
                f"hal_{unknown[0]} overrides nothing: give one of {', '.join(f'hal_{name}' for name in OVERRIDES)}"
            )
        values = {}
        for name, value in given.items():
            plain = value.tolist() if hasattr(value, "tolist") else value  # of NumPy, as ASE reads it
            ramp = isinstance(plain, list | tuple) and len(plain) == 2
            values[name] = dict(zip(("from", "to"), plain, strict=True)) if ramp else plain
        try:
            # What was set alone: defaults are checked otherwise than given values.
            return type(self).model_validate({name: getattr(self, name) for name in self.model_fields_set} | values)
        except ValidationError as error:
            raise ValueError(f"hal_{corrections(type(self), error)[0]}") from None

    @model_validator(mode="after")
    def _tolerance_of_softmax(self) -> Self:
        if self.criterion == "softmax" and self.tolerance is None:
            raise ValueError(
                "criterion = 'softmax' has no default tolerance, since its values depend on the number of atoms; "
                "set tolerance"
            )
        return self

    @model_validator(mode="after")
    def _default_cell_interval(self) -> Self:
        if self.pressure_GPa is not None and self.cell_interval % self.check_interval:
            raise ValueError(
                f"cell_interval = {self.cell_interval} (the default) should be a multiple of "
                f"check_interval = {self.check_interval}; set it"
            )
        return self


class Labels(Table):
    """``[labels]``: what is asked of the reference."""

    per_iteration: Count = 4
    """labels of each iteration"""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """fraction of the new labels that is held out of the fit, to judge the error bars; the fit needs none"""
    within_tolerance: bool = False
    """label the last structures of replicas within the tolerance too: plain sampling, which never ends by itself"""
    asynchronous: bool = False
    """go on with dynamics under the model at hand while labels are computed; worth it where these take long"""


class Stop(Table):
    """``[stop]``: when the campaign ends, at the latest; the first limit that is met counts.

    Without any limit it ends when the boldest exploration has found nothing for ``patience`` iterations.
    """

    max_labels: Count | None = None
    """labels of start and iterations"""
    max_iterations: Count | None = None
    """rounds of dynamics"""
    tolerance: Positive | None = None
    """stop when the relative force error stayed below it"""
    patience: Count = 3
    """iterations for which it has to, or for which the boldest exploration has to find nothing"""
    max_wall_s: Positive | None = None
    """wall time, s"""

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        limits = self.max_labels, self.max_iterations, self.tolerance, self.max_wall_s
        return any(limit is not None for limit in limits)


class ReferenceMD(Table):
    """``[test.reference_md]``: test structures from molecular dynamics of the reference."""

    temperature_K: Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
    """list of temperatures in K"""
    frames: Count = 20
    """structures for each temperature"""
    interval: Count = 50
    """steps between two of them"""
    burn_in: Annotated[int, Field(ge=0)] = 200
    """steps before the first"""
    timestep_fs: Positive = 2.0
    """fs"""


class Test(Table):
    """``[test]``: the independent test set."""

    __test__ = False  # whatever pytest thinks

    structures: ExistingFile | None = None
    """file of test structures, labelled or not"""
    keys: Keys = None
    """names of the labels in it"""
    reference_md: ReferenceMD | None = None
    """molecular dynamics that makes them"""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.structures is None and self.reference_md is None:
            raise ValueError("give structures, or a table [test.reference_md], or leave it out")
        return self


class HALConfig(Config):
    """All of a config."""

    directory: RunDirectory
    """the run directory, which is made when missing"""
    seed: Seed = 0
    """of all random numbers"""
    reference: Reference = Field({}, validate_default=True)
    """table of the reference calculator"""
    start: Start
    """a table [start] with the key structures"""
    basis: Basis
    """a table [basis] with at least the key elements"""
    fit: Fit = Field({}, validate_default=True)
    """table of arguments of the fit"""
    dynamics: Dynamics
    """a table [dynamics] with at least the key temperature_K"""
    labels: Labels = Labels()
    """table on labelling"""
    stop: Stop = Field({}, validate_default=True)
    """table of limits"""
    test: Test | None = None
    """table of the test set"""

    @field_validator("stop")
    @classmethod
    def _ends(cls, stop: Stop, info: ValidationInfo) -> Stop:
        if "labels" in info.data and info.data["labels"].within_tolerance and not stop.limited:
            raise ValueError(
                "with labels.within_tolerance = true the campaign never ends by itself; give at least one of "
                "max_labels, max_iterations, tolerance, max_wall_s"
            )
        return stop

    @field_validator("fit")
    @classmethod
    def _every_element(cls, fit: Fit, info: ValidationInfo) -> Fit:
        if isinstance(fit.e0, dict) and "basis" in info.data:
            elements = info.data["basis"].elements
            if missing := [e for e in elements if e not in fit.e0]:
                raise ValueError(f"e0 lacks {', '.join(missing)}; give an energy in eV for every element of the basis")
            if foreign := [e for e in fit.e0 if e not in elements]:
                raise ValueError(f"e0 names {', '.join(foreign)}, not among basis.elements ({', '.join(elements)})")
        return fit

    def ace_basis(self) -> ACEBasis | GrowingBasis:
        """The basis that the config describes, or leaves to the data."""
        from haljax.ace import ace_basis

        return ace_basis(**self.basis.model_dump())
