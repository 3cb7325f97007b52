"""Spares the imports of large libraries that diffusers, transformers and accelerate make and a run seldom uses.

These three import names from peft, torchao, scipy, boto3 and `torch._dynamo` as soon as they are imported themselves.
A run without LoRA adapters of peft, without torchao's checkpoints and without compiling uses none of them, but waits
for them: 3 of 8 seconds of processor time for a video of five frames.

`defer_imports` puts a finder before Python's own. While one of the modules in `_DEFERRED` is executed, and only then
and only in its thread, the import of a large library that it names gives stand-ins for the names that it takes. A
stand-in imports the real library on first use, so the module works as before.

Why this is safe when a library changes: a module that is not in the table is imported as always; a name that is not in
the table comes from the real library, which is then imported as always; a library that has already been imported is
used as it is. In each case only the saved time is lost. tests/imports/test_deferred.py shows what is saved.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: Makes the stand-in of the name in the second argument, of the module in the first.
_Maker = Callable[[str, str], Any]
#: Module of a large library -> the names that are taken from it, with the makers of their stand-ins. No names: the
#: module is imported as a whole (`import scipy.stats`), and its attributes are looked up later.
_Names = Mapping[str, Mapping[str, _Maker]]


def defer_imports() -> None:
    """Spare the imports of this module's table from now on; a second call does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Deferred(type):
    """A class or function of a library that is imported when it is called or has to give an attribute.

    isinstance does not import: without its library there are no instances.
    """

    home: str

    def _real(cls) -> Any:
        return getattr(_real_module(cls.home), cls.__name__)

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        return _is_real(cls.home) and isinstance(instance, cls._real())

    def __subclasscheck__(cls, other: type) -> bool:
        return other is cls or (_is_real(cls.home) and issubclass(other, cls._real()))


def _later(module: str, name: str) -> Any:
    return _Deferred(name, (), {"home": module})


def _names(*names: str) -> Mapping[str, _Maker]:
    return dict.fromkeys(names, _later)


#: What to do with `torch._dynamo` as soon as it is imported: decorations that it has missed.
_MISSED: list[Callable[[ModuleType], None]] = []


def _mark(module: str, name: str) -> Any:
    def stand_in(marked: Any) -> Any:
        _MISSED.append(lambda dynamo: getattr(dynamo, name)(marked))
        return marked

    return stand_in


def _disable(module: str, name: str) -> Any:
    def stand_in(function: Any = None, *arguments: Any, **options: Any) -> Any:
        if function is None:
            return lambda decorated: stand_in(decorated, *arguments, **options)
        now = function

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            return now(*given, **named)

        def disable(dynamo: ModuleType) -> None:
            nonlocal now
            now = dynamo.disable(function, *arguments, **options)
            # Dynamo knows what it must not trace by these marks.
            call.__dict__.update(now.__dict__)

        _MISSED.append(disable)
        return call

    return stand_in


#: Decorators, which do nothing before anything is compiled; compiling imports `torch._dynamo`. The decorators of
#: torch.compiler are these, too.
_DYNAMO: dict[str, Mapping[str, _Maker]] = {
    "torch._dynamo": {"allow_in_graph": _mark, "assume_constant_result": _mark, "disable": _disable}
}
_SYMPY = {"torch.fx.experimental.symbolic_shapes": _names("guard_or_false", "statically_known_true")}
_PEFT_LAYER = {"peft.tuners.tuners_utils": _names("BaseTunerLayer")}

#: Module, or package and ".*" for every module in it -> what it takes from large libraries.
_DEFERRED: Mapping[str, _Names] = {
    "accelerate.commands.config.sagemaker": {"boto3": {}},
    "diffusers.hooks.*": _DYNAMO | _PEFT_LAYER | {"peft.helpers": _names("disable_input_dtype_casting")},
    "diffusers.loaders.lora_base": _PEFT_LAYER,
    "diffusers.quantizers.auto": {
        "diffusers.quantizers.gguf": _names("GGUFQuantizer"),
        "diffusers.quantizers.torchao": _names("TorchAoHfQuantizer"),
    },
    "diffusers.schedulers.*": {"scipy.integrate": {}, "scipy.stats": {}},
    "diffusers.utils.torch_utils": _DYNAMO,
    "torch.distributed.tensor.*": _SYMPY,
    "torch.distributed.tensor._ops.*": _SYMPY,
    "transformers.distributed.checkpoint": {
        "torch.distributed.checkpoint.hf_storage": _names("HuggingFaceStorageReader", "HuggingFaceStorageWriter"),
    },
    "transformers.generation.continuous_batching.cache": _DYNAMO,
    "transformers.integrations.*": _DYNAMO,
    "transformers.loss.*": {"scipy.optimize": _names("linear_sum_assignment")},
    "transformers.masking_utils": {
        "torch._dynamo._trace_wrapped_higher_order_op": _names("TransformGetItemToIndex"),
    },
    "transformers.modeling_utils": _DYNAMO,
    "transformers.quantizers.quantizer_torchao": {
        "torchao.prototype.safetensors.safetensors_support": _names("flatten_tensor_state_dict"),
    },
}


def _deferred_by(module: str) -> _Names:
    return _DEFERRED.get(module) or _DEFERRED.get(f"{module.rpartition('.')[0]}.*", {})


def _is_real(module: str) -> bool:
    return not isinstance(sys.modules.get(module), _StandIn | None)


class _StandIn(ModuleType):
    """Takes the place of a module in `sys.modules` while one other module takes names from it."""

    def __init__(self, name: str, makers: Mapping[str, _Maker]) -> None:
        super().__init__(name)
        self._made = {known: maker(name, known) for known, maker in makers.items()}
        self._thread = threading.get_ident()
        self.__spec__ = ModuleSpec(name, None)  # whether a package is installed is asked of this
        self.__path__: list[str] = []  # so that the finder is asked for modules in it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._made and threading.get_ident() == self._thread:
            return self._made[name]
        return getattr(_real_module(self.__name__), name)


#: The stand-ins that are in `sys.modules`, by thread: those of modules that are being executed.
_placed: dict[int, list[_StandIn]] = {}


def _may_stand_in(name: str) -> bool:
    return name not in sys.modules and ("." in name or PathFinder.find_spec(name) is not None)


@contextmanager
def _standing_in(libraries: _Names) -> Iterator[None]:
    new = [_StandIn(name, makers) for name, makers in libraries.items() if _may_stand_in(name)]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in new})
    placed = _placed.setdefault(threading.get_ident(), [])
    placed += new
    try:
        yield
    finally:
        del placed[len(placed) - len(new) :]
        for stand_in in new:
            if sys.modules.get(stand_in.__name__) is stand_in:
                del sys.modules[stand_in.__name__]


@contextmanager
def _hidden(stand_ins: Sequence[_StandIn]) -> Iterator[None]:
    hidden = [one for one in stand_ins if sys.modules.get(one.__name__) is one]
    for stand_in in hidden:
        del sys.modules[stand_in.__name__]
    try:
        yield
    finally:
        for stand_in in hidden:
            sys.modules.setdefault(stand_in.__name__, stand_in)


@contextmanager
def without_torchao() -> Iterator[None]:
    """Spare PEFT the import of torchao where it only asks whether a layer is torchao's: else, none is."""
    with _standing_in({"torchao.utils": _names("TorchAOBaseTensor")}):
        yield


@contextmanager
def without_compiler() -> Iterator[None]:
    """Spare PyTorch the import of its compiler, which it makes for every operation on the meta device.

    Such an operation is a Python function that the compiler must not trace (torch/_compile.py). It is told so when the
    compiler is imported.
    """
    with _standing_in(_DYNAMO):
        yield


def _real_module(name: str) -> ModuleType:
    with _hidden([one for placed in _placed.values() for one in placed]):
        return import_module(name)


class _Deferring(Loader):
    """Executes a module with the stand-ins that it needs, and without those of the module that imports it."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        with _hidden(_placed.get(threading.get_ident(), ())), _standing_in(_deferred_by(name)):
            self._real.exec_module(module)
        if name == "torch._dynamo":
            while _MISSED:
                _MISSED.pop()(module)


class _Present(Loader):
    """Loads a module that the import of its package has already loaded."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Finder(MetaPathFinder):
    """Finds what Python's own finder finds on the path, and gives some modules another loader."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not _deferred_by(name) and name != "torch._dynamo" and not _placed.get(threading.get_ident()):
            return None
        package = name.rpartition(".")[0]
        if isinstance(sys.modules.get(package), _StandIn):
            path = getattr(_real_module(package), "__path__", None)
            if path is None:
                return None
            if name in sys.modules:
                return ModuleSpec(name, _Present(sys.modules[name]))
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader)
        return spec
