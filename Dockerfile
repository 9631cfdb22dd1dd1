# podhook's image. Any base with Python 3.11 or newer and its venv module will do; the same file builds on all of them:
#   docker build -t podhook .
#   podman build --build-arg BASE=... -t podhook .
ARG BASE=python:3.13-slim

# pip lives in a virtual environment of its own and fills another one, so nothing of it gets into the image.
FROM ${BASE} AS dependencies
WORKDIR /source
COPY requirements/image.txt requirements/build.txt ./
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python3", "-m", "venv", "/build"]
RUN ["python3", "-m", "venv", "--without-pip", "/opt/podhook"]
# kubernetes-asyncio is disk only: it is not imported unless PODHOOK_KUBERNETES=true, so it goes without its byte code.
# What does not have the hash that was written down when the versions were tested is not installed.
RUN /build/bin/pip --python /opt/podhook/bin/python install --require-hashes --no-deps -r image.txt \
 && rm -f /opt/podhook/bin/[Aa]ctivate* \
 && find /opt/podhook -path '*/kubernetes_asyncio/*' -name __pycache__ -prune -exec rm -rf {} +
RUN ["/build/bin/pip", "install", "--require-hashes", "--no-deps", "-r", "build.txt"]

# A layer of its own: a new version of podhook with the same dependencies is a small download.
FROM dependencies AS project
COPY pyproject.toml README.md LICENSE ./
COPY examples/demo.yaml examples/
COPY agent agent
RUN /build/bin/pip wheel --no-build-isolation --no-deps -w dist . \
 && /build/bin/pip --python /opt/podhook/bin/python install --no-deps --prefix /project dist/*.whl

FROM ${BASE}
# A database's user that finds a way to start one of this image's programs must not become root by it.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && mkdir -p -m 0700 /var/lib/podhook
COPY --from=dependencies /opt/podhook /opt/podhook
COPY --from=project /project /opt/podhook
ENV PATH=/opt/podhook/bin:$PATH \
    PODHOOK_STATE_DIR=/var/lib/podhook \
    PODHOOK_LAUNCHER=true

ARG VERSION=unknown
LABEL org.opencontainers.image.title="podhook" \
      org.opencontainers.image.description="Backup hooks beside every database: the agent, and the commands of the coordinator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# No USER: commands run inside the database's container as its user, and only a process that starts as root holds the
# runtime's default capabilities, of which it takes SYS_CHROOT, SETUID, SETGID and KILL. Nothing needs to be added.
# No shell and no init in front: Python is process 1 and gets the signals.
ENTRYPOINT ["podhook"]
CMD ["agent"]
