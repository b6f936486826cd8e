import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bbvi

HERE = pathlib.Path(__file__).parent
GUIDE = bbvi.MeanField({"w": bbvi.Normal()})


def log_joint(x, z):
    return -0.5 * z["w"] ** 2 - 0.5 * jnp.sum((x - z["w"]) ** 2)


def start(num_devices, *arguments):
    """A process with so many virtual devices, in double precision."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    )
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=HERE.parents[1],
        env=os.environ
        | {
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "PYTHONPATH": str(HERE.parents[1]),
            # What one run compiles the next ones need not.
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def finish(*processes):
    """Waits for them, all of which must succeed; none outlives the test."""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_eight_devices():
    finish(start(8, "-m", "pytest", "-q", "-x", HERE / "eight_devices.py"))


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = HERE / "two_processes.py"
    finish(*(start(2, script, port, process, tmp_path) for process in (0, 1)))
    finish(start(1, script, 0, 2, tmp_path))
    first, second, alone = (np.load(tmp_path / f"{number}.npz") for number in range(3))
    for name in set(first) - {"seen", "is_shown", "stopped", "num_stopped"}:
        np.testing.assert_array_equal(first[name], second[name])
        if alone[name].dtype.kind == "f":
            np.testing.assert_allclose(first[name], alone[name], rtol=1e-9, atol=1e-9)
    assert len(first["plain loss"]) > 100
    assert "k-hat" in first["verdict"][1]
    assert first["stopped"] == second["stopped"] == "stopped"
    assert first["num_stopped"] == second["num_stopped"] < 60
    assert "differs between the processes" in str(first["seen"])
    assert (bool(first["is_shown"]), bool(second["is_shown"])) == (True, False)


def test_mesh_of_one_device():
    x = np.arange(4.0)
    results = [
        bbvi.fit(log_joint, GUIDE, x, mesh=mesh, num_steps=50, progress=False)
        for mesh in (None, jax.make_mesh((1, 1), ("data", "samples")))
    ]
    np.testing.assert_allclose(*(result.history.loss for result in results), rtol=1e-5)


def test_what_is_no_mesh():
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh .*make_mesh.* got 8"):
        bbvi.fit(log_joint, GUIDE, jnp.ones(4), mesh=8)
    with pytest.raises(ValueError, match=r"mesh has axes \('batch',\), expected 'data'"):
        bbvi.fit(log_joint, GUIDE, jnp.ones(4), mesh=jax.make_mesh((1,), ("batch",)))


def test_data_that_are_not_in_memory():
    mesh = jax.make_mesh((1,), ("data",))
    loader = bbvi.Loader([np.ones(4)] * 2, num_data=8)
    with pytest.raises(TypeError, match=r"with a mesh x must be arrays"):
        bbvi.fit(log_joint, GUIDE, loader, mesh=mesh)
