# Ray's head and workers, with the trainer. The context is the top of the repository.
FROM python:3.11-slim-bookworm AS packages
RUN python -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt LICENSE ./
# Where to find torch before PyPI, whose own build is the one for CUDA; empty for that one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
# None of our packages is here yet: what they need, in a layer that changes of the code leave alone.
RUN touch README.md && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt '.[trainer]' 'ray[default]'

FROM python:3.11-slim-bookworm
# The cache's folder: a volume that is mounted there is the user's, too.
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin rcmae \
    && install -d -o 10001 -g 10001 /var/cache/rcmae
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/rcmae PYTHONUNBUFFERED=1 HOME=/tmp
COPY trainer /opt/rcmae/trainer
# The user may not write there later, and without byte code every start of a job is three times as long.
RUN python -m compileall -q /opt/rcmae
USER 10001
WORKDIR /tmp
CMD ["ray", "--help"]
