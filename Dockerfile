# syntax=docker/dockerfile:1
# Not built yet: there was no Docker engine where it was written.
#
# The reward server. CPU:   docker build -t inform-server .
#                    CUDA:  docker build -t inform-server:cuda --build-arg CUDA=13.0.1 .
#   docker run -p 8080:8080 -v /path/to/checkpoint:/model:ro -e INFORM_MODEL=/model inform-server

# Empty for the CPU; else the version of the CUDA images to build and run on.
ARG CUDA=

FROM rust:1.89-bookworm AS toolchain

# Both kinds of stages are only names; the argument picks one of each.
FROM debian:bookworm-slim AS build-base-
FROM nvidia/cuda:${CUDA:-13.0.1}-devel-ubuntu24.04 AS build-base-cuda
FROM debian:bookworm-slim AS run-base-
# With cuBLAS.
FROM nvidia/cuda:${CUDA:-13.0.1}-runtime-ubuntu24.04 AS run-base-cuda

# hadolint ignore=DL3006
FROM build-base-${CUDA:+cuda} AS build
ARG CUDA
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates pkg-config \
    && rm -rf /var/lib/apt/lists/*
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin inform-server ${CUDA:+--features cuda} \
    && strip target/release/inform-server

# hadolint ignore=DL3006
FROM run-base-${CUDA:+cuda} AS run
RUN useradd --system --uid 10001 --no-create-home inform
COPY --from=build /src/target/release/inform-server /usr/local/bin/inform-server
COPY --from=build /src/configs/demo /app/configs/demo
WORKDIR /app
USER 10001
# In a container, the container's ports are what limits who may ask.
ENV INFORM_HOST=0.0.0.0
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["inform-server", "health"]
# SIGTERM finishes what was accepted; give it `docker stop -t 60`.
ENTRYPOINT ["inform-server"]
