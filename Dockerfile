# Training, in a container:
#   docker build -t rewind .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" rewind experiment=cifar10_fast
# torch comes with CUDA's libraries. Without, where its index can be reached:
#   docker build -t rewind --build-arg TORCH=cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
# `--gpus all` gives it the GPUs. runs/ and artifacts/ come to lie in the folder that is mounted at /work.
FROM debian:bookworm-slim

# g++ is for compiled training
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/rewind
ENV PATH=/opt/rewind/bin:$PATH

ARG TORCH=cuda
ARG TORCH_INDEX=
COPY locks /tmp/locks
RUN pip install --no-cache-dir --require-hashes --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
      -r "/tmp/locks/torch-$TORCH.txt" \
 && pip install --no-cache-dir --require-hashes -r /tmp/locks/python3.11.txt -r "/tmp/locks/torch-$TORCH.txt"
COPY pyproject.toml README.md LICENSE /tmp/rewind/
COPY conf /tmp/rewind/conf
COPY src /tmp/rewind/src
RUN pip install --no-cache-dir --no-deps --no-build-isolation /tmp/rewind

# any user may be taken
RUN useradd --no-create-home --home-dir /home/rewind rewind \
 && install -d -m 1777 /home/rewind /work
# MLflow looks for git, and there is none
ENV HOME=/home/rewind GIT_PYTHON_REFRESH=quiet
USER rewind
WORKDIR /work
VOLUME /work
ENTRYPOINT ["rewind"]
