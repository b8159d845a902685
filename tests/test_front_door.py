from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import haljax as hx


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_import_is_light():
    """Nothing heavy is imported, and no backend chosen: a caller may still set JAX_PLATFORMS or x64."""
    done = run(
        "import sys, haljax\n"
        "heavy = {'jax_md', 'ase', 'matplotlib', 'scipy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "assert bridge is None or not bridge._backends\n"
    )
    assert done.returncode == 0, done.stderr


def test_fitting_functions_need_no_jax_md():
    """jax_md takes seconds to import; only dynamics pays for it."""
    done = run(
        "import sys, haljax as hx\nhx.fit, hx.evaluate, hx.potential, hx.Calculator\nassert 'jax_md' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves():
    assert {
        "fit",
        "update",
        "select",
        "evaluate",
        "load",
        "potential",
        "Calculator",
        "HAL",
        "ace_basis",
    } <= set(hx.__all__)
    for name in hx.__all__:
        assert getattr(hx, name) is not None
        assert name in dir(hx)


def test_no_submodule_shadows_a_public_name():
    """Importing haljax.x sets the attribute x of the package, whatever else x should be."""
    for module in pkgutil.walk_packages(hx.__path__, "haljax."):
        importlib.import_module(module.name)
    for name in set(hx.__all__) - {"__version__"}:
        assert callable(getattr(hx, name)), name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'haljax' has no attribute 'fitt'"):
        getattr(hx, "fitt")  # noqa: B009
    assert not hasattr(hx, "Potential")


def test_single_precision_is_refused(tmp_path, tiny_model):
    """Each way into a fit says which switch to turn."""
    tiny_model.save(tmp_path / "model.npz")
    done = run(
        "import haljax as hx\n"
        "from ase.build import bulk\n"
        "train = [bulk('Al', cubic=True)]\n"
        "train[0].info['energy'] = 0.0\n"
        "for enter in (lambda: hx.fit(hx.ace_basis(('Al',), order=2, max_degree=4), train),\n"
        f"              lambda: hx.load({str(tmp_path / 'model.npz')!r})):\n"
        "    try: enter()\n"
        "    except RuntimeError as error: print(error)\n",
        JAX_ENABLE_X64="0",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("x64 mode is off: set JAX_ENABLE_X64=1") == 2
