from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.free_energy import training
from haljax.free_energy.data import labels
from haljax.free_energy.mean_field import exact_labels as exact_field_labels
from haljax.free_energy.mean_field import mean_field
from haljax.free_energy.network import Network, chemical_potential, energy, features, hessian, ideal, scaling_of
from haljax.free_energy.training import TrainingSettings, train

from .half_cube import PATTERNS as HALF_CUBE
from .square import PATTERNS, exact, exact_energy, exact_labels, inside, network
from .test_network import published

T = 300.0
SHORT = TrainingSettings(epochs=200, patience=200)
BRIEF = TrainingSettings(epochs=20)
exact_mu = jax.jit(jax.vmap(jax.grad(exact)))


def errors(surface, eta, temperatures=T):
    """Root mean square error (3,) of mu."""
    mu = exact_mu(eta, np.broadcast_to(temperatures, len(eta)).astype(float))
    return np.sqrt(np.mean((surface.chemical_potential(eta, temperatures) - mu) ** 2, axis=0))


def test_recovers_a_mean_field():
    coefficients = np.array([0.1, -0.3, 0.2, 0.4, -0.2, 0.3, 0.1, -0.2, 0.1, 0.3, 0.5, 0.4])
    oracle = mean_field(lambda eta: published(eta) @ coefficients * eta[0] + 0.8 * (eta[0] - 0.5) ** 2, HALF_CUBE)
    rng = np.random.default_rng(0)
    eta = 0.5 + rng.uniform(-0.35, 0.35, (600, 1)), rng.normal(size=(600, 6)) * rng.uniform(0, 0.2, (600, 1))
    eta = np.concatenate(eta, axis=1)
    x = eta @ HALF_CUBE - 0.5
    eta[:, 1:] *= np.minimum(1, 0.1 / np.maximum(1e-9, np.abs(x).max(1)))[:, None]  # no sublattice empty or full
    mu = np.asarray(oracle.chemical_potential(eta, T))
    net = Network(published, HALF_CUBE, (32, 32))
    surface, history = train(
        jax.random.key(0), net, labels(eta[:400], T, mu[:400]), settings=replace(SHORT, epochs=300, batch=32)
    )
    error = np.sqrt(np.mean((surface.chemical_potential(eta[400:], T) - mu[400:]) ** 2, axis=0))
    # mu_0 has a spread of 0.25 eV, the others of 0.03 eV: 2 % and 5 % of them
    assert error[0] < 5e-3 and np.all(error[1:] < 1.5e-3), error
    assert history.used.all() and history.best_validation[0] < 2e-3


def test_energies_teach_temperature():
    """From one temperature's mu, energies tell how mu changes with the temperature: beta g = int e dbeta."""
    net, temperatures = network(temperature=True), np.array([300.0, 300.0, 240.0, 360.0])
    data = exact_labels(300, temperatures, energies=True)
    far = data.temperature != T
    data = data.replace(mu=np.where(far[:, None], np.nan, data.mu))
    eta = inside(60, seed=5, margin=0.05)
    surface, _ = train(jax.random.key(0), net, data, settings=replace(SHORT, epochs=500, patience=500))
    change = np.sqrt(np.mean((exact_mu(eta, np.full(60, 350.0)) - exact_mu(eta, np.full(60, T))) ** 2, axis=0))
    assert np.all(errors(surface, eta, 350.0) < 0.3 * change), (errors(surface, eta, 350.0), change)
    e = jax.jit(jax.vmap(exact_energy, (0, None)))(eta, 330.0)
    # absolute, since eta = 0 is a state without entropy
    np.testing.assert_allclose(surface.energy(eta, 330.0), e, atol=1e-2)
    # beta g is integrated from there, which these labels do not reach: a constant of it remains
    g = jax.jit(jax.vmap(exact, (0, None)))
    gaps = [(surface.free_energy(eta, t) - g(eta, t)) / t for t in (280.0, 300.0, 330.0)]
    np.testing.assert_allclose(np.ptp(gaps) * T, 0, atol=5e-3)


@pytest.mark.slow
def test_hessians_help_where_labels_are_scarce():
    data, eta = exact_labels(12, T, hessians=True, margin=0.08), inside(200, seed=7, margin=0.1)
    found = [
        errors(train(jax.random.key(0), network(), data, members=3, settings=replace(SHORT, hessian_weight=w))[0], eta)
        for w in (0.0, 1.0)
    ]
    assert np.all(found[1] < 0.7 * found[0]), found


def test_second_derivatives_that_vanish_do_not_count_for_ever():
    """Composition and order do not couple here, but for the noise of the labels."""
    field = mean_field(
        lambda eta: 0.4 * eta[0] ** 2 - 0.15 * (eta[1] ** 2 + eta[2] ** 2) + 0.3 * eta[1] ** 2 * eta[2] ** 2, PATTERNS
    )
    data, eta = exact_field_labels(field, inside(40, margin=0.05), T), inside(200, seed=7, margin=0.1)
    noise = 1e-5 * np.random.default_rng(0).normal(size=data.hessian.shape)
    data = data.replace(hessian=data.hessian + noise)
    found = []
    for weight in (0.0, 0.1):
        surface, _ = train(jax.random.key(0), network(), data, settings=replace(SHORT, hessian_weight=weight))
        gap = surface.chemical_potential(eta, T) - field.chemical_potential(eta, T)
        found.append(np.sqrt(np.mean(gap**2, axis=0)))
    assert np.all(found[1] < found[0]), found


def test_noisy_labels_count_less():
    data, eta = exact_labels(100, T), inside(100, seed=9, margin=0.05)
    noisy = np.arange(100) % 2 == 0
    mu = data.mu + 0.2 * noisy[:, None] * np.random.default_rng(0).normal(size=data.mu.shape)
    data = data.replace(mu=mu)
    told = data.replace(mu_error=np.where(noisy[:, None], 0.2, 1e-4) * np.ones(3))
    blind, aware = (errors(train(jax.random.key(0), network(), d, settings=SHORT)[0], eta).max() for d in (data, told))
    assert aware < 0.3 * blind, (aware, blind)


def test_components_of_unequal_size_are_learned_alike():
    """mu_0 spreads ten times wider than mu_1 and mu_2 here; a component that is zero so far does no harm."""
    data = exact_labels(100, T)
    data = data.replace(eta=data.eta * [1, 0.1, 0], mu=None)
    mu = np.asarray(exact_mu(data.eta, data.temperature))
    surface, _ = train(jax.random.key(0), network(), data.replace(mu=mu), settings=SHORT)
    error = np.sqrt(np.mean((surface.chemical_potential(data.eta, T) - mu) ** 2, axis=0))
    assert mu[:, 0].std() > 10 * mu[:, 1].std()
    assert error[0] < 0.05 * mu[:, 0].std() and error[1] < 0.1 * mu[:, 1].std() and error[2] < 1e-12


def test_a_member_alone_is_as_in_its_ensemble(monkeypatch):
    """Also where it is padded otherwise."""
    data, settings = exact_labels(100, T), replace(BRIEF, dtype="float64")
    together, history = train(jax.random.key(3), network(), data, members=3, settings=settings)
    again, _ = train(jax.random.key(3), network(), data, members=3, settings=settings)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, together.params, again.params)))
    monkeypatch.setattr(training, "room", lambda n: 256)  # batches stay 32
    alone, single = train(jax.random.key(3), network(), data, members=[2], settings=settings)
    # twenty epochs amplify the rounding of sums taken in another order
    np.testing.assert_allclose(history.validation[2], single.validation[0], rtol=1e-8)
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[2], b[0], rtol=1e-6, atol=1e-8)
    assert not np.allclose(history.validation[0], history.validation[1])


def test_side_by_side_is_one_after_another():
    data, settings = exact_labels(100, T), replace(BRIEF, dtype="float64")
    found = [
        train(jax.random.key(3), network(), data, members=3, settings=replace(settings, vmapped=v))
        for v in (False, True)
    ]
    np.testing.assert_allclose(found[0][1].training, found[1][1].training, rtol=1e-8)
    np.testing.assert_allclose(found[0][0].params.offset, found[1][0].params.offset, rtol=1e-6)


def test_growing_data_shares_programs():
    data, programs = exact_labels(100, T), (training._block, training._init, training._geometry)
    for members in (1, 2):  # the cache also tells apart how the same program is called
        longer = replace(BRIEF, epochs=45)
        train(jax.random.key(0), network(), data.select(slice(0, 70)), settings=longer, members=members)
    compiled = [program._cache_size() for program in programs]
    for n, members in ((65, 2), (80, 3), (100, 1)):
        settings = replace(BRIEF, learning_rate=1e-5 * n, patience=n, error_floor=1e-3 * n, epochs=n // 4)
        train(jax.random.key(0), network(), data.select(slice(0, n)), settings=settings, members=members)
    grown = [program._cache_size() for program in programs]
    assert grown[0] == compiled[0] and grown[2] == compiled[2]
    assert len({training.room(n) for n in range(100, 801)}) == 4
    assert all(max(32, n) <= training.room(n) < max(33, 2 * n) for n in range(2, 3000))


def test_the_loss_is_that_of_the_surface():
    """Labels that a network made itself cost nothing, and others what the settings say."""
    net = network(temperature=True)
    rng = np.random.default_rng(0)
    data = labels(inside(6), np.resize([250.0, 300.0, 350.0], 6), rng.normal(size=(6, 3)))
    scaling = scaling_of(net, data.eta, data.temperature, data.mu)
    params = jax.jit(net.init)(jax.random.key(0), scaling)._replace(offset=jnp.array(0.3))
    names, derivatives = ("mu", "energy", "hessian"), (chemical_potential, energy, hessian)
    at = jax.jit(jax.vmap(lambda eta, t: [of(net, params, eta, t) for of in derivatives]))
    own = dict(zip(names, at(data.eta, data.temperature), strict=True))
    settings = TrainingSettings(dtype="float64", energy_weight=0.7, hessian_weight=0.2)
    program = training._Program(False, 32, True, True)
    z0 = features(net, scaling, jnp.zeros(3))

    @jax.jit
    def loss(rows):
        return jnp.mean(jax.vmap(lambda row: training._squares(program, net, params, row, z0))(rows))

    assert loss(training._rows(net, scaling, data.replace(**own), settings, 6)) < 1e-20
    # A label that errs everywhere by the spread of its kind, beyond the ideal term's, costs its weight.
    ideal_of = partial(ideal, net)
    beyond = {"energy": None, "mu": jax.grad(ideal_of), "hessian": jax.hessian(ideal_of)}
    for name, weight in (("energy", 0.7), ("mu", 1.0), ("hessian", 0.2)):
        value, known = np.asarray(own[name]), beyond[name]
        learned = value if known is None else value - np.asarray(jax.vmap(known)(data.eta, data.temperature))
        centred = (learned - learned.mean(0)) ** 2
        spread = np.sqrt(centred.mean(0))
        if name == "mu":
            spread[1:] = np.sqrt(centred[:, 1:].mean())
        shift = spread[None]
        if name == "hessian":  # whose spread is about zero, and twice that of the opposite sign
            shift, weight = -2 * learned, 4 * weight
        moved = data.replace(**own | {name: value + shift})
        np.testing.assert_allclose(loss(training._rows(net, scaling, moved, settings, 6)), weight, rtol=1e-9)


def test_history_and_stopping():
    data = exact_labels(100, T)
    data = data.replace(mu=data.mu + 0.1 * np.random.default_rng(1).normal(size=data.mu.shape))
    settings = replace(SHORT, patience=20, plateau_patience=5)
    surface, history = train(jax.random.key(0), network(), data, members=2, settings=settings)
    assert history.stopped == ("early stopping",) * 2 and surface.members == 2
    for k in range(2):
        seen = history.validation[k][np.isfinite(history.validation[k])]
        assert len(seen) == history.best_epoch[k] + 21 < 200
        assert seen.min() == history.best_validation[k] == seen[history.best_epoch[k]]
        rate = history.learning_rate[k][: len(seen)]
        np.testing.assert_allclose(rate[0], 2e-2, rtol=1e-6)
        assert rate[-1] < 0.3 * rate[0] and np.all(np.diff(rate) <= 0)
    _, history = train(jax.random.key(0), network(), data, settings=replace(BRIEF, validation=0.0))
    np.testing.assert_array_equal(history.training, history.validation)
    assert history.stopped == ("all epochs",) and history.training.shape == (1, 20)


def test_going_on_from_a_start():
    data = exact_labels(100, T)
    first, before = train(jax.random.key(0), network(), data, members=2, settings=SHORT)
    second, after = train(
        jax.random.key(0), network(), data, members=2, settings=replace(BRIEF, learning_rate=1e-4), start=first.params
    )
    # a start from nothing costs 1; the least of many losses is not met at once
    assert np.all(after.validation[:, 0] < 2 * before.best_validation)
    np.testing.assert_array_equal(second.params.scaling.scale, first.params.scaling.scale)
    with pytest.raises(ValueError, match="2,\\) members, but 3"):
        train(jax.random.key(0), network(), data, members=3, start=first.params)
    with pytest.raises(ValueError, match="start was trained at 300 K"):
        train(jax.random.key(0), network(), exact_labels(20, 350.0), members=2, start=first.params)


def test_a_diverged_member_is_left_out():
    data = exact_labels(100, T)
    first, _ = train(jax.random.key(0), network(), data, members=2, settings=BRIEF)
    start = first.params._replace(offset=first.params.offset.at[1].set(jnp.nan))
    broken = jax.tree.map(lambda a: a.at[1].set(jnp.nan), start.layers)
    surface, history = train(
        jax.random.key(0), network(), data, members=2, settings=BRIEF, start=start._replace(layers=broken)
    )
    assert surface.members == 1 and history.stopped == ("all epochs", "diverged")
    assert history.used.tolist() == [True, False] and history.restarted.tolist() == [False, True]
    assert np.all(np.isfinite(surface.chemical_potential(data.eta, T)))
    with pytest.raises(RuntimeError, match="all 2 members diverged"):
        train(jax.random.key(0), network(), data, members=2, settings=replace(BRIEF, learning_rate=1e30))


def test_a_member_that_diverges_once_is_trained_again(monkeypatch):
    data, real, rates = exact_labels(100, T), training._train, []

    def fails_once(keys, network, scaling, labels, settings, trained):
        found, history = real(keys, network, scaling, labels, settings, trained)
        rates.append(settings.learning_rate)
        if len(rates) == 1:
            history = history._replace(used=np.array([True, False]), stopped=("all epochs", "diverged"))
        return found, history

    monkeypatch.setattr(training, "_train", fails_once)
    surface, history = train(jax.random.key(0), network(), data, members=2, settings=BRIEF)
    assert rates == [2e-2, 2e-3] and surface.members == 2 and history.stopped == ("all epochs",) * 2
    assert history.restarted.tolist() == [False, True]
    np.testing.assert_allclose(history.learning_rate[:, 0], [2e-2, 2e-3], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_other_optimizers(optimizer):
    settings = replace(SHORT, optimizer=optimizer, epochs=100, learning_rate=5e-3)
    _, history = train(jax.random.key(0), network(), exact_labels(100, T), settings=settings)
    assert history.best_validation[0] < 0.1


def test_unknown_labels_are_left_out():
    data = exact_labels(100, T)
    mu = data.mu.copy()
    mu[::2, 1] = np.nan
    surface, _ = train(jax.random.key(0), network(), data.replace(mu=mu), settings=SHORT)
    # symmetry gives mu_1 from mu_2
    assert np.all(errors(surface, inside(60, seed=3, margin=0.05)) < 0.02)


def broken(**changes):
    data = exact_labels(20, T)
    fields = {k: np.array(getattr(data, k), float) for k in ("eta", "temperature", "mu", "mu_error", "energy")}
    for name, (index, value) in changes.items():
        fields[name][index] = value
    return data.replace(**fields)


@pytest.mark.parametrize(
    "data, message",
    [
        (broken(eta=((3, 1), np.nan)), "row 3 of the labels: eta is not finite"),
        (broken(temperature=(4, np.nan)), "row 4 of the labels: the temperature is not a positive number"),
        (broken(mu=((5, 0), np.inf)), "row 5 of the labels: mu is infinite"),
        (broken(mu=(6, np.nan)), "row 6 of the labels: mu is NaN in all components"),
        (broken(mu_error=((7, 2), -1.0)), "row 7 of the labels: mu_error is negative"),
        (broken(energy=(8, np.inf)), "row 8 of the labels: energy is infinite"),
        (broken(temperature=(9, 350.0)), "temperature is not an input of the network"),
        (exact_labels(20, T).select(slice(0, 1)), "1 labels cannot train"),
    ],
)
def test_labels_that_cannot_be_used(data, message):
    with pytest.raises(ValueError, match=message):
        train(jax.random.key(0), network(), data, settings=BRIEF)


@pytest.mark.parametrize(
    "change", [dict(optimizer="sgd"), dict(learning_rate=0.0), dict(batch=0), dict(validation=1.0), dict(dtype="half")]
)
def test_impossible_settings(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        TrainingSettings(**change)
