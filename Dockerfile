# The worker's image: docker build -t multitalk-local .
#
# torch from PyPI installs all CUDA libraries as wheels (13.0 for the version that constraints.txt pins), so the base only
# has to support the driver. A -runtime- base works too, but contains the same libraries a second time.
# For another CUDA: --build-arg CUDA_IMAGE=... and --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of such builds>.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${CUDA_IMAGE} AS builder
# The base image's tag pins the release; a version of each package would be gone from its archive within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
RUN python3 -m venv /build/venv
# The engine's wheel and its lists of requirements. All others come as wheels (except one, see below): no compiler needed.
COPY setup.cfg constraints.txt ./
COPY docker/requirements.py docker/
RUN python3 docker/requirements.py . worker
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY conf conf
COPY engine engine
COPY plugins plugins
RUN /build/venv/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /build/wheel .


FROM ${CUDA_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# tini forwards signals and reaps children: process 1 has no default handlers, so SIGTERM would be lost.
# A compiler and Python's headers: Triton (a dependency of torch) compiles a C extension before its first kernel runs
# (triton/runtime/build.py). torch itself computes batched outer products with such a kernel (torch/_native), also without
# torch.compile; without a compiler they would fail in the middle of a job.
# /home/worker/models: for weights that are downloaded if no volume is attached, as RunPod's Hub starts a worker.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev libpython3-dev python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 --shell /usr/sbin/nologin worker \
    && install --directory --owner worker --group worker /home/worker/models \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# From here on the least often changed comes first: a push uploads a layer only if it, or one before it, has changed.
# The list comes from the builder, so that only another version of these packages rebuilds this large layer.
ARG PIP_EXTRA_INDEX_URL=
COPY --from=builder /build/heavy.txt /opt/multitalk/
RUN pip install --no-cache-dir --only-binary :all: --requirement /opt/multitalk/heavy.txt

COPY --from=builder /build/libraries.txt /build/constraints.txt /opt/multitalk/
# antlr4-python3-runtime (of Hydra) was never published as a wheel; it is pure Python and needs no compiler.
RUN pip install --no-cache-dir --only-binary :all: --no-binary antlr4-python3-runtime \
        --constraint /opt/multitalk/constraints.txt --requirement /opt/multitalk/libraries.txt

COPY --from=builder /build/wheel /opt/multitalk/wheel
RUN pip install --no-cache-dir --no-deps --no-index /opt/multitalk/wheel/*.whl && pip check
COPY docker/healthcheck.sh docker/check_image.py scripts/download_models.py /opt/multitalk/

# docs/deploy.md explains these and further variables.
# HF_HOME: downloads go to the volume, not into the container.
# MULTITALK_RECIPE is not set: the worker's default depends on the model, and a value here would count as a user's choice.
# PYTORCH_ALLOC_CONF: torch reads it before CUDA starts. Allocations change in size, and expandable segments reduce
# fragmentation.
# RUNPOD_MIN_CUDA_VERSION: lowest driver version for torch's CUDA. RUNPOD_MIN_DISK_PERCENT: weights are on the volume, the
# container's disk only holds one job's files. The time-outs belong to checks that stop the worker: slow is not broken.
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MODEL_PATH=/runpod-volume/models \
    MULTITALK_OVERRIDES= \
    HF_HOME=/runpod-volume/huggingface \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    RUNPOD_LOG_LEVEL=INFO \
    RUNPOD_INIT_TIMEOUT=800 \
    RUNPOD_MIN_CUDA_VERSION=13.0 \
    RUNPOD_MIN_DISK_PERCENT=5 \
    RUNPOD_NETWORK_CHECK_TIMEOUT=15 \
    RUNPOD_GPU_BENCHMARK_TIMEOUT=30 \
    RUNPOD_GPU_TEST_TIMEOUT=60

USER 10001
WORKDIR /home/worker
# The build fails if a kernel cannot be compiled, if a library is for another CUDA than torch's, or if the engine cannot
# make a video. This uses the embedded model and no GPU, and leaves no file.
RUN python /opt/multitalk/check_image.py --compiler \
    && examples="$(python -c 'import engine, pathlib; print(pathlib.Path(engine.__file__).parent / "examples")')" \
    && multitalk generate --image "$examples/two.png" --audio "$examples/left.flac" --prompt "A man talks." \
        --frames 5 --output /tmp/talk.mp4 model=tiny source=packaged sampler=turbo \
    && rm -rf /tmp/* /home/worker/.cache

HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["/opt/multitalk/healthcheck.sh"]
ENTRYPOINT ["tini", "--"]
CMD ["multitalk", "runpod"]

# Last, because they change with every commit.
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="MultiTalk Engine, RunPod worker" \
      org.opencontainers.image.description="A picture and one or two voices in, a talking video out." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
