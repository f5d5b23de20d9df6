# Slimfront with the drivers and tools that docker-compose.yml needs, at the versions of constraints.txt.
# One stage: all of it are wheels, so there is no compiler to leave behind.

FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# The largest part first, so that it is not installed again for every change. Plain torch brings CUDA; .env.example says
# how to have the one for CPUs instead.
ARG TORCH_PIP_ARGS=""
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_PIP_ARGS} torch

COPY pyproject.toml README.md LICENSE slimfront.py ./
COPY spaces spaces
COPY compress compress
COPY objectives objectives
COPY search search
# animal-mnist: the data of configs/animals.yaml; what else its metadata asks for is not needed
RUN pip install -c constraints.txt ".[postgres,cluster,onnx]" && pip install -c constraints.txt --no-deps animal-mnist

# Volumes take over who owns these folders.
ARG UID=1000
RUN useradd --uid "$UID" --create-home --shell /usr/sbin/nologin slimfront \
 && install --directory --owner=slimfront --group=slimfront /var/cache/slimfront /work

ENV PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib SLIMFRONT_CACHE=/var/cache/slimfront
USER $UID
WORKDIR /work
CMD ["slimfront", "--help"]
