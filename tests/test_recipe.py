"""Recipes: the shipped ones parse, and what is wrong with another is told with value, place and nearest name."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from stages.errors import RecipeError
from stages.recipe import RECIPES, Recipe, field_names, load_recipe, recipe_with

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def sections(model=Recipe, prefix=""):
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield prefix + name, info
            yield from sections(info.annotation, f"{prefix}{name}.")


def leaves(model=Recipe):
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation)
        else:
            yield f"{model.__name__}.{name}", info


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_parses_by_file_and_by_name(file):
    assert load_recipe(file) == load_recipe(file.stem)


def test_digits_is_shipped():
    assert "digits" in [file.stem for file in SHIPPED]


def test_a_repair_prompt_of_eight_images_fits_the_longest_that_an_engine_takes():
    """With the draft and the repair, each as long as a rollout may be."""
    bounded = [recipe for recipe in map(load_recipe, SHIPPED) if recipe.engine.vllm.max_model_len is not None]
    assert bounded
    for recipe in bounded:
        image_tokens = recipe.model.max_pixels // 28**2
        assert 8 * image_tokens + 2 * recipe.rollout.max_new_tokens < recipe.engine.vllm.max_model_len


def test_every_field_has_a_line_of_help():
    assert [name for name, info in leaves() if not info.description] == []
    assert [name for name, info in sections() if not info.annotation.__doc__] == []


@pytest.mark.parametrize("info", dict(sections()).values(), ids=dict(sections()))
def test_setting_one_field_of_a_section_leaves_the_others_at_their_defaults(info):
    assert info.default == info.annotation()


def test_an_empty_file_is_every_default(recipe_file):
    assert load_recipe(recipe_file("")) == Recipe()
    assert load_recipe(recipe_file("# nothing\n")) == Recipe()


@pytest.mark.parametrize("text", ["rollout:\n", "train:\n  objective:\n", "rollout:\n  # temperature: 1\nseed: 0\n"])
def test_a_section_with_nothing_in_it_is_its_defaults(text, recipe_file):
    assert load_recipe(recipe_file(text)) == Recipe()


@pytest.mark.parametrize(
    ("text", "wrong", "nearest"),
    [
        ("sed: 1", "sed", "seed"),
        ("rolout: {temperature: 1}", "rolout", "rollout"),
        ("rollout: {temprature: 1}", "rollout.temprature", "rollout.temperature"),
        ("train: {objective: {clip_lo: 1}}", "train.objective.clip_lo", "train.objective.clip_low"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(text, wrong, nearest, recipe_file):
    file = recipe_file(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(file)

    assert str(error.value) == f"{file}: no field {wrong}; the nearest is {nearest}"


@pytest.mark.parametrize(
    ("assignment", "wrong", "nearest"),
    [
        ("rollout.temprature=1", "rollout.temprature", "rollout.temperature"),
        ("rolout.temperature=1", "rolout", "rollout"),
        ("sft.optimizer.learning_rte=1", "sft.optimizer.learning_rte", "sft.optimizer.learning_rate"),
        ("train.optimizer.lr=1", "train.optimizer.lr", "train.optimizer.learning_rate"),
        ("repair_rl.optimizer.wd=1", "repair_rl.optimizer.wd", "repair_rl.optimizer.weight_decay"),
        ("train.lr=1", "train.lr", "train.optimizer.learning_rate"),
        ("train.learning_rate=1", "train.learning_rate", "train.optimizer.learning_rate"),
        ("train.temperature=1", "train.temperature", "rollout.temperature"),
    ],
)
def test_an_unknown_key_in_set_is_placed_there(assignment, wrong, nearest):
    with pytest.raises(RecipeError) as error:
        load_recipe("digits", ["seed=1", assignment])

    assert str(error.value) == f"--set {assignment}: no field {wrong}; the nearest is {nearest}"


@pytest.mark.parametrize("assignment", ["speculative_config=ngram", "speculative_config.method=ngram"])
def test_vllms_speculation_is_refused_with_the_reason(assignment, recipe_file):
    with pytest.raises(RecipeError, match=r"vLLM's speculation is not offered: .*engine\.name=transformers") as error:
        load_recipe("digits", [f"engine.vllm.{assignment}"])
    assert "\n" not in str(error.value)
    assert load_recipe(recipe_file("engine: {vllm: {speculative_config: null}}")) == Recipe()


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("{model: m, api_key_env: KEY}", "audit.endpoint.base_url is missing; give it a value"),
        (
            "{base_url: 'http://h', model: m, verdicts: 3, api_key_env: KEY}",
            "audit.endpoint: verdicts is 3 at temperature 0: all would be the same; raise temperature",
        ),
        ("{base_url: 'http://h', model: m, api_key: KEY}", "no field audit.endpoint.api_key; the nearest is "
         "audit.endpoint"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_several_fields_is_told_without_their_values(endpoint, message, recipe_file):
    file = recipe_file(f"audit: {{endpoint: {endpoint}}}")
    with pytest.raises(RecipeError) as error:
        load_recipe(file)

    assert str(error.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("reward.judge.api_key=sk-secret", "no field reward.judge.api_key; the nearest is reward.judge"),
        ("audit.endpoint.base_url=sk-secret", "audit.endpoint.base_url: String should match pattern"),
        ("audit.endpoint={sk-secret", "its value is not YAML; quote it"),
        ("reward.judge=sk-secret", "reward.judge: Input should be a valid dictionary"),
    ],
)
def test_a_key_that_stands_where_its_variables_name_belongs_is_not_shown(assignment, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("digits", [assignment])

    assert f"--set {assignment.partition('=')[0]}=...: {message}" in str(error.value)
    assert "secret" not in str(error.value)


def test_every_wrong_field_has_a_line(recipe_file):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file("sed: 1\nrollout: {temperature: 0, samples: 4}"))

    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=-1",
        "rollout.temperature=0",
        "rollout.temperature=10.5",
        "rollout.samples_per_problem=0",
        "reward.threshold=1.01",
        "reward.timeout_s=0",
        "sft.heldout_share=-0.1",
        "sft.optimizer.learning_rate=0",
        "train.half_life=0",
        "train.objective.kl_coef=-1",
        "train.objective.importance_cap=0.9",
        "repair_rl.edit_penalty=.inf",
        "repair_rl.edit_penalty=.nan",
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_place(assignment):
    field, _, value = assignment.partition("=")
    with pytest.raises(RecipeError) as error:
        load_recipe("digits", [assignment])

    assert str(error.value).startswith(f"--set {assignment}: {field} is {value.lstrip('.')}: Input should be ")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("seed: one", "seed"),
        ("seed: 1.5", "seed"),
        ("seed: [1]", "seed"),
        ("rollout: 3", "rollout"),
        ("rollout: [temperature, 1]", "rollout"),
        ("masks: {anchor_gaps: 7}", "masks.anchor_gaps"),
        ("masks: {align: hamming}", "masks.align"),
        ("train: {objective: {algorithm: ppo}}", "train.objective.algorithm"),
        ("prompt: {instruction: null}", "prompt.instruction"),
        ("prompt: {instruction: {a: 1}}", "prompt.instruction"),
        ("audit: {evidence_pattern: '('}", "audit.evidence_pattern"),
        ("7: 1", "7"),
    ],
)
def test_a_wrong_type_is_refused_with_its_place(text, field, recipe_file):
    file = recipe_file(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(file)

    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{file}: {field} ")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seed=7", 7),
        ("rollout.temperature=1", 1.0),
        ("sft.optimizer.learning_rate=3e-4", 3e-4),
        ("masks.anchor_gaps=false", False),
        ("masks.anchor_gaps=true", True),
        ("rollout.problems=null", None),
        ("rollout.problems=", None),
        ("prompt.instruction=Think, then answer.", "Think, then answer."),
        ('prompt.instruction=""', ""),
        ('prompt.instruction="Answer: x=1"', "Answer: x=1"),
        ("reward.name=mine:score=1", "mine:score=1"),
        ("train.objective.algorithm=cispo", "cispo"),
    ],
)
def test_set_reads_values_as_yaml(assignment, value, recipe_file):
    found = load_recipe(recipe_file(""), [assignment])
    for part in assignment.partition("=")[0].split("."):
        found = getattr(found, part)

    assert found == value
    assert type(found) is type(value)


def test_set_goes_over_the_file_and_the_last_one_wins(recipe_file):
    file = recipe_file("rollout: {temperature: 0.5, max_new_tokens: 9}")
    rollout = load_recipe(file, ["rollout.temperature=1", "rollout.temperature=2"]).rollout

    assert (rollout.temperature, rollout.max_new_tokens) == (2.0, 9)


def test_set_fills_a_section_that_is_null_or_absent(recipe_file):
    recipe = load_recipe(recipe_file("train:\n"), ["train.objective.clip_low=0.1", "masks.candidates=5"])

    assert recipe.train.objective.clip_low == 0.1
    assert recipe.masks.candidates == 5


def test_set_takes_a_whole_section():
    rollout = load_recipe("digits", ["rollout={temperature: 2}", "rollout.max_new_tokens=8"]).rollout

    assert (rollout.temperature, rollout.max_new_tokens, rollout.samples_per_problem) == (2.0, 8, 8)


def test_set_changes_one_of_two_sections_that_share_a_yaml_alias(recipe_file):
    file = recipe_file("repair_rl: {optimizer: &o {warmup_steps: 3}}\ntrain: {optimizer: *o}")
    recipe = load_recipe(file, ["train.optimizer.warmup_steps=4"])

    assert (recipe.repair_rl.optimizer.warmup_steps, recipe.train.optimizer.warmup_steps) == (3, 4)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rollout.temperature", "--set rollout.temperature: write section.key=value"),
        ("seed.x=1", "--set seed.x=1: seed is a value, not a section"),
        ("prompt.instruction={", "--set prompt.instruction={: '{' is not YAML: "),
        ("seed=2020-13-45", "--set seed=2020-13-45: '2020-13-45' is not YAML: month must be"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused_with_its_text(assignment, message, recipe_file):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file("seed: 1"), [assignment])

    (line,) = str(error.value).splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("content", [b"rollout: {", b"a: b: c", b"\xff\xfe\x00", b"seed: 2020-13-45", b"[" * 5000])
def test_what_is_not_yaml_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "mine.yaml")

    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / 'mine.yaml'}: not YAML: ")


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("rollout", "str"), ("7", "int"), ("false", "bool")])
def test_a_recipe_that_is_no_mapping_is_refused(text, kind, recipe_file):
    with pytest.raises(RecipeError, match=rf"mine\.yaml: a recipe is a mapping of sections, this is a {kind}$"):
        load_recipe(recipe_file(text))


def test_a_missing_recipe_lists_the_shipped_ones():
    with pytest.raises(RecipeError) as error:
        load_recipe("digit")

    shipped = ", ".join(file.stem for file in SHIPPED)
    assert str(error.value) == f"digit: no such recipe file; shipped recipes: {shipped}"


def test_field_names_are_dotted():
    assert {"seed", "rollout", "rollout.temperature", "train.objective.clip_low"} <= set(field_names(Recipe))


def test_the_recipe_module_imports_no_machine_learning():
    code = (
        "import sys, stages.recipe; stages.recipe.load_recipe('digits'); "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)

    assert done.stdout == "[]\n"


def test_the_whole_of_a_recipe_reads_back_without_what_may_be_a_key(recipe_file):
    text = "audit: {auditor: served, endpoint: {base_url: 'http://h', model: m, api_key_env: sk-123}}\n"
    recipe = load_recipe(recipe_file(text + "model: {image_cache: images, dtype: float32}"))
    whole = recipe.whole()

    assert "sk-123" not in str(whole)
    assert whole["model"]["image_cache"] == "images"
    assert recipe_with(whole, Path("a"), ["audit.endpoint.base_url=http://h", "audit.endpoint.api_key_env=sk-123"]) == (
        recipe
    )
    with pytest.raises(RecipeError, match=r"^a: audit\.endpoint\.base_url is missing; give it a value"):
        recipe_with(recipe.whole(), Path("a"))


@pytest.mark.parametrize("name", [file.stem for file in RECIPES.glob("*.yaml")])
def test_the_whole_of_a_shipped_recipe_is_the_recipe(name):
    assert recipe_with(load_recipe(name).whole(), Path("a")) == load_recipe(name)


def test_the_repair_model_is_trained_by_the_policy_s_algorithm_unless_another_is_named():
    """The paper: the same algorithm, only the reward differs."""
    followed = load_recipe("digits", ["train.objective.algorithm=gspo", "train.objective.clip_low=0.01"])
    assert followed.repair_rl.objective == followed.train.objective
    overlaid = load_recipe("digits", ["train.objective.algorithm=dapo", "repair_rl.objective.clip_high=0.5"])
    assert (overlaid.repair_rl.objective.algorithm, overlaid.repair_rl.objective.clip_high) == ("dapo", 0.5)
    assert overlaid.train.objective.clip_high is None
    named = load_recipe("digits", ["train.objective.algorithm=sapo", "repair_rl.objective.algorithm=grpo",
                                   "train.objective.tau_positive=2.0"])  # fmt: skip
    assert (named.repair_rl.objective.algorithm, named.repair_rl.objective.tau_positive) == ("grpo", None)
    assert load_recipe("digits", ["train.objective.algorithm=dpo"]).repair_rl.objective.algorithm == "grpo"
