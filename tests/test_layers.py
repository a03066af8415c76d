"""The architecture as it is executed: instant help, and what may import what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

# What may only be imported once there is real work to do.
HEAVY = "tensorflow", "tfx", "keras", "apache_beam", "pandas", "sklearn", "matplotlib", "kfp"
FOUNDATION = (
    "config errors events features fingerprint images ingest lineage presets registry runs "
    "versions workdir console commands.demo commands.doctor cli"
)


def run(*command: str | Path, stdin: str = "", seconds: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=seconds, cwd=ROOT
    )


@pytest.mark.current
@pytest.mark.parametrize("name", FOUNDATION.split())
def test_a_module_of_the_foundation_imports_nothing_heavy(name):
    code = (
        f"import sys, pipeline.{name}; "
        f"print([heavy for heavy in {HEAVY!r} if heavy in sys.modules])"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.current
@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["predict"], ["config"], ["history"]])
def test_help_imports_only_what_it_shows(command):
    done = run(sys.executable, "-X", "importtime", BIN / "safelight", *command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pipeline.cli" in imported
    # By what it loads and not by the clock, which on a slow machine tells nothing.
    assert imported.isdisjoint([*HEAVY, "numpy", "pyarrow", "PIL", "filelock"])


def test_the_layers_hold():
    done = run(BIN / "lint-imports", "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import tensorflow as tf\n\nprint(tf.keras.layers)\n",
        "from tensorflow import keras\n\nkeras.layers\n",
        "import tensorflow.keras.layers as layers\n\nlayers\n",
        "from tensorflow.keras import layers\n\nlayers\n",
        "import tfx.v1 as tfx\n\ntfx\n",
        "from tfx import v1 as tfx\n\ntfx\n",
        "import tf_keras\n\ntf_keras\n",
    ],
)
def test_lint_refuses_another_keras_and_the_slow_import(code):
    done = run(BIN / "ruff", "check", "--stdin-filename", "pipeline/new.py", "-", stdin=code)
    assert done.returncode == 1
    assert "TID251" in done.stdout, done.stdout


def test_lint_lets_keras_three_pass():
    code = "import keras\nimport tensorflow as tf\n\nx = keras.Input([2])\ny = tf.ones([2])\n"
    done = run(BIN / "ruff", "check", "--stdin-filename", "pipeline/new.py", "-", stdin=code)
    assert done.returncode == 0, done.stdout
