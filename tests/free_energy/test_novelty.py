import jax
import numpy as np
import pytest

from haljax.free_energy.novelty import novel

from .half_cube import GROUP

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def test_known_points_are_not_repeated():
    known = RNG.random((30, 3))
    points = np.concatenate([known + 1e-5, RNG.random((10, 3))])
    kept = novel(KEY, points, known, 40)
    assert sorted(kept) == list(range(30, 40))
    assert len(novel(KEY, points, known, 4)) == 4


def test_points_are_new_to_one_another():
    points = np.repeat(RNG.random((5, 3)), 20, axis=0)
    kept = novel(KEY, points, np.zeros((0, 3)), 50)
    assert len(kept) == 5 and len(np.unique(points[kept], axis=0)) == 5


def test_the_first_draw_follows_the_scores():
    # at distances 1 and 3, curvatures 2 and 1, from the only known point: 2 : 3
    points, known = np.array([[1.0], [3.0]]), np.array([[0.0]])
    first = [novel(jax.random.key(i), points, known, 1, curvature=[2.0, -1.0])[0] for i in range(400)]
    assert abs(np.mean(first) - 0.6) < 5 * np.sqrt(0.24 / 400)


def test_the_mean_is_of_the_nearest():
    # ten known points at 1 and one at 0.1: the five nearest are 0.1 and four at 1
    known = np.array([[1.0, i * 1e-9] for i in range(10)] + [[0.1, 0]])
    points = np.array([[0.0, 0.0], [1e3, 0.0]])
    drawn = [novel(jax.random.key(i), points, known, 1, curvature=[1 / 0.82, 1 / 999.0])[0] for i in range(400)]
    assert abs(np.mean(drawn) - 0.5) < 5 * np.sqrt(0.25 / 400)


def test_images_count_as_known():
    known = np.array([[0.5, 0.3, 0.1, 0, 0, 0.05, 0]])
    points = np.concatenate([(GROUP[200] @ known.T).T, [[0.4, 0, 0, 0, 0, 0, 0.1]]])
    assert list(novel(KEY, points, known, 2, group=GROUP)) == [1]
    assert len(novel(KEY, points, known, 2)) == 2


def test_the_same_key_gives_the_same_points():
    points, known = RNG.random((200, 7)), RNG.random((50, 7))
    a, b = novel(KEY, points, known, 20), novel(KEY, points, known, 20)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(novel(KEY, points, known, 40)[:20], a)
    assert len(np.unique(a)) == 20
    assert set(a) != set(novel(jax.random.key(4), points, known, 20))


def test_points_and_curvatures_that_are_not_finite():
    points = np.array([[0.0], [np.nan], [1.0], [2.0]])
    assert sorted(novel(KEY, points, np.array([[5.0], [np.nan]]), 4, curvature=[1, 1, np.inf, 1])) == [0, 2, 3]
    assert len(novel(KEY, points[1:2], np.array([[5.0]]), 1)) == 0


def test_bad_input():
    with pytest.raises(ValueError, match="give .p, d. and .k, d."):
        novel(KEY, np.ones((3, 2)), np.ones((3, 1)), 1)
    with pytest.raises(ValueError, match="n = 0"):
        novel(KEY, np.ones((3, 2)), np.ones((3, 2)), 0)
    with pytest.raises(ValueError, match="curvature has shape"):
        novel(KEY, np.ones((3, 2)), np.ones((3, 2)), 1, curvature=np.ones(2))
