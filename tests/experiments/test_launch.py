"""The launch examples: the commands they start, and what they say of them."""

import os
import subprocess

import pytest
import yaml

from seqjax.training import _place
from seqjax.training import config as config_lib
from seqjax.training import flags
from tests import _tree

FOLDER = _tree.ROOT / "experiments" / "launch"
SCRIPT = FOLDER / "slurm.sbatch"
CONFIG = "experiments/configs/long_context.py:gpu"


def submit(tmp_path, code, arguments, **environment):
    """Runs the batch script with stand-ins for Slurm's commands."""
    for name, text in (
        ("srun", f'printf "%s\\n" "$@" >"{tmp_path}/srun.txt"; exit {code}'),
        ("scontrol", f'echo "$@" >"{tmp_path}/scontrol.txt"'),
    ):
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_ID": "7",
            "SLURM_GPUS_PER_NODE": "h100:8",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    return done


def test_slurm_script_starts_the_command(tmp_path):
    arguments = [CONFIG, "/shared/run", "--config.steps=9"]
    done = submit(tmp_path, 0, arguments)
    assert done.returncode == 0 and not done.stderr
    assert (tmp_path / "srun.txt").read_text().split() == [
        ".venv/bin/python",
        "-u",
        "-m",
        "experiments.train",
        f"--config={CONFIG}",
        "--workdir=/shared/run",
        "--distributed=slurm",
        "--expected_devices=16",
        "--config.steps=9",
    ]
    assert not (tmp_path / "scontrol.txt").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(75, "3", True), (76, "0", True), (2, "0", False), (75, "100", False)],
)
def test_slurm_script_queues_again(tmp_path, code, restarts, again):
    done = submit(tmp_path, code, [CONFIG, "/x"], SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code
    asked = tmp_path / "scontrol.txt"
    assert asked.exists() == again
    assert not again or asked.read_text() == "requeue 7\n"


def test_slurm_script_is_whole(tmp_path):
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    done = submit(tmp_path, 0, [CONFIG])
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
    text = SCRIPT.read_text()
    # One process a machine: it sees all GPUs and takes them all.
    assert "#SBATCH --ntasks-per-node=1\n" in text
    assert "#SBATCH --signal=TERM@" in text


def test_kubernetes_manifest_fits_together():
    text = (FOLDER / "kubernetes.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name}
    assert spec["completionMode"] == "Indexed"
    pods = spec["completions"]
    assert spec["parallelism"] == pods
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    (rule, _) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes

    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    variables = {}
    for entry in container["env"]:
        if "value" in entry:
            variables[entry["name"]] = entry["value"]
        else:
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            assert (entry["name"], path) == ("JAX_PROCESS_ID", index)
            variables[entry["name"]] = "1"
    found = _place.find(_place.Settings(distributed="env"), variables)
    port = service["spec"]["ports"][0]["port"]
    assert container["ports"][0]["containerPort"] == port
    assert found == (f"{name}-0.{pod['subdomain']}:{port}", pods, 1)

    command = container["command"]
    assert command[:4] == ["python", "-u", "-m", "experiments.train"]
    gpus = pods * container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--expected_devices={gpus}" in command
    assert "--distributed=env" in command
    rest, overrides = flags.split_overrides(command[4:])
    path = next(x for x in rest if x.startswith("--config="))
    config = flags.load_config(
        str(_tree.ROOT / path.removeprefix("--config=")),
        config_lib.TrainConfig,
    )
    for field, value in overrides:
        flags.override(config, field, value)
    config.validate()
    assert config.mesh.sizes(gpus) == (1, 1, gpus)


@pytest.mark.parametrize("variant", ["", ":cpu", ":gpu"])
def test_long_context_is_long(variant):
    path = _tree.ROOT / "experiments" / "configs" / "long_context.py"
    config = flags.load_config(f"{path}{variant}", config_lib.TrainConfig)
    flags.check_types(config)
    config.validate()
    assert config.mesh.sizes(8) == (1, 1, 8)
    assert config.data.sequence_length == (
        2**20 if variant == ":gpu" else 131_072
    )


def test_a_variant_that_is_not_there():
    path = _tree.ROOT / "experiments" / "configs" / "long_context.py"
    with pytest.raises(flags.ConfigError, match="variant must be one of"):
        flags.load_config(f"{path}:tpu", config_lib.TrainConfig)
