"""An integrable network for a free energy of order parameters, and an ensemble of them.

What is learned is a scalar, so that the chemical potentials are its gradient and integrate to it exactly (Teichert,
Natarajan, Van der Ven & Garikipati, CMAME 353, 201 (2019), doi:10.1016/j.cma.2019.05.019). Per cell,

    g(eta, T) = kT / n_s sum_k [x_k ln x_k + (1 - x_k) ln(1 - x_k)]  +  G(h(eta), tau).

The first term, the ideal solution with the x of greatest entropy at this eta (`haljax.lattice.ideal`), times the
counted sites of a cell, is known; with it mu diverges at the ends of composition as it must, which a network alone
cannot. G is a network of invariants h of the order parameters' symmetry group, so that mu has that symmetry, and,
where the temperature is an input, of ``tau = (T_0 / T - 1) / width``, linear in beta. G is written as an energy and
not as beta times one: then ``d(beta g) / d beta = e`` is ``G + beta dG/d beta``, the ideal term drops out of it
exactly, and at beta = 0 g goes over into the ideal solution plus the energy of the random state.

Compositions move g by a hundred times what ordering does. So features linear in eta, which are the compositions that
the whole group leaves as they are, have a network of their own, and ordering has a second one with its own unit of
energy. In five-fold cross-validation on 160 published windows of LixCoO2 the ensemble of five errs by 5.0 meV in mu_0
and 0.34 meV in the others (root mean squares); with one network for both by 8.0 and 0.58 meV; with tanh by 26 and
1.3 meV; without the ideal term, at these compositions of 0.15 to 0.83, by 5.5 and 0.55 meV
(benchmarks/ensemble_training.py --accuracy). One split; the learning rate was chosen on these rows for the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haljax.lattice.ideal import checked, fractions, negentropy
from haljax.lattice.units import KB

SCHEMA_VERSION = 2
CHUNK = 2048  # points that a surface evaluates at once
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": jnp.tanh, "softplus": jax.nn.softplus}


class Scaling(NamedTuple):
    """Constants that bring inputs and outputs to order one. They are not trained.

    Attributes
    ----------
    mean, scale : (F,) of the invariants.
    temperature : () K, T_0; the only temperature of a network without temperature as an input.
    width : () of the input of temperature.
    energies : (2,) eV, units of what the networks of composition and of ordering give.
    """

    mean: jax.Array
    scale: jax.Array
    temperature: jax.Array
    width: jax.Array
    energies: jax.Array


class Params(NamedTuple):
    """Parameters of a `Network`: a pytree, with a leading axis of members in a `Surface`.

    Attributes
    ----------
    layers : for each of its perceptrons, (weights (m, n), bias (n,)) of each layer.
    offset : () in units of ``scaling.energies[0]``, the constant of g.
    scaling : the constants, not trained.
    """

    layers: tuple
    offset: jax.Array
    scaling: Scaling


@dataclass(frozen=True)
class Network:
    """The form of a free energy. Static and hashable; its numbers are `Params`.

    Attributes
    ----------
    invariants : hashable, eta (..., d) -> (..., F).
    patterns : (d, n_s), eta = patterns @ x / n_s, of the ideal term; None leaves that out. With it, eta = 0 must be
        a pure state, all x zero: there g has no entropy and does not depend on temperature, which is exact in G. Labels
        of mu and energy that reach it fix g absolutely; without, beta g has a free constant.
    widths : hidden layers.
    activation : "tanh" or "softplus".
    temperature : whether the temperature is an input; else the labels have one temperature.
    dimension : d, for networks without `patterns`.
    separate : whether features linear in eta have a perceptron of their own, of half the width.
    sites : of a primitive cell, to which g refers, those that the order parameters count.

    Raises
    ------
    ValueError : what is not possible, and what is.
    """

    invariants: Callable[[jax.Array], jax.Array]
    patterns: Any = None
    widths: tuple[int, ...] = (64, 64)
    activation: str = "softplus"
    temperature: bool = False
    dimension: int = 0
    separate: bool = True
    sites: int = 1

    def __post_init__(self) -> None:
        def fix(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.patterns is not None:
            patterns = checked(self.patterns)
            with jax.ensure_compile_time_eval():
                if np.max(fractions(patterns, np.zeros(len(patterns)))) > 1e-6:
                    raise ValueError(
                        "at eta = 0 the patterns leave sublattices filled, but there g must be that of a pure state: "
                        "count the composition among the order parameters, or leave the ideal term out (patterns=None)"
                    )
            if self.dimension not in (0, len(patterns)):
                raise ValueError(f"dimension is {self.dimension}, but there are {len(patterns)} patterns")
            fix("patterns", tuple(map(tuple, patterns.tolist())))
            fix("dimension", len(patterns))
        if self.sites < 1:
            raise ValueError(f"sites is {self.sites}: give the number of counted sites of a primitive cell")
        if self.dimension < 1:
            raise ValueError("without patterns, give the number of order parameters as dimension")
        fix("widths", tuple(int(w) for w in self.widths))
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths are {self.widths}: give at least one hidden layer of at least one unit")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        shape = jax.eval_shape(self.invariants, jax.ShapeDtypeStruct((self.dimension,), float)).shape
        if len(shape) != 1:
            raise ValueError(f"the invariants give shape {shape} for one eta ({self.dimension},): they must give (F,)")

    @property
    def anchored(self) -> bool:
        """Whether G(eta = 0) is one constant, else every temperature has a free one."""
        return self.patterns is not None or not self.temperature

    def inputs(self) -> tuple[tuple[int, ...], ...]:
        """Which invariants each of its perceptrons takes: that of composition, that of ordering."""
        linear = linear_features(self)[0]
        everything = tuple(range(self.n_features))
        if not self.separate or not linear:
            return ((), everything)
        if np.linalg.matrix_rank(linear_features(self)[1], tol=1e-6) == self.dimension:
            return (linear, ())
        return (linear, everything)

    @property
    def n_features(self) -> int:
        return jax.eval_shape(self.invariants, jax.ShapeDtypeStruct((self.dimension,), float)).shape[0]

    def init(self, key: jax.Array, scaling: Scaling | None = None, dtype: Any = float) -> Params:
        """Random parameters, weights N(0, 1/fan-in), biases zero.

        Parameters
        ----------
        scaling : from `scaling_of`; by default all ones, at 300 K.
        """
        F = self.n_features
        if scaling is None:
            one = jnp.ones(())
            scaling = Scaling(jnp.zeros(F), jnp.ones(F), 300.0 * one, one, jnp.ones(2))
        shapes = [
            list(zip(sizes[:-1], sizes[1:], strict=True)) if sizes else []
            for sizes in (self.sizes(perceptron) for perceptron in range(2))
        ]
        counts = [m * n for layers in shapes for m, n in layers]
        # one draw for all, since every draw is a second of compilation
        draws = iter(jnp.split(jax.random.normal(key, (sum(counts),), dtype), np.cumsum(counts)[:-1].tolist()))
        layers = [
            tuple((next(draws).reshape(m, n) / m**0.5, jnp.zeros(n, dtype)) for m, n in layers) for layers in shapes
        ]
        return Params(tuple(layers), jnp.zeros((), dtype), jax.tree.map(lambda a: jnp.asarray(a, dtype), scaling))

    def sizes(self, perceptron: int) -> tuple[int, ...]:
        """Numbers of units of one of its two perceptrons, inputs and output included; () where there is none."""
        inputs = self.inputs()
        if not inputs[perceptron]:
            return ()
        share = 2 if all(inputs) and perceptron == 0 else 1
        return (len(inputs[perceptron]) + self.temperature, *(max(1, w // share) for w in self.widths), 1)


def idnn(
    invariants: Callable[[jax.Array], jax.Array],
    dimension: int,
    widths: tuple[int, ...] = (150, 150, 150),
    activation: str = "tanh",
) -> Network:
    """The integrable network as published: one perceptron of all invariants, no ideal term, no temperature.

    Source: Holber & Garikipati, arXiv:2503.07619 (2025); without its dropout.
    """
    return Network(invariants, None, widths, activation, False, dimension, False)


@lru_cache(maxsize=64)
def linear_features(network: Network) -> tuple[tuple[int, ...], np.ndarray]:
    """Which invariants are linear in eta, and their gradients (L, d)."""
    points = np.random.default_rng(0).uniform(-1, 1, (5, network.dimension))
    with jax.ensure_compile_time_eval():
        gradients = np.asarray(jax.jit(jax.vmap(jax.jacfwd(network.invariants)))(jnp.asarray(points)))
    change = np.abs(gradients - gradients[:1]).max((0, 2))
    size = np.abs(gradients).max((0, 2))
    index = np.flatnonzero((change <= 1e-5 * size) & (size > 0))
    return tuple(index.tolist()), gradients[0, index].astype(float)


def features(network: Network, scaling: Scaling, eta: jax.Array) -> jax.Array:
    """Scaled invariants (..., F) of eta (..., d)."""
    h = network.invariants(eta)
    lead = (1,) * (h.ndim - 1)
    return (h - scaling.mean.reshape(lead + (-1,))) / scaling.scale.reshape(lead + (-1,))


def reduced_temperature(scaling: Scaling, temperature: jax.Array) -> jax.Array:
    """tau (...), the networks' input for temperatures (...) in K."""
    return (scaling.temperature / temperature - 1) / scaling.width


def perceptrons(network: Network, params: Params, z: jax.Array, tau: jax.Array) -> jax.Array:
    """The learned energy () eV of one point, before it is anchored: scaled invariants (F,), tau ()."""
    activation = ACTIVATIONS[network.activation]
    total = jnp.zeros((), z.dtype)
    for inputs, layers, energy in zip(network.inputs(), params.layers, params.scaling.energies, strict=True):
        if not inputs:
            continue
        a = z[np.array(inputs)] if len(inputs) < network.n_features else z
        if network.temperature:
            a = jnp.concatenate([a, jnp.reshape(tau, (1,))])
        for weights, bias in layers[:-1]:
            a = activation(a @ weights + bias)
        weights, bias = layers[-1]
        total = total + energy * (a @ weights + bias)[0]
    return total


def excess(network: Network, params: Params, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """G () eV, the free energy of one eta (d,) without the ideal term."""
    tau = reduced_temperature(params.scaling, temperature)
    value = perceptrons(network, params, features(network, params.scaling, eta), tau)
    if network.anchored:
        value = value - perceptrons(network, params, features(network, params.scaling, jnp.zeros_like(eta)), tau)
    return value + params.offset * params.scaling.energies[0]


def ideal(network: Network, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """-T s () eV of the ideal solution at one eta (d,); 0 for a network without patterns.

    Near the boundary of the domain and beyond, it goes on as `haljax.lattice.ideal.fields` says: no derivative is NaN.
    """
    if network.patterns is None:
        return jnp.zeros((), eta.dtype)
    return network.sites * KB * temperature * negentropy(np.array(network.patterns), eta)


def free_energy(network: Network, params: Params, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """g () in eV per cell at one eta (d,) and temperature () K; see `ideal` for the boundary of the domain."""
    eta = jnp.asarray(eta)
    temperature = jnp.asarray(temperature, eta.dtype)
    return ideal(network, eta, temperature) + excess(network, params, eta, temperature)


def chemical_potential(network: Network, params: Params, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """dg/d eta (d,) eV."""
    return jax.grad(free_energy, argnums=2)(network, params, jnp.asarray(eta), temperature)


def hessian(network: Network, params: Params, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """d^2 g/d eta^2 (d, d) eV."""
    return jax.hessian(free_energy, argnums=2)(network, params, jnp.asarray(eta), temperature)


def energy(network: Network, params: Params, eta: jax.Array, temperature: jax.Array) -> jax.Array:
    """e = d(beta g)/d beta = g - T dg/dT () eV per cell, of a network with temperature as an input."""
    eta = jnp.asarray(eta)
    T = jnp.asarray(temperature, eta.dtype)
    value, slope = jax.jvp(lambda T: excess(network, params, eta, T), (T,), (T,))
    return value - slope


def scaling_of(network: Network, eta: Any, temperature: Any, mu: Any) -> Scaling:
    """Constants from labels: eta (n, d), temperature (n,) K, mu (n, d) eV, on the host.

    Features linear in eta get mean zero and variance one, the others a maximum of one: invariants of high degree have
    long tails, and divided by their standard deviation they ruin what is learned. Energies are what the known mu,
    beyond the ideal one, integrates to over the spread of eta, along the compositions and across them.
    """
    eta, temperature, mu = (np.asarray(a, float) for a in (eta, temperature, mu))
    index, rows = linear_features(network)
    n = len(eta)
    padded = (np.concatenate([a, np.repeat(a[:1], bucket(n) - n, 0)]) for a in (eta, temperature))
    h, ideal_mu = (np.asarray(a, float)[:n] for a in _known(network, *padded))
    mean, scale = np.zeros(h.shape[1]), np.abs(h).max(0)
    mean[list(index)], scale[list(index)] = h[:, index].mean(0), h[:, index].std(0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    beyond = mu - ideal_mu
    known = np.where(np.isfinite(beyond), beyond, 0.0)
    along = np.linalg.pinv(rows) @ rows if network.separate and index else np.zeros((network.dimension,) * 2)

    def work(projector: np.ndarray) -> float:
        force = (known - known.mean(0)) @ projector
        spread = (eta - eta.mean(0)) @ projector
        return float(np.sqrt((force**2).sum(1).mean() * (spread**2).sum(1).mean()))

    ordering = work(np.eye(network.dimension) - along)
    energies = np.array([work(along) or ordering, ordering])
    T0 = 1 / np.mean(1 / temperature)
    width = np.std(T0 / temperature)
    return Scaling(
        *(
            jnp.asarray(a, float)
            for a in (mean, scale, T0, width if width > 1e-6 else 1.0, np.where(energies > 1e-12, energies, 1.0))
        )
    )


@partial(jax.jit, static_argnums=0)
def _known(network: Network, eta: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Invariants (n, F) and the ideal term's gradient (n, d) at eta (n, d), temperature (n,)."""
    return network.invariants(eta), jax.vmap(jax.grad(partial(ideal, network)))(eta, temperature)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Surface:
    """An ensemble of networks: their mean is the free energy, their spread its uncertainty. A pytree.

    All methods take eta (..., d) and temperatures K that broadcast to (...), in chunks of 2048 points, and can be
    jitted, differentiated and vmapped. Called with numbers, they are compiled once for a range of sizes, and a
    temperature that a network without temperature as an input has not learned raises ValueError.

    Attributes
    ----------
    network : static.
    params : with a leading axis of members.
    """

    network: Network = field(metadata={"static": True})
    params: Params

    @property
    def members(self) -> int:
        return self.params.offset.shape[0]

    def member(self, k: int) -> Surface:
        """The k-th network alone, as a surface of one."""
        return Surface(self.network, jax.tree.map(lambda a: a[k][None], self.params))

    def free_energy(self, eta: Any, temperature: Any) -> jax.Array:
        """g (...) eV per cell, the members' mean."""
        return self._evaluate("free_energy", eta, temperature)

    def chemical_potential(self, eta: Any, temperature: Any) -> jax.Array:
        """dg/d eta (..., d) eV, the members' mean."""
        return self._evaluate("chemical_potential", eta, temperature)

    def hessian(self, eta: Any, temperature: Any) -> jax.Array:
        """d^2 g/d eta^2 (..., d, d) eV, the members' mean."""
        return self._evaluate("hessian", eta, temperature)

    def energy(self, eta: Any, temperature: Any) -> jax.Array:
        """e = d(beta g)/d beta (...) eV per cell, the members' mean.

        Raises
        ------
        ValueError : the temperature is not an input of the network.
        """
        if not self.network.temperature:
            raise ValueError("the energy is d(beta g)/d beta: train a network with temperature=True on several T")
        return self._evaluate("energy", eta, temperature)

    def spread(self, eta: Any, temperature: Any) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation over members of dg/d eta, (..., d) eV each."""
        return self._evaluate("spread", eta, temperature)

    def _evaluate(self, what: str, eta: Any, temperature: Any) -> Any:
        eta = jnp.asarray(eta)
        eta = eta if jnp.issubdtype(eta.dtype, jnp.floating) else eta.astype(float)
        d = self.network.dimension
        if eta.ndim < 1 or eta.shape[-1] != d:
            raise ValueError(f"eta has shape {eta.shape}: its last axis must be the {d} order parameters")
        self._check_temperature(temperature)
        lead = eta.shape[:-1]
        T = jnp.broadcast_to(jnp.asarray(temperature, eta.dtype), lead).reshape(-1)
        points = eta.reshape(-1, d)
        n = points.shape[0]
        if not isinstance(points, jax.core.Tracer):
            missing = bucket(n) - n  # so that all sizes share a few programs
            points = jnp.concatenate([points, jnp.zeros((missing, d), points.dtype)])
            T = jnp.concatenate([T, jnp.ones(missing, T.dtype)])
        found = _evaluate(self.network, what, self.params, points, T)
        return jax.tree.map(lambda a: a[:n].reshape(lead + a.shape[1:]), found)

    def _check_temperature(self, temperature: Any) -> None:
        learned = self.params.scaling.temperature
        if any(isinstance(a, jax.core.Tracer) for a in (temperature, learned)):
            return
        T = np.asarray(temperature)
        if not np.all(T > 0):
            raise ValueError(f"temperature is {T.min()} K: give a positive number of kelvin")
        T0 = float(np.asarray(learned)[0])  # which jit does not trace
        if not self.network.temperature and np.any(np.abs(T / T0 - 1) > 1e-5):
            raise ValueError(
                f"this surface was trained at {T0:g} K and knows no other temperature ({T.min():g} to {T.max():g} K "
                "asked for): train a network with temperature=True on labels at several temperatures"
            )

    def save(self, path: str | Path) -> None:
        """Write the surface to ``path`` (npz), atomically."""
        import io
        import json

        from haljax import __version__
        from haljax.campaign import write_atomic

        net = self.network
        names = ("patterns", "widths", "activation", "temperature", "dimension", "separate", "sites")
        meta = {
            "surface_schema": SCHEMA_VERSION,
            "haljax": __version__,
            "network": {name: getattr(net, name) for name in names},
            "invariants": _describe(net.invariants),
        }
        leaves = jax.tree.leaves(self.params)
        arrays = {"meta": np.array(json.dumps(meta))} | {f"leaf_{i}": np.asarray(a) for i, a in enumerate(leaves)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(path, buffer.getvalue())


def load(path: str | Path, invariants: Callable[[jax.Array], jax.Array] | None = None) -> Surface:
    """Read a surface that `Surface.save` wrote.

    Parameters
    ----------
    invariants : for a surface whose invariants are a function of the user's own, which no file can hold.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : not a surface, of a version that this haljax does not know, or its invariants are not given.
    """
    import json
    from zipfile import BadZipFile

    try:
        with np.load(path, allow_pickle=False) as data:
            meta = json.loads(str(data["meta"]))
            leaves = [data[f"leaf_{i}"] for i in range(len(data.files) - 1)]
            version = meta["surface_schema"]
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a haljax surface ({error}); surfaces are written by Surface.save") from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}, written by haljax {meta.get('haljax')}; this haljax reads "
            f"version {SCHEMA_VERSION}: install the one that wrote it, or train the surface again"
        )
    stored = _restore(meta["invariants"])
    if stored is None and invariants is None:
        raise ValueError(f"{path} was made with the invariants {meta['invariants']['name']}: give them as invariants=")
    network = Network(stored if invariants is None else invariants, **meta["network"])
    like = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    treedef = jax.tree.structure(like)
    shapes = [a.shape for a in jax.tree.leaves(like)]
    if [a.shape[1:] for a in leaves] != shapes:
        raise ValueError(f"{path} holds parameters of other shapes than its network has: were other invariants given?")
    return Surface(network, jax.tree.unflatten(treedef, [jnp.asarray(a) for a in leaves]))


def _describe(invariants: Any) -> dict[str, Any]:
    from haljax.lattice.symmetry import Invariants

    if isinstance(invariants, Invariants):
        return {"exponents": invariants.exponents, "coefficients": invariants.coefficients}
    return {"name": getattr(invariants, "__qualname__", type(invariants).__name__)}


def _restore(described: dict[str, Any]) -> Any:
    from haljax.lattice.symmetry import Invariants

    if "exponents" not in described:
        return None
    return Invariants(*(tuple(map(tuple, described[name])) for name in ("exponents", "coefficients")))


def bucket(n: int) -> int:
    """The least of 1, 32, 256 and then numbers of three significant bits that is no less than n.

    A program costs a second to compile, some hundred points more cost milliseconds.
    """
    if n <= 256:
        return next(size for size in (1, 32, 256) if n <= size) if n else 0
    step = 1 << max(0, n.bit_length() - 3)
    return -(-n // step) * step


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(network: Network, what: str, params: Params, eta: jax.Array, temperature: jax.Array) -> Any:
    def each(function: Callable, eta: jax.Array, T: jax.Array) -> jax.Array:
        return jax.vmap(function, (None, 0, None, None))(network, params, eta, T)

    def mean(eta: jax.Array, T: jax.Array) -> jax.Array:  # one reverse pass for all members
        return ideal(network, eta, T) + jnp.mean(each(excess, eta, T))

    def spread(eta: jax.Array, T: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu = each(chemical_potential, eta, T)
        return mu.mean(0), mu.std(0)

    at: Callable[[jax.Array, jax.Array], Any] = {
        "free_energy": mean,
        "chemical_potential": jax.grad(mean),
        "hessian": jax.hessian(mean),
        "energy": lambda eta, T: jnp.mean(each(energy, eta, T)),
        "spread": spread,
    }[what]
    if eta.shape[0] <= CHUNK:
        return jax.vmap(at)(eta, temperature)
    return jax.lax.map(lambda point: at(*point), (eta, temperature), batch_size=CHUNK)
