# syntax=docker/dockerfile:1
# The server with its default weights; no network at run time.
#
#   docker build -t whisper-gpt .                                                      CPU
#   docker build -t whisper-gpt:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run -p 8000:8000 whisper-gpt                                                (CUDA: add --gpus all)

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The base's pip installs into a venv that has none: nothing is installed into an image that runs.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON=/opt/venv/bin/python
# torch from TORCH_INDEX alone, so that the default index cannot offer a CUDA build of the same version.
RUN python -m venv --without-pip /opt/venv \
    && pip install --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}"
WORKDIR /srv
# By hash, and nothing else. torch has other wheels for each TORCH_INDEX: of it the version alone is pinned.
COPY requirements.lock ./
RUN pip install --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY model ./model
# Editable: the code stays in /srv, beside weights/, as in a checkout. Its bytecode is made here, since nobody can write
# it later. What no server reads goes: tests, and what programs in C++ are built against torch with.
RUN pip install --no-deps -e . \
    && python -m compileall -q --invalidation-mode unchecked-hash app model \
    && find /opt/venv/lib -depth -type d \( -name tests -o -path '*/torch/test' -o -path '*/torch/include' \
        -o -path '*/torch/share' \) -exec rm -r {} + \
    && find /opt/venv/lib -path '*/torch/bin/*' ! -name torch_shm_manager -delete

FROM python:${PYTHON_VERSION}-slim-bookworm
LABEL org.opencontainers.image.title="whisper-gpt-server" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --no-create-home --home-dir /srv --shell /usr/sbin/nologin server
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv /srv
COPY weights /srv/weights
COPY examples /srv/examples
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WHISPERGPT_HOST=0.0.0.0 \
    WHISPERGPT_LOG_FORMAT=json \
    WHISPERGPT_PORT=8000
WORKDIR /srv
# The step is compiled for the processor that builds; on another one the first start compiles anew, into the same folder.
ENV NUMBA_CACHE_DIR=/srv/.numba
RUN python -m model.inference.numba_backend && chown -R 10001 /srv/.numba
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['WHISPERGPT_PORT']}/readyz\", timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["whisper-gpt"]
CMD ["serve"]
