"""Loads weight files into a model in memory: layouts, readers, quantisation, placement on devices."""

from engine.imports.deferred import defer_imports

# Before any module of this package imports diffusers, transformers or accelerate.
defer_imports()
