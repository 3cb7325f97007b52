"""What a plugin may import. docs/plugins.md shows this list, and the tests check bundled plugins against it."""

from __future__ import annotations

from dataclasses import dataclass

#: Used instead of a kind: plugins of every kind.
EVERY = "every"


@dataclass(frozen=True)
class Public:
    """Names of one module that plugins may import."""

    module: str
    #: Separated by spaces.
    listed: str
    #: Config groups of the components that need them, separated by spaces; also "address" and "hook", for plugins that
    #: open addresses or follow a generation, and "every".
    used_by: str
    #: Their purpose, in a few words.
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self.listed.split())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of plugin."""
        return tuple(self.used_by.split())


#: Everything else may change without notice. A new row needs a bundled plugin or an example that uses it.
API = (
    # --- every plugin -------------------------------------------------------------------------------------------------
    Public("engine", "hookimpl", EVERY, "marks a function as the implementation of a hook"),
    Public("engine.plugin.register", "Register Presets", EVERY, "arguments of the register hooks"),
    Public("engine.config", "ComponentConfig", EVERY, "base class of a component's config"),
    Public(
        "engine.config",
        "within one_of SECRET",
        EVERY,
        "metadata of a config field: its range, its allowed values, that it is secret",
    ),
    Public("engine.config.bounds", "check_part", EVERY, "checks a component's config against these ranges"),
    Public(
        "engine.errors",
        "EngineError ConfigError RequestError MissingExtra Cancelled plain",
        EVERY,
        "one-line errors, and text made safe for a terminal",
    ),
    Public("engine.components", "CancelToken", EVERY, "is set once a request is cancelled"),
    Public("engine.cancel", "apart check", EVERY, "wait for slow work, and stop it when the token is set"),
    # --- components ---------------------------------------------------------------------------------------------------
    Public("engine.components", "Sampler Schedule", "sampler family", "protocols"),
    Public(
        "engine.components",
        "CountedSampler ExtendedSchedule StepTools",
        "sampler family",
        "for steps that evaluate the network again or draw fresh noise",
    ),
    Public("engine.config", "SamplerConfig", "sampler family", "base class of the config: steps, shift, bundle"),
    Public("engine.components", "Guidance", "guidance", "protocol"),
    Public(
        "engine.config", "GuidanceConfig", "guidance family", "base class of the config: scales of prompt and voices"
    ),
    Public("engine.components", "StepCache Agree CacheCost", "cache", "protocol, and types of its methods"),
    Public("engine.config", "CacheConfig", "cache", "base class of the config"),
    Public("engine.components", "RegionFinder", "regions", "protocol"),
    Public(
        "engine.people",
        "find_people PeopleFinder",
        "regions",
        "the finders of the engine, and a component for one of them",
    ),
    Public("engine.data", "Found", "regions", "a person in a picture"),
    Public("engine.components", "Quantiser", "quant family", "protocol"),
    Public("engine.config", "QuantConfig DynamicQuantConfig", "quant family", "base classes of the config"),
    Public("engine.loading.dynamic_quantiser", "DynamicQuantiser", "quant", "base class: layers multiply in 8 bits"),
    Public("engine.network.diffusers_cache", "DiffusersCache", "cache", "makes a step cache from one of diffusers"),
    Public(
        "engine.network.step_caches",
        "ResidualCache OutputCache join out_of_range",
        "cache",
        "base classes of caches that skip all blocks, or a whole forward, and the error of their keys",
    ),
    Public("engine.components", "AttentionBackend", "attention", "protocol"),
    Public(
        "engine.machine.packaged_backend",
        "KernelBackend PackagedBackend",
        "attention",
        "a kernel of diffusers by its name, and the base class for one of another package",
    ),
    Public(
        "engine.machine.kernels", "Found find_kernel installed_version refusal", "attention", "the table of kernels"
    ),
    Public(
        "engine.data",
        "AttentionChoice AttentionSite TokenGrid",
        "attention",
        "types of a choosing backend; the grid is the order of the tokens, for one that computes attention itself",
    ),
    Public("engine.components", "Reader Stored", "reader", "protocol, and a tensor's place in a file"),
    Public("engine.loading.safetensors_reader", "by_file", "reader", "tensors by file, in file order"),
    Public("engine.loading.safetensors_reader", "AheadReader", "reader", "the engine's own reader"),
    Public("engine.components", "ModelSource FetchingSource", "source", "protocols"),
    Public("engine.data", "Weights", "source family", "which weights to find"),
    Public("engine.config", "FolderConfig", "source", "base class of the config: a folder that `models pull` fills"),
    Public("engine.errors", "SourceError", "source", "weights are missing, incomplete or damaged"),
    Public("engine.loading.layout", "whole_folder missing_weights", "source", "whether a folder has all weights"),
    Public("engine.hub.manifest", "Preset read_manifest", "source", "the published weights"),
    Public(
        "engine.hub.cached",
        "find hub_cache link snapshot",
        "source",
        "files in the local cache of the Hugging Face Hub",
    ),
    Public("engine.hub.pull", "Options is_complete pull", "source", "download a preset, and whether it is there"),
    Public("engine.components", "Speech Samples", "speech", "protocol, and float32 samples"),
    Public("engine.config", "SpeechConfig", "speech", "base class of the config: the usual pause"),
    Public("engine.data", "Voice", "speech", "how a person of a script sounds"),
    Public("engine.machine.espeak_library", "PROGRAM", "speech", "a program that speaks with eSpeak NG's library"),
    Public("engine.components", "Diariser Samples", "diariser", "protocol, and float32 samples"),
    Public("engine.config", "DiariserConfig", "diariser", "base class of the config"),
    Public("engine.data", "Turn", "diariser", "a section in which one person speaks"),
    Public(
        "engine.media.diarise",
        "speech_sections embed similarities turns",
        "diariser",
        "sections of speech, and whose they are",
    ),
    Public("engine.components", "VoiceFilter Samples", "vocals", "protocol, and float32 samples"),
    Public("engine.machine.rnnoise", "denoise", "vocals", "a voice without noise, and the level of the noise"),
    Public("engine.components", "Sink", "sink", "protocol"),
    Public("engine.components", "LiveFolder", "sink", "protocol, for sinks that publish a video while it is made"),
    Public("engine.config", "SinkConfig", "sink", "base class of the config"),
    Public("engine.data", "Artifact Kept Store", "sink", "the video, a sink's answer, a job's own bucket"),
    Public(
        "engine.errors",
        "SinkError NotDelivered",
        "sink entrypoint",
        "a video cannot be stored, or is kept for another attempt",
    ),
    Public("engine.files.atomic", "Part make_folder part_in sweep", "sink", "files that appear only when complete"),
    Public("engine.files.checksums", "PART Sums compare read_sums", "sink", "checksums of an upload, as S3 has them"),
    Public("engine.files.live", "DiskLiveFolder", "sink", "a published video in a folder"),
    Public("engine.files.undelivered", "JOB Shelf remove", "sink", "videos that are kept for another attempt"),
    Public("engine.media.h264", "shrink", "sink", "encodes a video again to a given size"),
    Public("engine.net.s3_folder", "S3LiveFolder", "sink", "a published video in a bucket"),
    Public("engine.net.retry", "patiently", "sink", "retries with growing pauses"),
    Public("engine.net.s3", "Bucket Trouble", "sink address", "a bucket, and an error of it"),
    Public("engine.net.s3", "DAMAGED", "sink", "error codes for bytes that arrived damaged"),
    Public("engine.components", "Launcher JobWorker", "launcher entrypoint", "protocols"),
    Public("engine.errors", "WorkerLost", "launcher", "a worker's process has ended"),
    Public("engine.files.scratch", "scratch", "launcher", "a temporary folder that is always removed"),
    # --- families -----------------------------------------------------------------------------------------------------
    Public("engine.config", "FamilyConfig", "family", "base class of the config: what plans need to know of a family"),
    Public("engine.family", "Family FamilyModel", "family", "protocols"),
    Public(
        "engine.family",
        "Carried Denoising Finished",
        "family",
        "what a window hands to the next, the inputs of a denoising loop, and a finished window",
    ),
    Public(
        "engine.data",
        "Conditions DecodeOptions EncodeOptions Held Inputs Motion Plan Window",
        "family",
        "what a family's model is given, and the conditions of a window",
    ),
    Public("engine.loading.layout", "ComponentLayout part_in", "family", "where the files of a component are"),
    Public("engine.loading.diffusers_folder", "component_files", "family", "the files that a component's folder has"),
    Public("engine.loading.component_files", "ComponentFiles", "family", "the files of a part of Wan's kind"),
    Public(
        "engine.loading.placement",
        "Profile place reduce_memory resolve_profile",
        "family",
        "memory profiles: which parts are where, and when",
    ),
    Public("engine.machine.profiles", "allowance", "family", "bytes that a memory profile keeps free for activations"),
    Public("engine.loading.lora_file", "read_lora_header", "family", "the header of a LoRA"),
    Public("engine.data", "LoraFit Tally", "family", "how a LoRA matches a network, and the count of forwards"),
    Public("engine.data.attention", "Attend", "family", "type of an attention that is computed from the grid"),
    Public("engine.components", "MultiplyingQuantiser evaluations_of", "family", "what a quantiser and a sampler do"),
    Public("engine.stages.passes", "guidance_of", "family", "the guidance of a step"),
    Public("engine.media.color", "color_statistics", "family", "the colours of a picture"),
    Public("engine.network.codec", "WanCodec", "family", "Wan's video autoencoder"),
    Public("engine.network.text", "TextEncoder", "family", "umT5 with its tokenizer"),
    Public("engine.network.prompt_cache", "PromptCache", "family", "features of earlier prompts"),
    Public("engine.loading.model", "Model load_model", "family", "a network of Wan's kind with its encoders"),
    Public(
        "engine.loading.model",
        "DTYPES Lora Loras check_files load_tokenizer load_wav2vec2 place_parts",
        "family",
        "the parts of loading, for a family with a loading of its own",
    ),
    Public("engine.stages.compose", "compose", "family", "frames over those of a source video"),
    Public("engine.stages.decode", "Decoded decode", "family", "latents to frames in the picture's colours"),
    Public("engine.stages.denoise", "denoise draw_noise", "family", "the denoising loop, and its noise"),
    Public(
        "engine.stages.encode",
        "Conditioning Listened PictureCache encode_prompt_and_voices encode_texts share textless to_pixels",
        "family",
        "prompts, voices and pictures, once per request",
    ),
    Public("engine.components", "Guidance Reader Stored", "family", "protocols, and a tensor's place in a file"),
    Public("engine.errors", "SourceError", "family", "weights are missing, incomplete or damaged"),
    Public(
        "engine.imports.deferred", "without_compiler without_torchao", "family", "keep libraries from importing others"
    ),
    Public(
        "engine.loading.fill",
        "check_names fill find_stored match",
        "family",
        "stored tensors into a network, and whether they fit it",
    ),
    Public("engine.loading.quanto", "Quantised", "family", "a weight with one scale per row"),
    Public(
        "engine.loading.safetensors_reader",
        "AheadReader stored_tensors",
        "family",
        "the engine's own reader, and the tensors of a file",
    ),
    Public("engine.loading.single_file", "FromSingleFile", "family", "a network of Wan's kind from its files alone"),
    Public("engine.loading.tensor_names", "strip_prefixes", "family", "tensor names without the prefixes of tools"),
    Public("engine.media.canvas", "choose_bucket", "family", "the size for a picture"),
    Public(
        "engine.network.attention",
        "NATIVE AudioAttention CrossAttentionProcessor SelfAttentionProcessor class_scores prepare_attention "
        "wan_attention",
        "family",
        "attention kernels, and the scores of tokens by speaker",
    ),
    Public(
        "engine.network.audio", "SAMPLE_RATE AudioEncoder audio_frames audio_windows", "family", "a voice by frames"
    ),
    Public("engine.network.shapes", "check_shape", "family", "an error that names an input of another shape"),
    Public("engine.network.audio_projection", "AudioProjection", "family", "audio windows to tokens"),
    Public(
        "engine.network.compat",
        "AttentionMixin CacheMixin FeedForward PeftAdapterMixin apply_lora_scale dispatch_attention_fn "
        "known_to_diffusers register_cached_block",
        "family",
        "parts of diffusers that are not in its public API",
    ),
    Public(
        "engine.network.embeddings",
        "RMSNorm Rotary TimeTextImageEmbedding rotary_frequencies rotary_grid rotate timestep_sinusoid",
        "family",
        "positions, times and norms",
    ),
    Public("engine.network", "fused", "family", "sums and norms in one pass"),
    Public("engine.network.fused", "add eager layer_norm rms_rotate set_fused", "family", "sums and norms in one pass"),
    Public(
        "engine.network.speakers",
        "Speakers label_positions label_ranges prepare_speakers rotary_at token_masks",
        "family",
        "who speaks where (L-RoPE)",
    ),
    Public("engine.network.norms", "LayerNorm ModulatedLayerNorm modulation_table", "family", "norms in float32"),
    Public("engine.network.sequence", "Shard", "family", "a process's part of the tokens"),
    Public(
        "engine.planning.activations",
        "audio_bytes forward_bytes",
        "family",
        "temporary bytes, for plans",
    ),
    Public("engine.planning.memory", "FRAGMENTED", "family", "the share that an allocator loses"),
    Public("engine.planning.operations", "Forward Linear", "family", "the work of a forward, for plans"),
    Public("engine.planning.parameters", "Count Sizes published_sizes", "family", "sizes of a model, for plans"),
    Public("engine.planning.network", "Section", "family", "what a forward works on, for plans"),
    Public("engine.text.names", "is_plain", "family", "whether a file's name has no folder"),
    # --- entrypoints --------------------------------------------------------------------------------------------------
    Public("engine.components", "Entrypoint Service ProgressCallback", "entrypoint", "protocols"),
    Public("engine.config", "EntrypointConfig", "entrypoint", "base class of a config with its own defaults"),
    Public("engine.config", "RequestConfig", "entrypoint", "the flags of a request"),
    Public("engine", "EngineService", "entrypoint", "an engine in a process of its own"),
    Public(
        "engine",
        "Speaker SILENCE read_boxes read_script read_speakers read_timeline",
        "entrypoint",
        "parts of a request",
    ),
    Public("engine", "Request Progress Delivery Plan", "entrypoint hook", "a request and its results"),
    Public(
        "engine.data",
        "AudioType Canvas Fit LoraUse Seat Timing",
        "entrypoint",
        "types of a request's fields and parts of a plan",
    ),
    Public("engine.serving.estimate_lines", "estimate_lines", "entrypoint", "memory, times and prices of a plan"),
    Public("engine.serving.plan_lines", "dialogue_lines window_lines", "entrypoint", "a plan's windows as text"),
    Public("engine.errors", "plain_json", "entrypoint", "an answer as one line of JSON"),
    Public("engine.redaction", "redact", "entrypoint", "removes secrets from a text"),
    Public("engine.runtime.bar", "bar elapsed", "entrypoint", "the progress bar, and seconds as text"),
    Public("engine.text.terminal", "columns hanging is_live tell", "entrypoint", "lines of a terminal"),
    Public("engine.runtime.player", "find_player play", "entrypoint", "the system's player of videos"),
    Public("engine.files.scratch", "scratch", "entrypoint", "a temporary folder"),
    Public("engine.serving.worker.logs", "LogContext formatter", "entrypoint", "logs with the job's name"),
    Public("engine.serving.worker.limits", "JobsConfig", "entrypoint", "base class of the config: limits for jobs"),
    Public("engine.serving.worker.handler", "Terms", "entrypoint", "what `JobsConfig.terms` returns"),
    Public("engine.serving.worker.defaults", "boot", "entrypoint", "defaults of a worker"),
    Public("engine.serving.worker.serve", "serve check_terms", "entrypoint", "a serverless worker"),
    Public("engine.serving.jobs.defaults", "input_defaults", "entrypoint", "defaults of a job's fields"),
    Public(
        "engine.serving.batch.check", "CheckReport check", "entrypoint", "checks the jobs of a batch and plans them"
    ),
    Public("engine.serving.batch.jobs", "JobFile Line", "entrypoint", "a file of jobs"),
    Public("engine.serving.batch.results", "Results open_results", "entrypoint", "the file of results"),
    Public("engine.serving.batch.run", "BatchRun interruptible", "entrypoint", "runs the jobs with several workers"),
    Public("engine.serving.batch.worker", "EngineWorker", "entrypoint", "a worker of a batch"),
    Public("engine.serving.endpoint.limits", "EndpointLimits", "entrypoint", "limits of an endpoint"),
    Public("engine.serving.endpoint.server", "LocalEndpoint", "entrypoint", "an endpoint on this machine"),
    Public("engine.serving.hosts", "is_loopback", "entrypoint", "whether other machines can reach an address"),
    Public("engine.serving.studio.backend", "Backend LocalBackend RemoteBackend", "entrypoint", "engines of a studio"),
    Public("engine.serving.studio.web", "Serving", "entrypoint", "where a studio listens"),
    Public("engine.serving.studio.run", "run_studio", "entrypoint", "serves a studio"),
    Public("engine.stages.write", "read_provenance", "entrypoint", "the recipe in a video"),
    Public("engine.assembly.escape", "override override_list", "entrypoint", "any text as an override"),
    # --- hooks --------------------------------------------------------------------------------------------------------
    Public("engine.data", "Window Frames", "hook entrypoint", "a window of the plan, and its finished frames"),
    Public("engine", "Access", "address", "what may be opened, with limits of size and time"),
    Public("engine.net.guard", "Resolver Url look_up parse_url", "address", "restricts URLs to public addresses"),
    Public("engine.net.download", "Answer ask deadline_of", "address", "downloads within the limits of `Access`"),
    Public("engine.files.scratch", "unwritable", "address", "the error for a full disk"),
    Public("engine.text.base64_text", "clean is_medium starts_medium", "address", "base64 text as callers send it"),
)
