# An image with lwr, for the profiles of clouds and for Apptainer:
#   docker build --tag lwr .
#   apptainer build lwr.sif docker-daemon:lwr:latest && snakemake --cores 2 --sdm apptainer
# The lock keeps torch to its version, in the build that the index has: the one for GPUs. Extras: --build-arg EXTRAS=serve
FROM python:3.13-slim
ARG EXTRAS=workflow,demo
WORKDIR /lwr
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY config config
COPY workflow workflow
COPY lwr lwr
RUN pip install --no-cache-dir --constraint requirements.lock ".[${EXTRAS}]"
WORKDIR /grid
ENTRYPOINT []
CMD ["lwr", "--help"]
