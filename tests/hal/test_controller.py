import jax
import jax.numpy as jnp
import numpy as np

from haljax.hal.controller import Bias, bias_strength, criterion, mean_norm, relative_force_error

REAL = jnp.array([True, True, True, False])


def test_relative_force_error():
    rng = np.random.default_rng(0)
    deviations, forces = rng.normal(size=(5, 4, 3)), rng.normal(size=(4, 3))
    f = relative_force_error(jnp.asarray(deviations), jnp.asarray(forces), jnp.array(0.2), REAL)
    for i in range(3):
        rms = np.sqrt(np.mean([np.linalg.norm(d[i]) ** 2 for d in deviations]))
        np.testing.assert_allclose(f[i], rms / (np.linalg.norm(forces[i]) + 0.2), rtol=1e-12)
    assert f[3] == 0
    at_rest = relative_force_error(jnp.asarray(deviations), jnp.zeros((4, 3)), jnp.array(0.2), REAL)
    assert np.all(np.isfinite(at_rest))


def test_criterion_is_the_maximum_or_the_largest_softmax():
    f = jnp.array([0.3, 1.2, 0.7, 0.0])
    assert criterion(f, REAL, softmax=False) == 1.2
    weights = np.exp([0.3, 1.2, 0.7])
    np.testing.assert_allclose(criterion(f, REAL, softmax=True), weights[1] / weights.sum(), rtol=1e-12)
    # A padded atom has no share, and NaN is not lost among the others.
    assert criterion(jnp.zeros(4), REAL, softmax=True) == 1 / 3
    for softmax in (True, False):
        assert np.isnan(criterion(f.at[2].set(jnp.nan), REAL, softmax))


def test_mean_norm_is_over_real_atoms():
    vectors = np.random.default_rng(1).normal(size=(4, 3))
    expected = np.linalg.norm(vectors[:3], axis=1).mean()
    np.testing.assert_allclose(mean_norm(jnp.asarray(vectors), REAL), expected, rtol=1e-12)


def test_bias_strength_follows_the_rule_of_acehal():
    """TauRelController: exponential means from the first sample on, tau = 0 during the delay."""
    rng = np.random.default_rng(2)
    samples, tau_rel, mixing, delay = rng.uniform(0.5, 2.0, (30, 2)), 0.3, 0.1, 12
    bias, mean = Bias(jnp.zeros(()), jnp.zeros(())), None
    step = jax.jit(bias_strength)
    for k, sample in enumerate(samples):
        mean = sample if mean is None else (1 - mixing) * mean + mixing * sample
        bias, tau = step(
            bias, Bias(*map(jnp.asarray, sample)), jnp.array(k == 0), jnp.array(mixing), jnp.array(tau_rel),
            jnp.array(k >= delay),
        )  # fmt: skip
        np.testing.assert_allclose(bias, mean, rtol=1e-12)
        np.testing.assert_allclose(tau, tau_rel * mean[0] / mean[1] if k >= delay else 0.0, rtol=1e-12)


def test_a_model_that_is_sure_of_everything_gets_a_finite_bias():
    nothing, forces = Bias(jnp.zeros(()), jnp.zeros(())), Bias(jnp.array(3.0), jnp.zeros(()))
    yes = jnp.array(True)
    for sample in (nothing, forces):
        _, tau = bias_strength(nothing, sample, yes, jnp.array(0.1), jnp.array(0.3), yes)
        assert np.isfinite(tau) and tau * sample.gradient == 0
