import jax
import numpy as np
import pytest

from haljax.free_energy.data import Labels, concatenate, empty, labels


def some(n, d=3, **others):
    rng = np.random.default_rng(n)
    return labels(rng.random((n, d)), 300.0, rng.normal(size=(n, d)), **others)


def test_length_selection_and_concatenation():
    a, b = some(4, energy=np.arange(4.0)), some(2)
    both = concatenate([a, empty(3), b])
    assert (len(a), len(empty(3)), len(both)) == (4, 0, 6)
    np.testing.assert_array_equal(both.eta[:4], a.eta)
    np.testing.assert_array_equal(both.energy, [0, 1, 2, 3, np.nan, np.nan])
    np.testing.assert_array_equal(both.select(slice(4, None)).mu, b.mu)
    np.testing.assert_array_equal(both.select(both.energy > 1).energy, [2, 3])
    assert both.hessian.shape == (6, 3, 3) and np.isnan(both.hessian).all() and np.all(both.temperature == 300)


def test_labels_are_a_pytree():
    doubled = jax.jit(lambda l: jax.tree.map(lambda a: 2 * a, l))(some(4))
    assert isinstance(doubled, Labels) and len(doubled) == 4
    np.testing.assert_allclose(doubled.mu, 2 * some(4).mu)
    assert some(4).replace(energy=np.ones(4)).energy[0] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(mu=[[np.nan, 0.0]]), "mu is not finite in 1 of 1 labels, first in row 0"),
        (dict(eta=[[np.inf, 0.0]]), "eta is not finite"),
        (dict(temperature=0.0), "temperature is 0.0 K in row 0"),
        (dict(mu=[[1.0]]), "one value per order parameter"),
        (dict(eta=[1.0, 2.0]), "points, order parameters"),
        (dict(hessian=np.zeros((1, 3, 3))), r"hessian has shape \(1, 3, 3\)"),
        (dict(mu_error=-1.0), "mu_error has negative entries"),
    ],
)
def test_bad_labels(change, message):
    good = dict(eta=[[0.1, 0.2]], temperature=300.0, mu=[[0.0, 1.0]])
    with pytest.raises(ValueError, match=message):
        labels(**(good | change))


def test_bad_concatenation():
    with pytest.raises(ValueError, match="2 and 3 order parameters"):
        concatenate([some(1), some(1, 2)])
    with pytest.raises(ValueError, match="nothing to concatenate"):
        concatenate([])
