from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.free_energy import network as module
from haljax.free_energy.network import (
    Network,
    Surface,
    bucket,
    chemical_potential,
    energy,
    excess,
    free_energy,
    hessian,
    ideal,
    idnn,
    load,
)
from haljax.lattice.ideal import fields, negentropy
from haljax.lattice.units import KB

from .half_cube import GROUP as HALF_CUBE_GROUP
from .half_cube import PATTERNS as HALF_CUBE
from .square import GROUP, INVARIANTS, PATTERNS, inside, network

T = 300.0


def published(x):
    """h0 to h11 of LixCoO2 (arXiv:2503.07619)."""
    x0, x1, x2, x3, x4, x5, x6 = (x[..., i] for i in range(7))
    pairs = ((x1, x2), (x3, x6), (x4, x5))
    p2, p4 = ([a**n + b**n for a, b in pairs] for n in (2, 4))
    both = [a**2 * b**2 for a, b in pairs]
    power = lambda n: sum(x[..., i] ** n for i in range(1, 7))
    cross = lambda a, b: sum(a[i] * b[j] for i in range(3) for j in range(3) if i != j)
    h10 = (x1**2 - x2**2) * (x3 * x5 + x4 * x6) * (x3 * x4 - x5 * x6) + x1 * x2 * (x3**2 - x6**2) * (x4**2 - x5**2)
    return jnp.stack(
        [
            x0,
            2 / 3 * power(2),
            8 / 3 * power(4),
            2 / 3 * cross(p2, p2),
            16 / 3 * sum(both),
            32 / 3 * power(6),
            8 / 3 * cross(p4, p2),
            16 / 3 * cross(both, p2),
            32 / 3 * sum(b * a for a, b in zip(p2, both, strict=True)),
            8 * p2[0] * p2[1] * p2[2],
            64 / 5 * h10,
            64 * 5**0.5 * x1 * x2 * x3 * x4 * x5 * x6,
        ],
        axis=-1,
    )


@cache
def parameters(net, members=3):
    return jax.jit(jax.vmap(net.init))(jax.random.split(jax.random.key(0), members))


def one_of(net):
    return jax.tree.map(lambda a: a[0], jax.tree.map(np.asarray, parameters(net)))


def ensemble(net):
    return Surface(net, parameters(net)._replace(offset=np.arange(3.0)))


free_energy_of, energy_of = (jax.jit(of, static_argnums=0) for of in (free_energy, energy))


@partial(jax.jit, static_argnums=0)
def everything(net, params, eta, T):
    """g (n,), mu (n, d) and Hessian (n, d, d) of one network at eta (n, d): one program."""
    return tuple(
        jax.vmap(of, (None, None, 0, None))(net, params, eta, T) for of in (free_energy, chemical_potential, hessian)
    )


@pytest.mark.parametrize("activation, temperature", [("tanh", True), ("softplus", False)])
def test_derivatives(activation, temperature):
    net = network(activation=activation, temperature=temperature)
    eta, step = inside(3), 1e-5
    ends = [eta[:, None] + sign * step * np.eye(3)[None] for sign in (1, -1)]  # (points, coordinates, 3)
    g, mu, H = everything(net, one_of(net), np.concatenate([eta, *(e.reshape(-1, 3) for e in ends)]), T)
    slope = lambda a: (a[3:12] - a[12:]).reshape(3, 3, *a.shape[1:]) / (2 * step)
    # truncation h^2 f'''/6 ~ 1e-8, rounding 1e-16 / 1e-5
    np.testing.assert_allclose(mu[:3], slope(g), atol=1e-8)
    np.testing.assert_allclose(H[:3], slope(mu), atol=1e-6)
    np.testing.assert_allclose(H, np.swapaxes(H, 1, 2), atol=1e-14)


def test_energy_is_the_derivative_of_beta_g():
    net = network(temperature=True)
    params = one_of(net)._replace(offset=np.array(0.7))
    beta, step = 1 / (KB * T), 1e-3
    for eta in inside(3):
        g = [free_energy_of(net, params, eta, 1 / (KB * b)) for b in (beta + step, beta - step)]
        slope = ((beta + step) * g[0] - (beta - step) * g[1]) / (2 * step)
        np.testing.assert_allclose(energy_of(net, params, eta, T), slope, atol=1e-9)


def test_ideal_term_is_that_of_the_lattice():
    net = Network(published, HALF_CUBE, sites=2)
    eta = np.array([0.4, 0.1, -0.05, 0.03, 0.02, 0.0, -0.1])
    np.testing.assert_allclose(ideal(net, eta, T), 2 * KB * T * negentropy(HALF_CUBE, eta), rtol=1e-14)
    np.testing.assert_allclose(jax.grad(ideal, 1)(net, eta, T), 2 * KB * T * fields(HALF_CUBE, eta), rtol=1e-12)


def test_ideal_term_is_exact():
    """As many order parameters as sublattices: the fractions are explicit."""
    patterns, x = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([0.7, 0.2])
    net = Network(lambda eta: eta**2, patterns)
    eta = patterns @ x / 2
    np.testing.assert_allclose(
        ideal(net, eta, T), KB * T * np.mean(x * np.log(x) + (1 - x) * np.log(1 - x)), rtol=1e-13
    )
    slope, bend = jax.jit(lambda e: (jax.grad(ideal, 1)(net, e, T), jax.hessian(ideal, 1)(net, e, T)))(eta)
    S = patterns.T
    np.testing.assert_allclose(slope, KB * T / 2 * np.log(x / (1 - x)) @ S, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(bend, KB * T / 2 * S.T @ np.diag(1 / (x * (1 - x))) @ S, rtol=1e-12, atol=1e-14)


def test_ideal_term_is_added_and_has_no_energy():
    net = network(temperature=True)
    bare, params, eta = replace(net, patterns=None), one_of(net), inside(1)[0]
    for t in (200.0, 300.0):
        g = [free_energy_of(n, params, eta, t) for n in (net, bare)]
        # without the ideal term, G is not anchored at eta = 0 either
        zero = free_energy_of(bare, params, np.zeros(3), t)
        np.testing.assert_allclose(g[0], ideal(net, eta, t) + g[1] - zero, rtol=1e-12)
    of = jax.jit(jax.value_and_grad(lambda t: excess(net, params, eta, t)))
    value, slope = of(T)
    np.testing.assert_allclose(energy_of(net, params, eta, T), value - T * slope, rtol=1e-12)


def test_divergence_at_the_ends_and_beyond():
    net = network()
    params = one_of(net)
    corners = [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0.5, -0.5, 0], [1.3, 0.2, 0.1], [-0.2, 0, 0], [0.5, 0.9, 0.8]]
    ends = [[c, 0, 0] for c in (1e-8, 1e-10, 1 - 1e-10, 1 - 1e-8, -0.01, 0.01, 1.01, 0.99)]
    found = everything(net, params, np.array(ends + corners), T)
    mu0 = found[1][:, 0]
    # kT ln x: a hundredth of the vacancies moves mu by kT ln 100
    np.testing.assert_allclose([mu0[0] - mu0[1], mu0[2] - mu0[3]], KB * T * np.log(100), rtol=1e-4)
    assert mu0[4] < mu0[5] and mu0[6] > mu0[7]
    single = everything(net, params, np.array(ends + corners, np.float32), T)
    assert all(np.all(np.isfinite(a)) for a in found + single)


@pytest.mark.parametrize("net, group", [(network(), GROUP), (Network(published, HALF_CUBE), HALF_CUBE_GROUP[::7])])
def test_mu_has_the_symmetry_of_the_group(net, group):
    if net.dimension == 7:  # these 384 leave h0 to h9; h10 and h11 have signs that only half of them keep
        invariant = lambda x: published(x)[..., :10]
        net = replace(net, invariants=invariant)
    eta = 0.1 * np.random.default_rng(3).normal(size=net.dimension) + 0.4 * np.eye(net.dimension)[0]
    images = np.concatenate([eta[None], group @ eta])
    mu = np.asarray(jax.jit(jax.vmap(partial(chemical_potential, net, one_of(net)), (0, None)))(images, T))
    assert np.abs(mu[0, 1:]).max() > 1e-3
    np.testing.assert_allclose(mu[1:], group @ mu[0], atol=1e-12)


def test_anchor():
    for temperature in (False, True):
        net = network(temperature=temperature)
        params = one_of(net)._replace(offset=np.array(0.25))
        for T in (200.0, 300.0, 900.0):
            # what is left is kT u ln u at the clip
            np.testing.assert_allclose(free_energy_of(net, params, np.zeros(3), T), 0.25, atol=1e-12)


def test_features_of_their_own():
    net = network()
    assert net.inputs() == ((0,), tuple(range(len(INVARIANTS))))
    assert replace(net, separate=False).inputs() == ((), tuple(range(len(INVARIANTS))))
    line = Network(lambda eta: eta, [[1.0]])
    assert line.inputs() == ((0,), ())
    assert Network(lambda eta: eta**2, dimension=2).inputs() == ((), (0, 1))
    plain = idnn(INVARIANTS, 3)
    assert plain.widths == (150, 150, 150) and plain.patterns is None and not plain.separate
    assert ideal(plain, jnp.array([0.3, 0.0, 0.0]), T) == 0


def test_surface_is_the_mean_of_its_members():
    surface = ensemble(network())
    eta = jnp.asarray(inside(6)).reshape(2, 3, 3)
    alone = jax.vmap(everything, (None, 0, None, None))(surface.network, surface.params, eta.reshape(6, 3), T)
    g, mu, H = (np.asarray(a).reshape(3, 2, 3, *a.shape[2:]) for a in alone)
    means = (surface.free_energy(eta, T), surface.chemical_potential(eta, T), surface.hessian(eta, T))
    for found, members in zip(means, (g, mu, H), strict=True):
        np.testing.assert_allclose(found, members.mean(0), atol=1e-13)
    np.testing.assert_allclose(surface.member(1).free_energy(eta, T), g[1], atol=1e-13)
    mean, std = surface.spread(eta, T)
    np.testing.assert_allclose(mean, mu.mean(0), atol=1e-13)
    np.testing.assert_allclose(std, mu.std(0), atol=1e-13)


def test_surface_under_transformations():
    surface = ensemble(network())
    eta = jnp.asarray(inside(6)).reshape(2, 3, 3)
    of = lambda s, e: s.free_energy(e, T)
    g, mu = surface.free_energy(eta, T), surface.chemical_potential(eta, T)
    value, slope = jax.jit(jax.value_and_grad(lambda e: of(surface, e).sum()))(eta)
    np.testing.assert_allclose([value], [g.sum()], atol=1e-12)
    np.testing.assert_allclose(slope, mu, atol=1e-13)
    np.testing.assert_allclose(jax.jit(of)(surface, eta), g, atol=1e-13)
    np.testing.assert_allclose(jax.vmap(of, (None, 0))(surface, eta), g, atol=1e-13)


def test_surface_in_chunks_with_temperatures(monkeypatch):
    surface = ensemble(network(temperature=True))
    eta, temperatures = inside(50), np.linspace(200, 400, 50)
    whole = surface.energy(eta, temperatures)
    module._evaluate.clear_cache()
    monkeypatch.setattr(module, "CHUNK", 16)
    parts = surface.energy(eta, temperatures)
    module._evaluate.clear_cache()
    np.testing.assert_allclose(whole, parts, atol=1e-13)
    np.testing.assert_allclose(whole[7], surface.energy(eta[7], temperatures[7]), atol=1e-13)


def test_sizes_share_programs():
    surface = ensemble(network())
    eta = inside(64)
    surface.free_energy(eta[:57], T)
    compiled = module._evaluate._cache_size()
    for n in (58, 60, 64):
        assert surface.free_energy(eta[:n], T).shape == (n,)
    assert module._evaluate._cache_size() == compiled
    assert all(n <= bucket(n) <= max(256, 1.25 * n) for n in range(3000)) and bucket(1) == 1
    assert surface.free_energy(eta[:0], T).shape == (0,)


def test_float32_near_float64():
    net = network()
    params, eta = one_of(net), inside(20, margin=0.05)
    small = jax.tree.map(lambda a: a.astype(np.float32), params)
    found, exact = everything(net, small, eta.astype(np.float32), T), everything(net, params, eta, T)
    for a, b, tolerance in zip(found, exact, (1e-5, 1e-5, 1e-4), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_nan_stays_where_it_is():
    eta = inside(4)
    eta[2, 1] = np.nan
    mu = np.asarray(ensemble(network()).chemical_potential(eta, T))
    assert np.all(np.isnan(mu[2]) == [True, True, True]) and np.all(np.isfinite(mu[[0, 1, 3]]))


def test_files(tmp_path):
    eta = inside(5)
    for net in (network(temperature=True), idnn(INVARIANTS, 3, (8, 8), "softplus")):
        surface = ensemble(net)
        surface.save(tmp_path / "surface.npz")
        again = load(tmp_path / "surface.npz")
        assert again.network == net and hash(again.network) == hash(net)
        np.testing.assert_array_equal(again.free_energy(eta, T), surface.free_energy(eta, T))
    own = ensemble(Network(published, HALF_CUBE, (4,)))
    own.save(tmp_path / "own.npz")
    with pytest.raises(ValueError, match="invariants published: give them"):
        load(tmp_path / "own.npz")
    assert load(tmp_path / "own.npz", published).network == own.network
    with pytest.raises(ValueError, match="other shapes"):
        load(tmp_path / "own.npz", lambda eta: published(eta)[..., :5])


def test_files_that_are_none(tmp_path, monkeypatch):
    path = tmp_path / "surface.npz"
    with pytest.raises(FileNotFoundError):
        load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a haljax surface"):
        load(path)
    monkeypatch.setattr(module, "SCHEMA_VERSION", 99)
    ensemble(network()).save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="schema version 99.*train the surface again"):
        load(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(widths=()), "at least one hidden layer"),
        (dict(activation="relu"), "choose one of tanh, softplus"),
        (dict(patterns=None), "number of order parameters"),
        (dict(patterns=[1.0, 2.0]), "patterns of shape"),
        (dict(patterns=[[1.0, -1.0]]), "at eta = 0 the patterns leave sublattices filled"),
        (dict(dimension=5), "dimension is 5"),
    ],
)
def test_impossible_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        Network(INVARIANTS, **({"patterns": PATTERNS} | arguments))


def test_impossible_questions():
    surface = ensemble(network())
    with pytest.raises(ValueError, match="trained at 300 K and knows no other"):
        surface.free_energy(inside(2), 350.0)
    with pytest.raises(ValueError, match="positive number of kelvin"):
        surface.free_energy(inside(2), 0.0)
    with pytest.raises(ValueError, match="last axis must be the 3 order parameters"):
        surface.free_energy(np.zeros((4, 2)), T)
    with pytest.raises(ValueError, match="temperature=True"):
        surface.energy(inside(2), T)
