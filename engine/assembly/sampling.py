"""Config -> the components that a request may choose: sampler, guidance, step cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.assembly.family import check_family
from engine.components import (
    BRANCHES,
    Agree,
    Guidance,
    Sampler,
    SharedCache,
    StepCache,
    evaluations_of,
)
from engine.config import Config, SamplerConfig
from engine.data import Tally
from engine.errors import ConfigError
from engine.family import ContinuingSampler
from engine.plugin.manager import Registry
from engine.stages.passes import GuidanceInterval, guidance_of


@dataclass(frozen=True)
class Sampling:
    """The components that control the denoising of one request; guidance, cache and tally keep its state."""

    sampler: Sampler
    guidance: Guidance
    cache: StepCache
    #: Whether the passes of an evaluation are one forward of a batch: None: if it pays and the memory is sufficient.
    batched: bool | None = False
    #: The forwards that were made so far.
    tally: Tally = field(default_factory=Tally)

    def forwards(self, steps: int) -> tuple[int, ...]:
        """Return the number of forwards of each of `steps` steps, without a step cache."""
        evaluations = evaluations_of(self.sampler, steps)
        return tuple(
            count * len(guidance_of(self.guidance, index, steps).branches) for index, count in enumerate(evaluations)
        )

    def continued(self, steps: int) -> tuple[Sampling, int]:
        """Return what controls windows that continue another one, with the same state, and their number of steps."""
        if not isinstance(self.sampler, ContinuingSampler):
            return self, steps
        sampler, others = self.sampler.continued()
        return replace(self, sampler=sampler), others

    def all_forwards(self, steps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the forwards of each step of the first window, and of the others; see `forwards`."""
        continued, others = self.continued(steps)
        return self.forwards(steps), continued.forwards(others)


def build_sampling(config: Config, registry: Registry, *, agree: Agree | None = None) -> Sampling:
    """Build the components of `config`; needs no torch. Raises ConfigError for a value out of range.

    If several processes share a forward pass, `agree` makes their caches decide alike (`components.SharedCache`).
    """
    check_family(config)
    cache = registry.caches.build(config.cache)
    return Sampling(
        sampler=_sampler(config, registry),
        guidance=_guidance(config, registry),
        cache=cache if agree is None else _shared(cache, config, agree),
        batched=config.guidance.batched if agree is None else _alone(config),
    )


def sampler_config(config: Config, registry: Registry) -> SamplerConfig:
    """Return the sampler's config, of the class that the sampler of its name declares. Raises ConfigError."""
    chosen, kind = config.sampler, registry.samplers.config(config.sampler.name)
    if issubclass(kind, SamplerConfig) and not isinstance(chosen, kind):
        # The preset of a bundle has the keys of Euler; another solver of the model has only these in common with it.
        return kind(bundle=chosen.bundle, steps=chosen.steps, shift=chosen.shift)
    return chosen


def _sampler(config: Config, registry: Registry) -> Sampler:
    chosen = sampler_config(config, registry)
    sampler, steps = registry.samplers.build(chosen), chosen.steps
    counts = evaluations_of(sampler, steps)
    if len(counts) != steps or min(counts) < 1:
        what = f"sampler={config.sampler.name} declares {list(counts)} evaluations for {steps} steps"
        raise ConfigError(
            what, field="sampler", hint="fix the sampler's plugin: `evaluations` must return 1 or more for each step"
        )
    return sampler


def _guidance(config: Config, registry: Registry) -> Guidance:
    guidance = _known(config, registry.guidance.build(config.guidance))
    start, until = config.guidance.start, config.guidance.until
    if start <= 0 and until >= 1:
        return guidance
    plain = replace(config.guidance, text_scale=1.0, audio_scale=1.0)
    alone = _known(config, registry.guidance.build(plain))
    if len(guidance.branches) > 1 and len(alone.branches) >= len(guidance.branches):
        raise ConfigError(
            f"guidance={config.guidance.name} needs {len(alone.branches)} passes even without scales",
            field="guidance.until",
            hint="leave guidance.start and guidance.until at 0 and 1",
        )
    return GuidanceInterval(guidance, alone, start, until)


def _known(config: Config, guidance: Guidance) -> Guidance:
    unknown = [branch for branch in guidance.branches if branch not in BRANCHES]
    if unknown or not guidance.branches:
        what = f"guidance={config.guidance.name} asks for {', '.join(map(repr, unknown)) or 'no branch'}"
        raise ConfigError(
            what, field="guidance", hint=f"fix the guidance's plugin: it must name some of {', '.join(BRANCHES)}"
        )
    able = config.family.branches
    if not set(guidance.branches) <= set(able):
        scales = f"text_scale={config.guidance.text_scale:g} and audio_scale={config.guidance.audio_scale:g}"
        raise ConfigError(
            f"guidance={config.guidance.name} with {scales} needs passes that model={config.model.name} does not have",
            field="guidance",
            hint="set guidance.text_scale=1 and guidance.audio_scale=1, which need one pass",
        )
    return guidance


def _alone(config: Config) -> bool:
    """Return False; raise ConfigError if several processes should batch passes."""
    if config.guidance.batched is True:
        raise ConfigError(
            "several processes share forwards of one pass only",
            field="guidance.batched",
            hint="leave it out, or choose parallel=none",
        )
    return False


def _shared(cache: StepCache, config: Config, agree: Agree) -> StepCache:
    if not isinstance(cache, SharedCache):
        raise ConfigError(
            f"cache={config.cache.name} does not work if several processes share a forward pass",
            field="cache",
            hint="choose cache=none, or parallel=none",
        )
    return cache.shared(agree)
