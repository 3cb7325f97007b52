"""The neural network. It knows tensors, but no files and no requests."""

from engine.imports.deferred import defer_imports

# Before any module of this package imports diffusers, transformers or accelerate.
defer_imports()
