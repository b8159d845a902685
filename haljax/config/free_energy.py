"""The config of a campaign for a free energy."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, Strict, ValidationInfo, field_validator, model_validator

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
    plain_data,
)
from haljax.devices import cores

# Keys on which no result depends, or that may be raised to go on: they may differ on resumption.
MAY_CHANGE_FREE_ENERGY = frozenset(
    {
        "directory", "stop", "sampling.workers", "sampling.devices", "sampling.windows_per_job", "sampling.timeout_s",
        "sampling.max_attempts",
    }
)  # fmt: skip

Integers = Annotated[tuple[int, int, int], Strict(False)]
Matrix = Annotated[tuple[Integers, Integers, Integers], Strict(False)]
Numbers = Annotated[tuple[float, ...], Strict(False), Field(min_length=1)]
Positives = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]


class LatticeModel(Table):
    """``[lattice]``: the Hamiltonian."""

    expansion: ExistingFile
    """file of a cluster expansion: haljax's own .json, icet's .ce or smol's .mson"""
    supercell: Matrix
    """3 x 3 integers; the columns are the vectors of the simulated cell in primitive vectors"""
    allow_aliasing: bool = False
    """accept a cell so small that clusters meet their own images"""


class Wave(Table):
    """The modulation ``values[(q . R + offset) mod len(values)]`` of the cells R."""

    q: Integers
    """three integers"""
    offset: int = 0
    """phase, in steps of the values"""
    values: Annotated[tuple[int, ...], Strict(False), Field(min_length=1)] = (1, 1, -1, -1)
    """list of integers, one period of the modulation"""


class OrderParameters(Table):
    """``[order_parameters]``: what the free energy is a function of."""

    species: str
    """the species whose fraction is counted"""
    cell: Matrix
    """3 x 3 integers; the columns are the vectors of the commensurate cell in primitive vectors"""
    waves: Annotated[tuple[Wave, ...], Strict(False), Field(min_length=1)] | None = None
    """list of tables {q = […], offset = …}, one an order parameter; q = [0, 0, 0] is the composition"""
    patterns: Annotated[tuple[Numbers, ...], Strict(False), Field(min_length=1)] | None = None
    """in place of waves: list of rows, the modulation on the sublattices of the cell"""

    wells: Annotated[tuple[Numbers, ...], Strict(False)] = ()
    """list of the known ordered states, one of each kind; symmetry gives the others"""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.waves is None) == (self.patterns is None):
            raise ValueError("give either waves or patterns")
        d = len(self.waves or self.patterns or ())
        if any(len(well) != d for well in self.wells):
            raise ValueError(f"each of the wells should have {d} numbers, one for each order parameter")
        return self


class Sampling(Table):
    """``[sampling]``: Monte Carlo in umbrella windows."""

    temperature_K: Positives
    """list of temperatures, K"""
    phi: Positives
    """list of the strengths of the bias, eV, one for each order parameter"""
    precision: Positives = (1e-3,)
    """list of the absolute precisions of the order parameters at which a window has converged, or one for all"""
    min_passes: Count = 500
    """passes of a window at least"""
    max_passes: Count = 5000
    """passes of a window at most"""
    windows_per_job: Count | None = None
    """windows sampled together; where absent, an even share of an iteration's for each worker, on a CPU 512 at most"""
    workers: Count = Field(default_factory=cores)
    """jobs sampled at once"""
    devices: Count | None = None
    """devices of jax on which a job's windows are shared out; where absent, all"""
    timeout_s: Seconds | None = None
    """longest time for one job, s"""
    max_attempts: Count = 2
    """a job that failed so often is given up"""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.min_passes > self.max_passes:
            raise ValueError(f"min_passes = {self.min_passes} is more than max_passes = {self.max_passes}")
        return self


class Network(Table):
    """``[network]``: the integrable network."""

    degree: Count = 6
    """of the invariant polynomials that it sees"""
    widths: Counts = (64, 64)
    """list of the widths of the hidden layers"""
    activation: Literal["tanh", "softplus"] = "softplus"
    """of the hidden layers"""
    separate: bool = True
    """give the composition a network of its own; false, with ideal = false, is the network as first published"""
    ideal: bool = True
    """add the free energy of the ideal solution, so that mu diverges at the ends as it must"""
    members: Annotated[int, Field(ge=2)] = 5
    """networks of the ensemble"""


class Training(Table):
    """``[training]``: how the network learns; what is absent is the default of
    `haljax.free_energy.training.TrainingSettings`."""

    epochs: Count | None = None
    """passes over the data at most"""
    learning_rate: Positive | None = None
    """at the start"""
    batch: Count | None = None
    """labels of a step"""
    hessian_weight: NotNegative | None = None
    """of the Hessian labels against those of mu"""
    energy_weight: NotNegative | None = None
    """of the energy labels against those of mu"""
    search_trials: Annotated[int, Field(ge=0)] = 0
    """networks that are tried when an iteration brings nothing; 0 for no search"""

    @field_validator("search_trials")
    @classmethod
    def _searchable(cls, trials: int) -> int:
        if trials and find_spec("optuna") is None:
            raise ValueError("a search needs optuna: pip install '.[search]', or set it to 0")
        return trials


class Criterion(Table):
    """``[criteria.NAME]``: one way to choose points."""

    points: Count
    """points of an iteration"""
    function: str | None = None
    """module:function of a criterion of your own, or one of haljax's; the table's name where absent"""
    from_iteration: Annotated[int, Field(ge=0)] = 0
    """first iteration in which it chooses"""
    to_iteration: Annotated[int, Field(ge=0)] | None = None
    """last iteration in which it chooses; no end where it is absent"""
    options: Annotated[dict[str, Any], AfterValidator(plain_data)] = {}
    """its keyword arguments"""


class Choice(Table):
    """``[choice]``: how the criteria work together."""

    pool: ExistingFile | None = None
    """text file of points for the criterion pool, one a row"""
    novelty: bool = True
    """thin out what is near to known points"""
    weighting: bool = True
    """shift points to the criteria that improve the model most"""
    target_from_iteration: Annotated[int, Field(ge=0)] = 1
    """iteration from which kappa is set such that the window ends at its target"""


class FreeEnergyTest(Table):
    """``[test]``: windows that are never learned from."""

    points: Count | None = None
    """windows at space-filling points, sampled at the start"""
    file: ExistingFile | None = None
    """text file with a header that names columns kappa_i, eta_i, phi_i, T, mu_i"""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.points is None and self.file is None:
            raise ValueError("give points or file, or leave the table out")
        return self


class FreeEnergyStop(Table):
    """``[stop]``: when it is enough; the first limit that is met counts."""

    max_iterations: Count | None = None
    """iterations after the first"""
    max_labels: Count | None = None
    """windows sampled"""
    tolerance: Positive | None = None
    """stop when the error of mu_0 predicted for new windows stayed below it, eV"""
    patience: Count = 2
    """iterations for which it has to"""
    max_wall_s: Positive | None = None
    """wall time, s"""

    @model_validator(mode="after")
    def _stops(self) -> Self:
        limits = ("max_iterations", "max_labels", "tolerance", "max_wall_s")
        if all(getattr(self, limit) is None for limit in limits):
            raise ValueError(f"it would never stop; give at least one of {', '.join(limits)}")
        return self


class FreeEnergyConfig(Config):
    """All of a config."""

    directory: RunDirectory
    """the run directory, which is made when missing"""
    seed: Seed = 0
    """of all random numbers"""
    lattice: LatticeModel
    """a table [lattice] with the keys expansion and supercell"""
    order_parameters: OrderParameters
    """a table [order_parameters] with the keys species, cell and waves"""
    sampling: Sampling
    """a table [sampling] with the keys temperature_K and phi"""
    network: Network = Network()
    """table of the network"""
    training: Training = Training()
    """table of its training"""
    criteria: Annotated[dict[str, Criterion], Field(min_length=1)]
    """tables [criteria.NAME], each with the key points"""
    choice: Choice = Field({}, validate_default=True)
    """table on how the criteria work together"""
    test: FreeEnergyTest | None = None
    """table of the test set"""
    stop: FreeEnergyStop
    """a table [stop] with at least one of max_iterations, max_labels, tolerance, max_wall_s"""

    @field_validator("sampling")
    @classmethod
    def _one_each(cls, sampling: Sampling, info: ValidationInfo) -> Sampling:
        if "order_parameters" in info.data:
            given = info.data["order_parameters"]
            d = len(given.waves or given.patterns or ())
            if len(sampling.phi) != d:
                raise ValueError(f"phi has {len(sampling.phi)} numbers for {d} order parameters; give one for each")
            if len(sampling.precision) not in (1, d):
                raise ValueError(f"precision has {len(sampling.precision)} numbers; give {d}, or one for all")
        return sampling

    @field_validator("criteria")
    @classmethod
    def _known(cls, criteria: dict[str, Criterion], info: ValidationInfo) -> dict[str, Criterion]:
        checked = import_module("haljax.free_energy.criteria").checked
        for name, criterion in criteria.items():
            function = criterion.function or name
            checked(function, criterion.options)
            if function in ("setting_wells", "setting_vertices") and "order_parameters" in info.data:
                if not info.data["order_parameters"].wells:
                    raise ValueError(f"{name} needs the known ordered states; give them as order_parameters.wells")
        if all(criterion.from_iteration > 0 for criterion in criteria.values()):
            raise ValueError("none of them chooses points in iteration 0, in which there is no model; add billiard")
        return criteria

    @field_validator("choice")
    @classmethod
    def _pool_given(cls, choice: Choice, info: ValidationInfo) -> Choice:
        criteria = info.data.get("criteria", {})
        if any((c.function or name) == "pool" for name, c in criteria.items()) and choice.pool is None:
            raise ValueError("the criterion pool has no pool; give a file of points as choice.pool")
        return choice
