"""Every module imports on a bare machine, and every file stays readable."""

import os
import re
import subprocess
import sys

from tests import _tree

MAX_LINES = 400
MAX_COLUMNS = 80

# Runs in a fresh interpreter, where warnings are errors. Asking for a number
# of CPU devices is refused once JAX has made its devices, so it tells whether
# an import did.
IMPORT_ALL = """
import importlib
import sys

BLOCKED = {blocked!r}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is blocked here", name=name)


sys.meta_path.insert(0, Blocker())
import jax

faults = []
for count, name in enumerate({modules!r}):
    try:
        importlib.import_module(name)
    except BaseException as error:
        faults.append(f"{{name}}: {{type(error).__name__}}: {{error}}")
    try:
        jax.config.update("jax_num_cpu_devices", 2 + count)
    except RuntimeError:
        faults.append(f"{{name}}: touches a device when it is imported")
        break
sys.exit("\\n".join(faults) or None)
"""


def test_every_module_imports_without_optional_packages():
    # Modules of kernels open with triton; all others do without.
    modules = [
        _tree.module_name(path)
        for path in _tree.python_files()
        if "\nimport triton\n" not in path.read_text()
    ]
    script = IMPORT_ALL.format(
        modules=modules,
        blocked=(
            "huggingface_hub",
            "jax_triton",
            "matplotlib",
            "tensorboardX",
            "tensorflow",
            "tokenizers",
            "torch",
            "transformers",
            "triton",
            "wandb",
        ),
    )
    environment = dict(os.environ)
    # It fixes the number of CPU devices, so it would hide what is asked.
    environment.pop("XLA_FLAGS", None)
    environment["JAX_PLATFORMS"] = "cpu"
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(_tree.ROOT), str(_tree.ROOT / "kernels")]
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=_tree.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_files_are_short_and_narrow():
    faults = []
    for path in _tree.python_files(*_tree.SOURCE_FOLDERS, "tests"):
        name = path.relative_to(_tree.ROOT)
        lines = path.read_text().splitlines()
        if len(lines) > MAX_LINES:
            faults.append(f"{name}: {len(lines)} lines, at most {MAX_LINES}")
        for number, line in enumerate(lines, 1):
            # Words to a tool stand behind the line; an address has no break.
            line = re.sub(
                r"\s+# (noqa|pyright: ignore|type: ignore).*", "", line
            )
            if len(line) > MAX_COLUMNS and "://" not in line:
                faults.append(f"{name}:{number}: {len(line)} columns")
    assert not faults, "\n".join(faults)
