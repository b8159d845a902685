"""Batches of biased replicas with a real, small model.

Bit for bit means within one program: at one batch width and list capacity. Otherwise sums are ordered differently.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.build import bulk

from haljax.hal import trajectory
from haljax.hal.controller import criterion, mean_norm, relative_force_error
from haljax.hal.trajectory import BLOCK, Conditions, HALParameters, Protocol, _begin, _block, run
from haljax.md import Guards, Status, hamiltonian
from haljax.potentials import evaluate_system, parameters_of
from haljax.structures import System, from_atoms, neighbour_list, required_stencil, stack

PLAIN = Protocol(check_interval=10, cell_interval=0, swap_interval=0, fixed_shape=False, softmax=False, skin=0.7)
MOVES = PLAIN._replace(cell_interval=10, swap_interval=20, softmax=True)
MASSES = jnp.array([26.98, 63.55])
WIDTH, CAPACITY = 4, 48
DENSE = 64  # neighbours an atom under pressure; one for all, to compile once


def conditions(width=WIDTH, **changed):
    """What `changed` says, each a number, one a replica, or for ramps a pair or one pair a replica."""

    def each(x, *shape):
        return jnp.asarray(np.broadcast_to(np.asarray(x, dtype=float), (width, *shape)))

    ramps = {"kT": 600 * units.kB, "pressure": np.nan, "tau_rel": 0.2}
    numbers = {
        "n_steps": 100, "dt": 2 * units.fs, "friction": 0.01 / units.fs, "tolerance": 1e3, "epsilon": 0.2,
        "tau_history": 40, "tau_delay": 40, "cell_step": 0.01,
    }  # fmt: skip
    guards = {
        "min_distance": 0.5, "max_force": 100.0, "max_temperature": 1e4 * units.kB, "max_pressure": 100 * units.GPa,
    }  # fmt: skip
    assert set(changed) <= set(ramps | numbers | guards)
    for group, shape in ((ramps, (2,)), (numbers, ()), (guards, ())):
        for name in group:
            group[name] = each(changed.get(name, group[name]), *shape)
    return Conditions(**ramps, **numbers | {"n_steps": numbers["n_steps"].astype(int)}, guards=Guards(**guards))


@pytest.fixture(scope="module")
def params(small_model):
    factor = small_model.spread.factor
    deviations = jax.random.normal(jax.random.key(1), (4, factor.shape[1])) @ factor.T
    return HALParameters(parameters_of(small_model), deviations)


@pytest.fixture(scope="module")
def systems(small_model, alloy):
    """Four starts, the last of 15 atoms in an array of 16."""
    structures = [alloy(70 + i) for i in range(WIDTH)]
    del structures[3][7]
    return stack([from_atoms(atoms, small_model.basis.elements, size=16) for atoms in structures])


@pytest.fixture(scope="module")
def go(small_model, params, systems):
    def go(which=(0, 1, 2, 3), protocol=PLAIN, systems=systems, idle=(), capacity=CAPACITY, on_block=None, **changed):
        """Replicas `which` of `systems`, each with the key of its number."""
        which = np.array(which)
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf[which]), systems)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(which)
        return run(
            small_model.basis, protocol, params, conditions(len(which), **changed), chosen, MASSES, keys,
            idle=np.isin(np.arange(len(which)), idle), capacity=capacity, on_block=on_block or (lambda seen: None),
        )  # fmt: skip

    return go


@pytest.fixture(scope="module")
def plain(go):
    return go(n_steps=200)


@pytest.fixture(scope="module")
def look(small_model, params):
    """Everything about one structure, with a complete list made on the host."""
    evaluate = jax.jit(evaluate_system, static_argnums=0)

    def look(system):
        found = neighbour_list(system, small_model.basis.cutoff).padded(16, CAPACITY)
        system, found = jax.tree.map(jnp.asarray, (system, found))
        return evaluate(small_model.basis, params.linear, system, found, params.deviations), system.species >= 0

    return look


def one(system, i):
    return System(*(leaf[i] for leaf in system))


def assert_same(a, i, b, j):
    """Replica i of run a and j of run b, bit for bit: outcome, candidate and all that was seen."""
    assert (a.status[i], a.step[i], a.candidate_step[i]) == (b.status[j], b.step[j], b.candidate_step[j])
    real = a.candidate.species[i] >= 0
    for x, y in zip(one(a.candidate, i), one(b.candidate, j), strict=True):
        np.testing.assert_array_equal(*(z[real] if len(z) == len(real) else z for z in (x, y)))
    rows = min(len(a.seen.step), len(b.seen.step))
    for x, y in zip(a.seen, b.seen, strict=True):
        np.testing.assert_array_equal(x[:rows, i], y[:rows, j])


def test_a_plain_run(plain, systems):
    np.testing.assert_array_equal(plain.status, Status.FINISHED)
    np.testing.assert_array_equal(plain.step, 200)
    np.testing.assert_array_equal(plain.candidate_step, 200)
    np.testing.assert_array_equal(plain.seen.step, np.repeat(np.arange(10, 201, 10)[:, None], WIDTH, axis=1))
    np.testing.assert_array_equal(plain.seen.status[:-1], Status.RUNNING)
    np.testing.assert_array_equal(plain.candidate.species, systems.species)
    np.testing.assert_array_equal(plain.candidate.cell, systems.cell)
    np.testing.assert_array_equal(plain.seen.cell_moves, -1)
    np.testing.assert_array_equal(plain.seen.swap_moves, -1)
    assert np.all(np.isfinite(plain.seen.pressure)) and plain.capacity == CAPACITY


def test_company_and_order_do_not_matter(go, plain):
    turned = go((2, 0, 3, 1), n_steps=200)
    for j, i in enumerate((2, 0, 3, 1)):
        assert_same(plain, i, turned, j)
    # Alone with idle ones beside it, as a campaign fills its batches.
    filled = go((1, 1, 1, 1), n_steps=200, idle=(1, 2, 3))
    assert_same(plain, 1, filled, 0)
    np.testing.assert_array_equal(filled.step[1:], 0)
    # In a batch of one, a program of its own: to rounding, which chaos amplifies slowly.
    alone = go((1,), n_steps=200)
    np.testing.assert_allclose(alone.candidate.positions[0], plain.candidate.positions[1], atol=1e-9)
    np.testing.assert_allclose(alone.seen.criterion[:, 0], plain.seen.criterion[:, 1], rtol=1e-7)


@pytest.mark.parametrize("planted", ["close", "nan"])
def test_a_bad_replica_is_frozen_and_harms_nobody(go, plain, systems, planted):
    """Two atoms 0.26 Å apart, or momenta that are NaN."""
    positions, kT, blocks = systems.positions.copy(), np.full((WIDTH, 1), 600 * units.kB), []
    if planted == "close":
        positions[1, 5] = positions[1, 4] + 0.15
    else:
        kT[1] = np.nan
    bad = go(systems=systems._replace(positions=positions), n_steps=200, kT=kT, on_block=blocks.append)
    expected = {"close": {Status.TOO_CLOSE, Status.LARGE_FORCE, Status.TOO_HOT, Status.TOO_FAST, Status.NOT_FINITE},
                "nan": {Status.NOT_FINITE}}  # fmt: skip
    assert bad.status[1] in expected[planted]
    assert bad.step[1] == 10 and bad.candidate_step[1] == 0  # never safe, so nothing to label
    np.testing.assert_array_equal(bad.candidate.positions[1], positions[1])
    for i in (0, 2, 3):
        assert_same(plain, i, bad, i)
    # It stays where it stopped, and what is shown of it stays, too.
    np.testing.assert_array_equal(bad.seen.step[:, 1], 10)
    for leaf in (bad.seen.energy, bad.seen.temperature, bad.seen.criterion):
        np.testing.assert_array_equal(leaf[:, 1], np.broadcast_to(leaf[0, 1], leaf[:, 1].shape))
    assert len(blocks) == 2 and blocks[-1].step[-1, 1] == 10


def test_a_replica_that_ended_stays_as_it_is(go, plain):
    uneven = go(n_steps=[50, 200, 120, 10])
    np.testing.assert_array_equal(uneven.step, [50, 200, 120, 10])
    np.testing.assert_array_equal(uneven.status, Status.FINISHED)
    np.testing.assert_array_equal(uneven.candidate_step, uneven.step)
    assert_same(uneven, 1, plain, 1)
    short = go(n_steps=50)
    assert_same(uneven, 0, short, 0)
    for leaf in (uneven.seen.energy, uneven.seen.step, uneven.seen.criterion, uneven.seen.tau):
        np.testing.assert_array_equal(leaf[5:, 0], leaf[4, 0])
        np.testing.assert_array_equal(leaf[1:, 3], leaf[0, 3])
    np.testing.assert_array_equal(uneven.seen.status[4:, 0], Status.FINISHED)


def test_state_between_blocks(small_model, params, systems, plain):
    """The next step sets out with the force under the new tau, and stopped replicas keep every bit of their state."""
    basis = small_model.basis
    reach = basis.cutoff + PLAIN.skin
    stencils = [required_stencil(0.95 * cell, np.ones(3, bool), reach) for cell in systems.cell]
    stencil = tuple(int(n) for n in np.max(stencils, axis=0))
    batch = jax.tree.map(jnp.asarray, systems)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(WIDTH))
    limits = conditions(n_steps=[100, 200, 200, 60])
    state = _begin(basis, params, batch, MASSES, limits.kT[:, 0], keys, PLAIN.skin, CAPACITY, stencil)
    states = []
    for tick in (0, BLOCK):
        state, _ = _block(basis, PLAIN, params, limits, state, jnp.asarray(tick), BLOCK, stencil)
        states.append(state)
    force = jax.jit(hamiltonian(basis).force)
    for i in range(WIDTH):
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], s) for s in states)
        system = first.replica.system
        found = neighbour_list(jax.tree.map(np.asarray, system), basis.cutoff).padded(16, CAPACITY)
        assert first.replica.tau > 0
        np.testing.assert_allclose(
            first.replica.force, force(params.linear, system, found, first.replica.tau), atol=1e-9
        )
        if i in (0, 3):
            for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
                if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
                    old, new = jax.random.key_data(old), jax.random.key_data(new)
                np.testing.assert_array_equal(old, new)
        else:
            np.testing.assert_array_equal(second.safe.positions, plain.candidate.positions[i])


def test_what_is_seen_is_what_the_candidate_has(plain, look):
    for i in range(WIDTH):
        result, real = look(one(plain.candidate, i))
        n = np.sum(real)
        np.testing.assert_allclose(plain.seen.energy[-1, i], result.energy / n, rtol=1e-9)
        np.testing.assert_allclose(plain.seen.sigma[-1, i], result.sigma / n, rtol=1e-9)
        f = np.sqrt(np.mean(np.sum(np.asarray(result.force_deviations) ** 2, axis=-1), axis=0))
        f = f / (np.linalg.norm(result.forces, axis=-1) + 0.2)
        np.testing.assert_allclose(plain.seen.criterion[-1, i], np.max(f[np.asarray(real)]), rtol=1e-8)
        volume = abs(np.linalg.det(plain.candidate.cell[i]))
        kinetic = n * units.kB * plain.seen.temperature[-1, i]
        pressure = (kinetic + np.mean(result.virial[:3])) / volume / units.GPa
        np.testing.assert_allclose(plain.seen.pressure[-1, i], pressure, rtol=1e-8)


def test_bias_strength_follows_the_running_means(go, look):
    """One trajectory, stopped at each of its first four checks: tau by hand from what was there."""
    history, tau_rel = 25, 0.03  # so weak that no guard strikes
    r = go((2, 2, 2, 2), n_steps=[10, 20, 30, 40], tau_history=history, tau_delay=20, tau_rel=tau_rel)
    assert np.ptp(r.seen.energy[0]) == 0 and r.candidate_step.tolist() == [10, 20, 30, 40]
    mean = None
    for k in range(4):
        result, real = look(one(r.candidate, k))
        norms = np.array([mean_norm(v, real) for v in (result.forces, result.sigma_gradient)])
        mean = norms if mean is None else (1 - 10 / history) * mean + 10 / history * norms
        expected = tau_rel * mean[0] / mean[1] if k >= 1 else 0.0
        np.testing.assert_allclose(r.seen.tau[k, 3], expected, rtol=1e-8)
        assert r.seen.tau[k, k] == r.seen.tau[k, 3]


def test_ramps(go, look):
    """Temperature as demanded, all the way; the last relative bias is the ramp's end."""
    kT = np.array([300.0, 900.0]) * units.kB
    # Forgotten within 5 fs, so that looks 20 fs apart are independent.
    r = go(n_steps=600, kT=kT, friction=0.2 / units.fs, tau_rel=[0.0, 0.05], tau_history=10, tau_delay=0)
    target = 300 + 600 * r.seen.step / 600
    ratio = r.seen.temperature / (target - 600 * 10 / 600)  # the demand stands still between looks
    atoms = np.array([16, 16, 16, 15])
    for part in (ratio[: len(ratio) // 2], ratio[len(ratio) // 2 :]):
        error = np.sqrt(2 / (3 * atoms.sum() * len(part)))
        assert abs(np.average(part.mean(axis=0), weights=atoms) - 1) < 4 * error
    for i in range(WIDTH):
        result, real = look(one(r.candidate, i))
        tau = 0.05 * mean_norm(result.forces, real) / mean_norm(result.sigma_gradient, real)
        np.testing.assert_allclose(r.seen.tau[-1, i], tau, rtol=1e-8)


def test_guards_and_tolerance_stop_each_replica_with_its_status(go, plain):
    huge = 1e6
    r = go(
        min_distance=[2.0, 0, 0, 0], max_force=[huge, 1e-3, huge, huge], max_temperature=[huge, huge, 1e-3, huge],
        max_pressure=[huge, huge, huge, 1e-6], n_steps=200,
    )  # fmt: skip
    np.testing.assert_array_equal(
        r.status, [Status.TOO_CLOSE, Status.LARGE_FORCE, Status.TOO_HOT, Status.HIGH_PRESSURE]
    )
    np.testing.assert_array_equal(r.step, 10)
    np.testing.assert_array_equal(r.candidate_step, 0)

    # A step of 40 fs at 5000 K outruns any list; a tolerance met until the record of the criterion ends there.
    record = int(np.argmax(plain.seen.criterion[:, 0]))
    assert record > 0
    tolerance = plain.seen.criterion[:record, 0].max()
    r = go(
        n_steps=200, tolerance=[tolerance, 1e3, 1e3, 0.0], dt=np.array([2.0, 40, 2, 2]) * units.fs,
        kT=np.array([600, 5000, 600, 600])[:, None] * units.kB, max_force=huge, max_temperature=huge, min_distance=0.0,
        max_pressure=huge,
    )  # fmt: skip
    np.testing.assert_array_equal(r.status, [Status.UNCERTAIN, Status.TOO_FAST, Status.FINISHED, Status.UNCERTAIN])
    # What is uncertain is what to label.
    np.testing.assert_array_equal(r.step[[0, 3]], [10 * (record + 1), 10])
    np.testing.assert_array_equal(r.candidate_step[[0, 3]], r.step[[0, 3]])
    assert_same(r, 2, plain, 2)


def test_the_candidate_is_the_last_safe_structure(go, plain):
    """A replica that heats beyond its guard: the candidate is from the check before, `stopped` from that check."""
    hottest = plain.seen.temperature.copy()
    column = int(np.argmax(np.argmax(hottest, axis=0) > 1))
    limit = np.max(hottest[:, column]) * (1 - 1e-9)
    end = int(np.argmax(hottest[:, column] > limit))
    assert end > 0
    r = go(n_steps=200, max_temperature=limit * units.kB)
    assert r.status[column] == Status.TOO_HOT and r.step[column] == 10 * (end + 1)
    assert r.candidate_step[column] == 10 * end
    before = go(n_steps=np.where(np.arange(WIDTH) == column, 10 * end, 200))
    np.testing.assert_array_equal(r.candidate.positions[column], before.candidate.positions[column])
    then = go(n_steps=np.where(np.arange(WIDTH) == column, 10 * (end + 1), 200))
    np.testing.assert_array_equal(r.stopped.positions[column], then.candidate.positions[column])
    assert np.any(r.stopped.positions[column] != r.candidate.positions[column])


def test_too_small_a_list_is_mended(go, small_model):
    """Perfect crystals just short of their third shell: 18 neighbours at the start, more than 32 once it is hot."""
    reach = small_model.basis.cutoff + PLAIN.skin
    a = 1.002 * reach / np.sqrt(1.5)
    assert 3.8 < a < 4.2
    atoms = bulk("Al", a=a, cubic=True) * (2, 2, 1)
    atoms.symbols[::3] = "Cu"
    systems = stack([from_atoms(atoms, small_model.basis.elements)] * WIDTH)
    assert neighbour_list(one(systems, 0), reach).index.shape[1] < 32
    kT = np.array([300, 300, 1500, 300])[:, None] * units.kB
    tight, roomy = (go(systems=systems, capacity=c, kT=kT, n_steps=200) for c in (1, CAPACITY))
    assert tight.capacity > 32 and roomy.capacity == CAPACITY
    np.testing.assert_array_equal(tight.status, roomy.status)
    np.testing.assert_allclose(tight.candidate.positions, roomy.candidate.positions, atol=1e-8)
    np.testing.assert_array_equal(tight.seen.step, roomy.seen.step)


@pytest.mark.slow
def test_too_few_images_are_mended(go, small_model, monkeypatch):
    """Pressure thins a cell, just above half a reach per image at first, so that it needs one image more."""
    used, with_room = [], trajectory._with_room

    def spy(basis, state, skin, capacity, stencil):
        used.append(stencil)
        return with_room(basis, state, skin, capacity, stencil)

    monkeypatch.setattr(trajectory, "_with_room", spy)
    reach = small_model.basis.cutoff + PLAIN.skin
    height = 1.001 * reach / 1.5 / 0.95
    atoms = bulk("Al", a=3.9, cubic=True) * (2, 2, 1)
    atoms.symbols[::3] = "Cu"
    width = 2 * np.sqrt(3.9**3 / height)
    atoms.set_cell([width, width, height], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    squeezed = {
        "systems": stack([from_atoms(atoms, small_model.basis.elements)] * WIDTH), "protocol": MOVES, "n_steps": 100,
        "pressure": 80 * units.GPa, "cell_step": 0.04, "max_pressure": 1e3, "max_force": 1e3, "capacity": DENSE,
    }  # fmt: skip
    mended = go(**squeezed)
    assert used == [(2, 2, 2)]
    monkeypatch.setattr(trajectory, "_stencil", lambda systems, reach: (2, 2, 2))
    roomy = go(**squeezed)
    assert used == [(2, 2, 2)]
    np.testing.assert_array_equal(mended.status, Status.FINISHED)
    for i in range(WIDTH):
        assert_same(mended, i, roomy, i)


def test_a_batch_in_which_all_are_idle_is_refused(go):
    with pytest.raises(ValueError, match="every replica of the batch is idle"):
        go(idle=range(WIDTH))


def test_cell_and_swap_moves(go, systems, look):
    pressure = np.array([[0.0, 0.0], [0.0, 40.0], [np.nan, np.nan], [0.0, -5.0]]) * units.GPa
    r = go(protocol=MOVES, pressure=pressure, n_steps=200, kT=900 * units.kB, capacity=DENSE)
    assert np.all(np.isin(r.status, (Status.FINISHED,)))
    tried = r.seen.cell_moves >= 0
    np.testing.assert_array_equal(tried, np.broadcast_to([True, True, False, True], tried.shape))
    assert 0.2 < r.seen.cell_moves[:, [0, 1, 3]].mean() < 1
    swapped = r.seen.swap_moves
    np.testing.assert_array_equal(swapped[1::2] >= 0, True)
    np.testing.assert_array_equal(swapped[0::2], -1)
    assert 0 < swapped[1::2].mean() < 1
    np.testing.assert_array_equal(r.candidate.cell[2], systems.cell[2])
    np.testing.assert_array_equal(np.sort(r.candidate.species), np.sort(systems.species))
    assert np.any(r.candidate.species != systems.species)
    volume, before = (np.abs(np.linalg.det(cell)) for cell in (r.candidate.cell, systems.cell))
    growth = volume / before
    assert growth[1] < growth[0] < growth[3]
    assert growth[1] < 0.95
    for i in range(WIDTH):  # lists, forces and energies are those of the moved system
        result, real = look(one(r.candidate, i))
        np.testing.assert_allclose(r.seen.energy[-1, i], result.energy / np.sum(real), rtol=1e-9)
        f = relative_force_error(result.force_deviations, result.forces, jnp.array(0.2), real)
        np.testing.assert_allclose(r.seen.criterion[-1, i], criterion(f, real, softmax=True), rtol=1e-8)
    assert required_stencil(np.asarray(r.candidate.cell[1]), np.ones(3, bool), 4.7).max() <= 2
