# The API, the controller and MLflow's server. The context is the top of the repository.
FROM python:3.11-slim-bookworm AS packages
RUN python -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt LICENSE ./
# None of our packages is here yet: what they need, and the command, in a layer that changes of the code leave alone.
RUN touch README.md && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt '.[server]'

FROM python:3.11-slim-bookworm
# For backups: pg_dump and pg_restore of the server's version, which is Debian's.
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-client-15 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin rcmae
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/rcmae PYTHONUNBUFFERED=1 HOME=/tmp
# Of the trainer the service knows the spec and the protocol alone.
COPY trainer/__init__.py /opt/rcmae/trainer/
COPY trainer/spec /opt/rcmae/trainer/spec
COPY trainer/protocol /opt/rcmae/trainer/protocol
COPY service /opt/rcmae/service
# The user may not write there later, and without byte code every start is three times as long.
RUN python -m compileall -q /opt/rcmae
USER 10001
WORKDIR /tmp
CMD ["uvicorn", "--factory", "service.app:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--timeout-graceful-shutdown", "5", "--no-access-log"]
