from __future__ import annotations

import ctypes
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.free_energy.export import export_c
from haljax.free_energy.network import Network, Surface, idnn, scaling_of
from haljax.lattice.units import KB

from .square import INVARIANTS, PATTERNS, exact_labels, inside, network

T = 300.0


def surface(net, members=3):
    data = exact_labels(50, [250.0, 300.0, 350.0])
    scaling = scaling_of(net, data.eta, data.temperature if net.temperature else np.full(50, T), data.mu)
    params = jax.jit(jax.vmap(lambda key: net.init(key, scaling)))(jax.random.split(jax.random.key(0), members))
    # as a trained one: biases that are not zero
    params = jax.tree.map(lambda a: a + 0.1 if a.ndim < 3 and a.dtype == float else a, params.layers), params
    return Surface(net, params[1]._replace(layers=params[0], offset=jnp.arange(members) * 0.3))


def compiled(path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler (cc, gcc or clang) is on the PATH, so that the exported code cannot be tested"
    library = path.with_suffix(".so")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    done = subprocess.run([compiler, *flags, "-o", library, path, "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    function = ctypes.CDLL(str(library)).haljax_free_energy
    pointer = ctypes.POINTER(ctypes.c_double)
    function.restype, function.argtypes = ctypes.c_double, [pointer, ctypes.c_double, pointer, pointer]

    def call(eta, T, mu=True, hessian=True):
        d = len(eta)
        arrays = np.array(eta, float), np.full(d, 7.0), np.full((d, d), 7.0)
        point, first, second = (a.ctypes.data_as(pointer) for a in arrays)
        return function(point, T, first if mu else None, second if hessian else None), arrays[1], arrays[2]

    return call


# not orthogonal, and more sublattices than order parameters by three
UNEVEN = np.array([[1.0, 1, 1, 1, 1, 1], [1, 1, -1, -1, 2, 0], [1, -1, 1, -1, 0, 1]])


@pytest.mark.parametrize(
    "net",
    [
        network(),
        network(temperature=True, activation="tanh", widths=(12, 20, 8)),
        idnn(INVARIANTS, 3, (10,), "tanh"),
        Network(INVARIANTS, UNEVEN, (6, 6), temperature=True, separate=False, sites=2),
    ],
)
def test_c_is_the_surface(tmp_path, net):
    given = surface(net)
    export_c(given, tmp_path / "g.c")
    call = compiled(tmp_path / "g.c")
    outside = np.array([[0.0, 0, 0], [1.2, 0.1, 0], [0.5, 0.5, 0], [0.5, 0.6, -0.3]])
    eta = np.concatenate([inside(20), outside])
    for T in (300.0, 420.0) if net.temperature else (300.0,):
        g, mu, hessian = (np.asarray(f(eta, T)) for f in (given.free_energy, given.chemical_potential, given.hessian))
        assert g.std() > 1e-3
        for k in range(len(eta)):
            value, first, second = call(eta[k], T)
            # on the boundary 1 - x = 1e-12 is known to rounding alone, and with it ln x and the curvature
            tight = k < 20
            np.testing.assert_allclose(value, g[k], atol=1e-10)
            np.testing.assert_allclose(first, mu[k], rtol=1e-10, atol=1e-10 if tight else KB * T * 1e-4)
            scale = max(1.0, np.abs(hessian[k]).max())
            np.testing.assert_allclose(second / scale, hessian[k] / scale, atol=1e-10 if tight else 1e-3)
    value, first, second = call(eta[0], T, mu=False, hessian=False)
    np.testing.assert_allclose(value, g[0], atol=1e-10)
    assert np.all(first == 7) and np.all(second == 7)
    np.testing.assert_array_equal(call(eta[0], T, hessian=False)[1], call(eta[0], T)[1])
    np.testing.assert_array_equal(call(eta[0], T, mu=False)[2], call(eta[0], T)[2])
    for bad in (0.0, -1.0, np.nan) + (() if net.temperature else (310.0,)):
        assert all(np.all(np.isnan(a)) for a in call(eta[0], bad))


def test_one_temperature_alone(tmp_path):
    given = surface(network(temperature=True))
    export_c(given, tmp_path / "g.c", temperature=320.0)
    text = (tmp_path / "g.c").read_text()
    assert "T = 320 K alone" in text and "mean of 3 networks" in text and "eV per primitive cell" in text
    call, eta = compiled(tmp_path / "g.c"), inside(1)[0]
    np.testing.assert_allclose(call(eta, 320.0)[0], given.free_energy(eta, 320.0), atol=1e-10)
    assert np.isnan(call(eta, 300.0)[0])


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="only polynomials made by haljax.lattice.symmetry"):
        export_c(surface(Network(jnp.sin, PATTERNS)), tmp_path / "g.c")
    with pytest.raises(ValueError, match="trained at 300 K"):
        export_c(surface(network()), tmp_path / "g.c", temperature=350.0)
    assert not (tmp_path / "g.c").exists()
