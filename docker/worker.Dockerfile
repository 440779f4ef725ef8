# A worker: reads scans, runs the network, writes results.
#   docker build -f docker/worker.Dockerfile -t viscera-worker .
#   docker build -f docker/worker.Dockerfile -t viscera-worker-gpu --build-arg VARIANT=gpu .
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON_IMAGE} AS build
# cpu or gpu, as the extras of the package.
ARG VARIANT=cpu
# PyTorch's index of CPU wheels. The default index has the build for CUDA, which brings CUDA's libraries along.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/viscera \
    && case "${VARIANT}" in \
         cpu) index="--extra-index-url=${TORCH_CPU_INDEX}" ;; \
         gpu) index= ;; \
         *) echo "VARIANT is cpu or gpu, not ${VARIANT}" >&2; exit 1 ;; \
       esac \
    && /opt/viscera/bin/pip install --disable-pip-version-check ${index:+"${index}"} ".[${VARIANT},postgres,s3,tracing]" \
    && /opt/viscera/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/viscera /opt/viscera
# A named volume takes over the owner of the folder that it is mounted on.
RUN mkdir -p /var/lib/viscera \
    && chown 10001:10001 /var/lib/viscera \
    && chmod 700 /var/lib/viscera
ENV PATH=/opt/viscera/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VISCERA_DATA_DIR=/var/lib/viscera \
    VISCERA_ENGINE_CACHE_DIR=/var/lib/viscera/tensorrt \
    VISCERA_LOG_JSON=true
USER 10001:10001
# Healthy: the worker of this container has passed the self-test of the default model.
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s CMD ["python", "-m", "service.worker_health"]
CMD ["viscera", "worker"]
