# Thin: every target is a line or two that also works by hand.
#   make run     libtorch, build, and the result table of the embedded digits with four workers
#   make cuda    the same programs, and thanos-worker-cuda beside them, which trains on GPUs; needs none to build
#   make install PREFIX=/opt/thanos   for other accounts of this machine, too
#   make test    everything; make lint, make deny, make parity, make check-cuda for parts of it
#   make image, make image-cuda   container images, with buildah or IMAGE_BUILD='docker build': deploy/container/README.md
#   make gpu-bundle   .gpu/, everything for half an hour on a machine with a GPU: gpu/README.md
#   make bench   ours and PyTorch's side by side; PEER_PYTHON=... if you have one with torch and torchvision

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# Every call of cargo selects the whole workspace: with another selection, dependencies have other features, and are built again.
LIBTORCH_VERSION := 2.11.0
CACHE   := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/thanos
SITE    := $(CACHE)/libtorch-$(LIBTORCH_VERSION)-cpu
# With every dependency of the wheel, and the headers that no dependency brings: 4.7 GB.
SITE_CUDA := $(CACHE)/libtorch-$(LIBTORCH_VERSION)-cuda
NVCC := $(SITE_CUDA)/nvcc/nvidia/cu13/bin/nvcc
PEER    := $(CACHE)/peer-$(LIBTORCH_VERSION)
PEER_PYTHON ?= $(PEER)/bin/python
PIP     := python3 -m pip install --quiet --disable-pip-version-check --no-compile --root-user-action=ignore
TARGET  := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release
DENY    := $(CACHE)/deny/bin/cargo-deny
SCRIPTS := deploy/container/empty_crates.sh deploy/container/licenses.sh deploy/container/image_test.sh \
	deploy/slurm/train.sbatch deploy/slurm/table.sbatch deploy/slurm/table.sh deploy/slurm/cluster.sh \
	tests/pod.sh .ci/run gpu/run.sh gpu/bundle.sh gpu/linkage.sh
PREFIX  ?= /usr/local
# Where the CUDA build finds libtorch: RPATH, as below in `libtorch`.
RPATH_CUDA := -Wl,--disable-new-dtags,-rpath,$$ORIGIN/../lib/thanos-cuda/torch/lib,-rpath,$(SITE_CUDA)/torch/lib
CARGO_CUDA := LIBTORCH=$(SITE_CUDA)/torch CARGO_TARGET_DIR=$(CACHE)/target-cuda RUSTFLAGS='-C link-arg=$(RPATH_CUDA)' \
	cargo build --release --locked --features thanos-worker/cuda
# Libraries that CUDA's libraries load by name at run time, so that ldd does not list them.
LOADED_CUDA := libcudnn libnvrtc libtorch_cuda_linalg
# The newest, as the name has a hash; looked for when a recipe needs it.
TESTS_CUDA = $$(ls -t $(CACHE)/target-cuda/release/deps/thanos-???????????????? | head -n 1)
PARITY  := $(if $(THANOS_PARITY),$(abspath $(THANOS_PARITY)))
# Two tests side by side, as they wait for processes part of the time; those that measure time run alone (tests/src/turns.rs).
# On a slow or busy machine: make test TEST_THREADS=1
TEST_THREADS ?= 2
TESTS   := OMP_NUM_THREADS=1 cargo test --release --locked --workspace --test thanos -- --test-threads=$(TEST_THREADS)

.PHONY: run build cuda install test lint deny bench bench-faults chaos parity check-cuda gpu-bundle install-cuda libtorch libtorch-cuda image image-cuda image-test clean

# A worker for each core, two to four of them: `make run NODES=4`.
NODES ?= $(shell n=$$(nproc); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))
run: build
	$(TARGET)/thanos-coord launch --nodes $(NODES) digits_table

build: libtorch
	cargo build --release --locked --workspace --bins

# Both workers' programs beside thanos-coord: `launch` takes the one for GPUs where there are any.
cuda: build $(NVCC)
	$(CARGO_CUDA) -p thanos-worker
	install $(CACHE)/target-cuda/release/thanos-worker $(TARGET)/thanos-worker-cuda

# The programs, and what the workers need of libtorch, found relative to them: any account can run them. CUDA's libraries
# find each other by relative paths, so that theirs are kept.
install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/thanos
	install $(TARGET)/thanos-coord $(TARGET)/thanos-worker $(DESTDIR)$(PREFIX)/bin
	ldd $(TARGET)/thanos-worker | awk '$$1 ~ /^lib(torch|c10|gomp|cupti|cudart)/ { print $$3 }' | \
		xargs install -t $(DESTDIR)$(PREFIX)/lib/thanos
	@if [ -f $(TARGET)/thanos-worker-cuda ]; then $(MAKE) --no-print-directory install-cuda; fi

install-cuda:
	install $(TARGET)/thanos-worker-cuda $(DESTDIR)$(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/lib/thanos-cuda
	{ ldd $(TARGET)/thanos-worker-cuda | awk '$$3 ~ "^$(SITE_CUDA)/" { print $$3 }'; \
		find $(SITE_CUDA)/torch/lib $(SITE_CUDA)/nvidia $(LOADED_CUDA:%=-name '%*.so*' -o) -false; } | \
		xargs realpath --no-symlinks --relative-to=$(SITE_CUDA) | sort -u | \
		(cd $(SITE_CUDA) && xargs cp --parents --target-directory=$(abspath $(DESTDIR)$(PREFIX))/lib/thanos-cuda)

test: build
	cargo test --release --locked --workspace --lib --bins
	$(TESTS) | tee $(TARGET)/tests.log
	@grep '^skipped: ' $(TARGET)/tests.log | sort -u | sed '1i Skipped, as this machine lacks what they need:' || true

lint: libtorch
	cargo fmt --all -- --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	bash -n $(SCRIPTS)
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); else echo 'shellcheck is not installed'; fi

# Licences, sources and bans of every dependency; advisories where their database can be had.
deny: $(DENY)
	$(DENY) check licenses bans sources
	$(DENY) check advisories || echo 'advisories were not looked at, or see above'

$(DENY):
	CARGO_TARGET_DIR=$(CACHE)/target-deny cargo install --quiet --locked --root $(CACHE)/deny cargo-deny@0.20.2
	rm -rf $(CACHE)/target-deny

# A hundred kills in one run of four workers; steps of eight seconds, checkpoints of eighteen, evaluations of forty; the
# rehearsal of the half hour on a GPU, not shortened: minutes.
chaos: build
	$(TESTS) --nocapture --ignored recovery:: slow:: gpu_rehearsal:: quick:: memory::

# Only the golden vectors, of another folder with THANOS_PARITY=FOLDER: one line per file.
parity: libtorch
	@OMP_NUM_THREADS=1 $(if $(PARITY),THANOS_PARITY=$(PARITY)) cargo test --release --locked --quiet --workspace \
		--test thanos -- --nocapture parity_checks::every_case_of_every_file

# Nothing else should run meanwhile. BENCH="--per-class 500" is the size of the real TinyImageNet.
bench: build $(PEER_PYTHON)
	cargo build --release --locked -p thanos-views --example rate
	$(PEER_PYTHON) benches/run.py --views $(TARGET)/examples/rate --coord $(TARGET)/thanos-coord $(BENCH)

# The same kills against ours and against torchrun: FAULTS="--tries 4 --seed 1". An hour.
bench-faults: build $(PEER_PYTHON)
	$(PEER_PYTHON) benches/torchrun_faults.py --coord $(TARGET)/thanos-coord --results faults.jsonl $(FAULTS)

# PyTorch as its users have it: 3 GB, for comparisons only.
$(PEER)/bin/python:
	python3 -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check torch==$(LIBTORCH_VERSION) torchvision==0.26.0 numpy pillow safetensors

# Container images; IMAGE_ARGUMENTS="--build-arg BASE=..." for machines that reach no registry. image-test trains in one.
IMAGE       ?= thanos-trainer
IMAGE_BUILD ?= buildah build --isolation chroot --layers --format oci
image:
	$(IMAGE_BUILD) $(IMAGE_ARGUMENTS) --file deploy/container/Containerfile --target cpu --tag $(IMAGE):cpu .

image-cuda:
	$(IMAGE_BUILD) $(IMAGE_ARGUMENTS) --file deploy/container/Containerfile --target cuda --tag $(IMAGE):cuda .

image-test:
	deploy/container/image_test.sh $(IMAGE):cpu

# Builds the worker and the tests with NCCL, and reads from them what they will look for; needs no GPU.
check-cuda: build $(NVCC)
	$(CARGO_CUDA),thanos-tests/cuda -p thanos-worker -p thanos-tests --bin thanos-worker --test thanos
	gpu/linkage.sh $(SITE_CUDA) $(TARGET)/thanos-worker $(CACHE)/target-cuda/release/thanos-worker $(TESTS_CUDA)

# At most 60 MB, for a machine with PyTorch and no network.
gpu-bundle: check-cuda
	gpu/bundle.sh .gpu $(TARGET) $(CACHE)/target-cuda/release $(TESTS_CUDA)

# libtorch, and where cargo finds it: with this file, plain cargo works, and binaries run without any variable.
# RPATH instead of RUNPATH, since LD_LIBRARY_PATH with another libtorch must not take precedence; `make install` puts
# libtorch into ../lib/thanos.
libtorch: $(SITE)/.complete .cargo/config.toml

libtorch-cuda: $(NVCC)

$(SITE)/.complete:
	rm -rf $(SITE)
	$(PIP) --no-deps --target $(SITE) torch==$(LIBTORCH_VERSION) nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
	touch $@

$(SITE_CUDA)/.complete:
	rm -rf $(SITE_CUDA)
	$(PIP) --target $(SITE_CUDA) torch==$(LIBTORCH_VERSION) 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
	touch $@

# The compiler of our kernels. pip does not add to folders that exist, as nvidia/ does.
$(NVCC): $(SITE_CUDA)/.complete
	rm -rf $(SITE_CUDA)/nvcc
	$(PIP) --no-deps --target $(SITE_CUDA)/nvcc 'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*'
	touch $@

.cargo/config.toml: Makefile
	mkdir -p .cargo
	printf '%s\n' '# Written by `make libtorch`: where libtorch is on this machine.' \
		'[env]' 'LIBTORCH = { value = "$(SITE)/torch", force = false }' '' \
		'[build]' 'rustflags = ["-C", "link-arg=-Wl,--disable-new-dtags,-rpath,$$ORIGIN/../lib/thanos,-rpath,$(SITE)/torch/lib"]' > $@

clean:
	rm -rf target .cargo
