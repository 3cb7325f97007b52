"""diffusers' own tests of models, on this project's network: `nox -s diffusers -- CHECKOUT`, or MULTITALK_DIFFUSERS.

They are in diffusers' repository and not in its packages, so the path of a checkout is needed, of the tag that is
installed. A mixin that its version does not have is left out, and reported. `MULTITALK_MIXINS=wan` tests diffusers'
Wan in place of ours, to compare. `MULTITALK_MIXINS_FORCE=1` runs tests on the CPU that ask for an accelerator, and
offloads there without streams, which a CPU does not have. `MULTITALK_MIXINS_BACKEND=aot_eager` compiles with that
backend in place of inductor, whose C++ takes most of the time: graphs, guards and recompilations are the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ModelMixin
from recordings import TinyNetwork

CHECKOUT = Path(os.environ.get("MULTITALK_DIFFUSERS", "."))
if not (CHECKOUT / "tests" / "models" / "testing_utils").is_dir():
    raise pytest.UsageError("MULTITALK_DIFFUSERS is not a checkout of diffusers: it has no tests/models/testing_utils")
# Under another name: this project's tests are called so, too. diffusers' modules import each other relatively.
package = types.ModuleType("diffusers_tests")
package.__path__ = [str(CHECKOUT / "tests")]
sys.modules["diffusers_tests"] = package

harness = importlib.import_module("diffusers_tests.testing_utils")
if os.environ.get("MULTITALK_MIXINS_FORCE"):
    # Some mixins take them from the package.
    for module in (harness, importlib.import_module("diffusers.utils.testing_utils")):
        for name in ("require_accelerator", "require_torch_accelerator", "require_torch_accelerator_with_training"):
            setattr(module, name, lambda test: test)
    if harness.torch_device == "cpu":
        offload = ModelMixin.enable_group_offload

        def without_streams(self: Any, *values: Any, **named: Any) -> None:
            offload(self, *values, **{**named, "use_stream": False, "record_stream": False})

        ModelMixin.enable_group_offload = without_streams
if backend := os.environ.get("MULTITALK_MIXINS_BACKEND"):
    torch.compile = functools.partial(torch.compile, backend=backend)
mixins = importlib.import_module("diffusers_tests.models.testing_utils")

WAN = os.environ.get("MULTITALK_MIXINS") == "wan"
#: Names of diffusers' mixins. Left out are those that need the Hub, several devices, or a packed file of a Wan model.
NAMES = (
    "ModelTesterMixin",
    "MemoryTesterMixin",
    "TrainingTesterMixin",
    "AttentionTesterMixin",
    "AttentionBackendTesterMixin",
    "TorchCompileTesterMixin",
    "LoraTesterMixin",
    "LoraHotSwappingForModelTesterMixin",
    "PyramidAttentionBroadcastTesterMixin",
    "FirstBlockCacheTesterMixin",
    "FasterCacheTesterMixin",
    "SeaCacheTesterMixin",
    "MagCacheTesterMixin",
    "TaylorSeerCacheTesterMixin",
    "TorchAoTesterMixin",
    "QuantoTesterMixin",
    "SDNQTesterMixin",
)
#: The projections of our attentions cannot be fused: they are refused, and Wan's are not.
REFUSED = "test_fuse_unfuse_qkv_projections"


#: The interface that a mixin's tests ask.
Base: Any = mixins.BaseModelTesterConfig


class Ours(Base):  # type: ignore[misc]
    """The small network of the tests, and two people who speak."""

    tiny = TinyNetwork()
    main_input_name = "hidden_states"
    output_shape = input_shape = (16, *tiny.latent_shape)
    different_shapes_for_compilation = [(4, 4), (4, 8), (8, 8)]

    @property
    def model_class(self) -> Any:
        from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

        return MultiTalkTransformer3DModel

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    @property
    def pretrained_model_name_or_path(self) -> str:
        """A folder with weights, for the mixins that quantise while they load."""
        return _saved(self)

    def get_init_dict(self) -> dict[str, Any]:
        return dict(self.tiny.config)

    def get_dummy_inputs(self, height: int = 4, width: int = 8) -> dict[str, Any]:
        sized = TinyNetwork(latent_shape=(3, height, width))
        inputs = {**sized.latents(), **sized.conditions(2)}
        # Masks decide on the host who speaks where.
        return {name: one if name == "speaker_masks" else self._cast(one) for name, one in inputs.items()}

    def _cast(self, tensor: Any) -> Any:
        return tensor.to(harness.torch_device, torch.float32 if tensor.ndim == 1 else self.torch_dtype)


class Wan(Ours):
    """diffusers' own network of the same size."""

    @property
    def model_class(self) -> Any:
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel

    def get_init_dict(self) -> dict[str, Any]:
        known = inspect.signature(self.model_class.__init__).parameters
        sizes = {name: size for name, size in self.tiny.config.items() if name in known}
        return sizes | {"in_channels": 36, "added_kv_proj_dim": 24}

    def get_dummy_inputs(self, height: int = 4, width: int = 8) -> dict[str, Any]:
        inputs = super().get_dummy_inputs(height, width)
        return {name: one for name, one in inputs.items() if name not in ("audio_windows", "speaker_masks")}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # removed when the process ends


def _saved(config: Ours) -> str:
    folder = Path(_folder().name) / config.model_class.__name__
    if not folder.exists():
        torch.manual_seed(0)
        config.model_class(**config.get_init_dict()).save_pretrained(folder)
    return str(folder)


def _classes() -> dict[str, type]:
    base, missing, made = Wan if WAN else Ours, [], {}
    for name in NAMES:
        mixin = getattr(mixins, name, None)
        if mixin is None:
            missing.append(name)
            continue
        body: dict[str, Any] = {}
        if name == "TrainingTesterMixin":

            def applied(self: Any, _mixin: Any = mixin) -> None:
                _mixin.test_gradient_checkpointing_is_applied(self, expected_set={self.model_class.__name__})

            body["test_gradient_checkpointing_is_applied"] = applied
        if name == "TorchAoTesterMixin":
            # diffusers loads a network for torchao in bfloat16, and Wan casts no input.
            body["torch_dtype"] = torch.bfloat16
        if name == "AttentionTesterMixin" and not WAN and hasattr(mixin, REFUSED):
            body[REFUSED] = _refuses
        made[f"Test{name.removesuffix('TesterMixin')}"] = type(name, (base, mixin), body)
    if missing:
        warnings.warn(f"this version of diffusers has no {', '.join(missing)}", stacklevel=1)
    return made


def _refuses(self: Any) -> None:
    from engine.errors import ConfigError

    with pytest.raises(ConfigError, match="cannot be fused"):
        self.model_class(**self.get_init_dict()).fuse_qkv_projections()


globals().update(_classes())
