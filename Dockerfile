# Tauon in a container, for the launchers (k8s, slurm) and for a machine that should stay as it is.
#
#   docker build -t tauon .                                                          torch for the CPU
#   docker build -t tauon --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .   torch for NVIDIA GPUs
#   docker build -t tauon --build-arg EXTRAS=ray,wandb .                             with other optional libraries
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/data" tauon serve /data/runs/quickstart --host 0.0.0.0
#   docker run --rm -v "$PWD:/data" tauon run quickstart --root /data/runs
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# rayjob: Ray with the job server that a RayJob on Kubernetes talks to; the others are what shipped recipes need
ARG EXTRAS=rayjob,sklearn,images,audio,privacy,chat,zstd,tensorboard,serve

WORKDIR /opt/tauon
# torch first: the large layer, which only a change of the pins makes anew
COPY constraints.txt .
RUN torch="$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$torch"
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"

# A user without rights; its number can be set from outside (docker run --user, securityContext)
RUN useradd --create-home --uid 1000 tauon && mkdir /data && chown tauon /data
USER tauon
WORKDIR /data
# The cache of prepared data, and the ledgers of private runs: on a volume where there is one
ENV PYTHONUNBUFFERED=1 TAUON_CACHE=/data/.cache/tauon TAUON_LEDGER=/data/ledger
ENTRYPOINT ["tauon"]
CMD ["--help"]
