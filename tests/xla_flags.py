"""Options of XLA under which tests, and the processes they start, run."""

import importlib.metadata

# LLVM's optimisation is most of a compilation, changes no mathematics, and does
# not pay for programs that run once or twice. Nor does it pay to cut a program
# into pieces for many threads: the test workers take all cores already, and
# the pieces cost a fifth more processor time.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += ("--xla_cpu_use_fusion_emitters=false",)  # unknown to later ones


def flags(devices: int) -> str:
    """The value of XLA_FLAGS for that many simulated devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return " ".join((count, *_QUICK))
