# Four images: coordinator, worker, preprocessing, dashboard (`make images`). Each contains the extra that it needs and
# runs as user 10001 on a read-only root. BASE is a Debian image whose packages include Python 3.11 or newer.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS runtime
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 foldwise \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp foldwise
ENV PATH=/foldwise/bin:/opt/foldwise/bin:/usr/bin:/bin \
    PYTHONPATH=/foldwise \
    FOLDWISE_IMAGE_USER=10001 \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# tini is process 1: it forwards signals to the program and reaps orphaned processes.
ENTRYPOINT ["/usr/bin/tini", "--", "foldwise"]
USER 10001:10001

FROM runtime AS build
USER 0:0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/foldwise
WORKDIR /source
# Only foldwise's dependencies: a new version of foldwise does not change this layer.
COPY pyproject.toml constraints.txt ./
COPY images/install images/install

FROM build AS coordinator-needs
RUN images/install coordinator
FROM build AS worker-needs
RUN images/install worker
FROM build AS preprocessing-needs
RUN images/install preprocessing
FROM build AS dashboard-needs
RUN images/install dashboard

FROM build AS foldwise
COPY README.md LICENSE ./
COPY foldwise foldwise
COPY services services
COPY client client
COPY report report
COPY coordinator coordinator
COPY worker worker
COPY preprocessing preprocessing
COPY k8s k8s
COPY cli cli
RUN images/install

FROM runtime AS coordinator
COPY --from=coordinator-needs /opt/foldwise /opt/foldwise
COPY --from=foldwise /foldwise /foldwise
ARG REVISION=
ENV FOLDWISE_REVISION=${REVISION}

# A compiled compute plan needs a C compiler: COMPILER="gcc g++ libc6-dev python3-dev" adds one. Without it, a worker
# reports that it runs no compiled plan, and gets only folds of other plans.
FROM runtime AS worker
ARG COMPILER=
USER 0:0
RUN if [ -n "${COMPILER}" ]; then apt-get update \
 && apt-get install --yes --no-install-recommends ${COMPILER} \
 && rm -rf /var/lib/apt/lists/*; fi
USER 10001:10001
COPY --from=worker-needs /opt/foldwise /opt/foldwise
COPY --from=foldwise /foldwise /foldwise
ARG REVISION=
ENV FOLDWISE_REVISION=${REVISION}

FROM runtime AS preprocessing
COPY --from=preprocessing-needs /opt/foldwise /opt/foldwise
COPY --from=foldwise /foldwise /foldwise
ARG REVISION=
ENV FOLDWISE_REVISION=${REVISION}

FROM runtime AS dashboard
COPY --from=dashboard-needs /opt/foldwise /opt/foldwise
COPY --from=foldwise /foldwise /foldwise
ARG REVISION=
ENV FOLDWISE_REVISION=${REVISION}
