# API, sweeper and the commands that need no model: no numerical library is installed.
#   docker build -f docker/api.Dockerfile -t viscera-api .
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/viscera \
    && /opt/viscera/bin/pip install --disable-pip-version-check '.[postgres,s3,tracing]' \
    && /opt/viscera/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/viscera /opt/viscera
# A named volume takes over the owner of the folder that it is mounted on.
RUN mkdir -p /var/lib/viscera \
    && chown 10001:10001 /var/lib/viscera \
    && chmod 700 /var/lib/viscera
ENV PATH=/opt/viscera/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    VISCERA_DATA_DIR=/var/lib/viscera \
    VISCERA_HOST=0.0.0.0 \
    VISCERA_LOG_JSON=true
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["viscera", "serve", "--api-only"]
