"""Config -> whether the network's norms run in our own Triton kernels."""

from __future__ import annotations

from engine.config import Config
from engine.errors import ConfigError
from engine.machine.compiler import missing_for_triton


def uses_triton(config: Config, device: str) -> bool:
    """Return whether norms and rotations run in Triton kernels on `device`, "cuda" or "cpu".

    Raises ConfigError if `kernels=triton` and this machine cannot run them.
    """
    if config.kernels == "eager" or (config.kernels == "auto" and device != "cuda"):
        return False
    if device != "cuda":
        raise ConfigError("Triton kernels need CUDA", field="kernels", hint="choose kernels=auto or kernels=eager")
    missing = missing_for_triton()
    if missing is not None and config.kernels == "triton":
        raise ConfigError(missing[0], field="kernels", hint=f"{missing[1]}, or choose kernels=eager")
    return missing is None
