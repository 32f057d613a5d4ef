"""The recipe's sections, one a stage: bounds and a line of help per field. Imports no machine learning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(gt=0, le=10)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Algorithm = Literal["grpo", "dr_grpo", "dapo", "gspo", "sapo", "cispo", "ppo", "dpo"]
Gate = Literal["difference", "soft", "entropy", "perception", "none"]
ROLLOUT_GATES = ("entropy", "perception", "none")
"""Gates on the whole rollout group, which use no repair."""
ScoreColumn = Literal["entropies", "image_kls", "answer_gaps"]
SCORE_COLUMNS: dict[str, ScoreColumn] = {"entropy": "entropies", "perception": "image_kls", "answer_gap": "answer_gaps"}
"""Of a gate or an advantage, the column of `groups` that it is made of."""
ReferenceKind = Literal["answer", "preferred", "sibling"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_defaults(cls, values: Any) -> Any:
        """A section with nothing under it, as when every line is commented out."""
        return {} if values is None else values


class ModelSection(Section):
    """How checkpoints are loaded."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="Of generation and scoring, of autocast in training, and there of what is not trained and of saved "
        "weights (embeddings and norms apart); what is trained is float32.",
    )
    min_pixels: Positive | None = Field(None, description="Smallest image after resizing; processor's own if null.")
    max_pixels: Positive | None = Field(None, description="Largest image after resizing; processor's own if null.")
    trust_remote_code: bool = Field(False, description="Run code that a checkpoint brings along.")
    image_cache: Path | None = Field(
        None,
        exclude=True,  # no output depends on it
        description="Folder that keeps preprocessed images by content; null keeps none. It pays only while its files "
        "(23 MB for 1024×1024 pixels) stay in memory.",
    )


class PromptSection(Section):
    """The words around a problem; the model's chat template does the rest."""

    instruction: str = Field(
        "Reason step by step and put the final answer in \\boxed{}.", description="Follows every question."
    )
    repair_instruction: str = Field(
        "Below is a draft answer that is wrong. Write it again, changing as few words as possible so that the "
        "reasoning and the final answer are right. Draft:",
        description="Precedes the draft in a repair prompt.",
    )
    reference_instruction: str = Field(
        "The reference answer is {reference}. The corrected draft must reason its way there.",
        pattern=r"\{reference\}",
        description="Follows the draft when the reference is given; {reference} stands for it.",
    )
    response_reference_instruction: str = Field(
        "Keep the draft's own words where they are right. A correct response to the same question: {reference}",
        pattern=r"\{reference\}",
        description="The same where the reference is a whole response, `preferred` or `sibling`.",
    )
    references: list[ReferenceKind] = Field(
        ["answer"],
        min_length=1,
        description="Kinds of reference in SFT and repair-RL prompts, each as likely: the annotated `answer`; the "
        "problem's `preferred` response; a `sibling`, a correct draft of the same problem (SFT: `preferred`). Where a "
        "problem has none of a kind: `answer`, counted.",
    )


class VllmSection(Section):
    """How vLLM runs. Several processes under `accelerate launch` have an engine each."""

    tensor_parallel_size: Positive = Field(
        1,
        exclude=True,  # like the others that are, it changes no distribution
        description="GPUs that one engine is cut over; 1 under `accelerate launch`.",
    )
    data_parallel_size: Positive | None = Field(
        None,
        exclude=True,
        description="Engines side by side, one in each process of `accelerate launch`; refused where these are another "
        "number.",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3,
        exclude=True,
        description="Share of a GPU's memory that an engine takes beside other weights (our choice): `build-masks` and "
        "`rl-repair` open up to two beside what scores or trains, and `loop` keeps both open.",
    )
    gpu_memory_utilization_alone: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9,
        exclude=True,
        description="Share that it takes where nothing lies beside it: `rollout`, `evaluate`, `repair-set sheet`.",
    )
    max_model_len: Positive | None = Field(
        None, description="Longest prompt with its response, in tokens; the model's own bound if null."
    )
    distributed_executor: Literal["mp", "ray"] | None = Field(
        None,
        exclude=True,
        description="What starts the workers of one engine: `ray` on several nodes; vLLM chooses if null.",
    )
    speculative_config: None = Field(
        None,
        exclude=True,
        description="Always null: vLLM's speculation is refused, since none of its kinds was shown to be exact with "
        "per-request seeds and ids that are never sampled. A repair follows its draft by `engine.name=transformers`.",
    )

    @field_validator("speculative_config", mode="before")
    @classmethod
    def _no_speculation(cls, given: Any) -> None:
        if given is not None:
            raise ValueError(
                "vLLM's speculation is not offered: vLLM 0.32 refuses logit_bias beside it, which keeps ids out that "
                "must not be sampled, and nothing in its place was shown to be exact; engine.name=transformers follows "
                "a repair's draft exactly (engine.draft_block)"
            )


class EngineSection(Section):
    """Generation and teacher-forced scoring."""

    name: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description="What generates; `auto` is vLLM where it is installed and a GPU is there, else transformers, which "
        "scores in either case.",
    )
    vllm: VllmSection = VllmSection()
    rows_per_batch: Positive = Field(64, description="Sequences that transformers generates at once.")
    tokens_per_batch: Positive = Field(
        16384, description="Tokens that are scored at once, or read of the prompts that transformers starts together."
    )
    draft_block: Positive | None = Field(
        None,
        exclude=True,  # it changes no response
        description="Tokens of one response in one pass of transformers, where a repair's error tells which to expect; "
        "1 makes no use of that, null takes 8 on a CPU and 16 elsewhere (our choice).",
    )


class EndpointSection(Section):
    """A served model behind the OpenAI API that gives verdicts. What is excluded from plans changes no verdict."""

    base_url: str = Field(
        pattern=r"^https?://", exclude=True, description="Where it is served, as in `http://localhost:8000/v1`."
    )
    model: str = Field(min_length=1, description="Its name there.")
    api_key_env: str | None = Field(
        None, exclude=True, description="Name of the environment variable with the API key; no key is sent if null."
    )
    concurrency: Positive = Field(
        16, exclude=True, description="Requests under way at once, over all processes (at least one each)."
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        120.0, exclude=True, description="Seconds from a request's start to the end of its reply."
    )
    retries: int = Field(
        6,
        ge=0,
        exclude=True,
        description="Further tries after 408, 409, 429, 5xx, a time-out, a lost connection or an invalid reply.",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(0.0, description="Sampling temperature of a verdict.")
    max_tokens: Positive = Field(1024, description="Longest reply; one that is cut there is invalid.")
    verdicts: Positive = Field(
        1, description="n, odd: verdicts asked for each case, each with a seed of its own; the majority of n counts."
    )
    max_null_share: Share = Field(
        0.05, exclude=True, description="The stage stops when a larger share of its verdicts cannot be had."
    )
    cache: Path | None = Field(
        None,
        exclude=True,
        description="Folder of the verdicts had so far; null: `difference-feedback/verdicts` in the user's cache.",
    )

    @model_validator(mode="after")
    def _majority(self) -> EndpointSection:
        if self.verdicts % 2 == 0:
            raise ValueError(f"verdicts is {self.verdicts}: an even number may have no majority; make it odd")
        if self.verdicts > 1 and self.temperature == 0:
            raise ValueError(f"verdicts is {self.verdicts} at temperature 0: all would be the same; raise temperature")
        return self


class RewardSection(Section):
    """The task reward R."""

    name: str = Field(
        "math",
        description="`math` (final answer by rule), `judge` (a served model, see `reward.judge`), a function of "
        "yours, `module:function`, or, for `df rollout` alone, `none`: every reward is null.",
    )
    judge: EndpointSection | None = Field(
        None, description="The served judge: `{base_url, model, api_key_env, …}`; needed by `judge` alone."
    )
    threshold: Share = Field(1.0, description="τ: a response is correct where R ≥ τ.")
    timeout_s: Annotated[float, Field(gt=0)] = Field(5.0, description="Seconds for one answer; longer is null.")
    workers: Positive = Field(2, description="Processes that check answers.")


class AuditSection(Section):
    """The auditor, which flags repairs that cheat."""

    auditor: Literal["rules", "served", "none"] = Field(
        "rules",
        description="`rules`: embedded rules and the continuation check; `served`: the model at `audit.endpoint`; "
        "`none`: nothing is flagged.",
    )
    endpoint: EndpointSection | None = Field(
        None, description="The served auditor: `{base_url, model, api_key_env, …}`; needed by `served` alone."
    )
    effect: Literal["reward", "filter"] = Field(
        "reward",
        description="`reward`: a flagged repair's R_rep is gated (eq. 4); `filter`: it leaves the batch.",
    )
    evidence_pattern: Pattern = Field(
        r"\b(image|picture|figure|photo|diagram|graph|chart|shown|shows|see|seen|visible)\b",
        description="Regular expression (any case) of text that claims visual evidence.",
    )
    rewrite_share: Share = Field(
        0.5, description="A repair of larger edit cost is flagged `mask_hallucination`: it rewrites."
    )


class ObjectiveSection(Section):
    """One policy-optimization objective; unset hyper-parameters take the algorithm's own defaults."""

    algorithm: Algorithm = Field(
        "grpo",
        description="Its name selects clip, aggregation and denominator; `dpo` (`train` alone) takes an error and its "
        "repair as a preference pair.",
    )
    clip_low: float | None = Field(None, ge=0, description="ε below.")
    clip_high: float | None = Field(None, ge=0, description="ε above; for cispo the bound on the ratio itself.")
    dual_clip: float | None = Field(
        None, gt=1, description="Bound on the ratio where A < 0, for all that clip; off if null, 3.0 in dual-clip PPO."
    )
    tau_positive: float | None = Field(None, gt=0, description="SAPO's temperature where A > 0.")
    tau_negative: float | None = Field(None, gt=0, description="SAPO's temperature where A ≤ 0.")
    max_response_length: Positive | None = Field(None, description="Dr.GRPO's L_max.")
    beta: float | None = Field(
        None, gt=0, description="DPO's β: the larger, the nearer the policy stays to the one that made the groups."
    )
    kl_coef: float = Field(0.0, ge=0, description="β: weight of the KL to the model that the step starts from.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of that KL.")
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO's soft punishment over the last tokens before the length limit; 0 is off."
    )
    importance_cap: Annotated[float, Field(ge=1)] | None = Field(
        None,
        description="Truncated importance sampling: the loss of each token that the trained model sampled is "
        "multiplied by min(exp(old - sampler's log-prob), this); null is off (our choice).",
    )
    gamma: Share | None = Field(None, description="PPO's discount γ a token; 1 where unset.")
    gae_lambda: Share | None = Field(None, description="PPO's λ of GAE; 0.95 where unset.")
    value_clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest move of PPO's values from the old ones that its loss rewards; 0.2 where unset."
    )
    value_coef: float | None = Field(
        None, ge=0, description="Weight of PPO's value loss beside the policy's; 0.1 where unset (our choice)."
    )
    critic_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Learning rate of PPO's value head over the model's; 10 where unset (our choice)."
    )

    def hyper(self) -> dict[str, Any]:
        """What was set, as keyword arguments of the objective."""
        names = ("clip_low", "clip_high", "dual_clip", "tau_positive", "tau_negative", "max_response_length", "beta")
        hyper = {name: value for name in names if (value := getattr(self, name)) is not None}
        return hyper | ({"kl_coef": self.kl_coef, "kl_estimator": self.kl_estimator} if self.kl_coef else {})

    def critic(self) -> dict[str, float]:
        """What was set of PPO's critic."""
        names = ("gamma", "gae_lambda", "value_clip", "value_coef", "critic_rate")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class OptimizerSection(Section):
    """AdamW and its schedule."""

    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-6, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradient norm is clipped to this.")
    max_skipped_steps: int = Field(
        10, ge=0, description="Steps whose loss or gradient is not finite are skipped; past this many training stops."
    )


class RepairSetSection(Section):
    """`df repair-set`."""

    samples_per_problem: Positive = Field(4, description="Answers sampled from the policy to find its errors.")
    errors_per_problem: Positive = Field(
        1,
        description="Errors of one problem at most; a second one is taken only when every problem has given its first.",
    )
    max_edit_cost: Share = Field(
        0.5, description="A repair of larger edit cost is a rewrite, and refused (our choice)."
    )


class SftOptimizerSection(OptimizerSection):
    """The same with a peak for supervised training."""

    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")


class SftSection(Section):
    """`df sft-repair` (eq. 1)."""

    epochs: Positive = Field(3, description="Passes over the repair set.")
    batch_size: Positive = Field(32, description="Pairs an optimizer step.")
    reference_dropout: Share = Field(0.2, description="Share of prompts that leave the reference out (our choice).")
    heldout_share: Share = Field(0.1, description="Share at the end of the set that is never trained on.")
    optimizer: SftOptimizerSection = SftOptimizerSection()


class RepairRlSection(Section):
    """`df rl-repair` (eq. 2-4)."""

    problems: Positive | None = Field(None, description="Problems drawn by the seed to find errors in; all if null.")
    iterations: Positive = Field(50, description="Rounds of sampling repairs and training on them.")
    errors_per_iteration: Positive = Field(64, description="Errors repaired in one iteration.")
    repairs_per_error: Positive = Field(8, description="Group size: repairs sampled for one error.")
    errors_per_step: Positive = Field(32, description="Errors whose repairs make one optimizer step.")
    drafts_per_problem: Positive = Field(4, description="Answers sampled from the policy to find its errors.")
    edit_penalty: float = Field(0.5, ge=0, description="λ: weight of the edit cost (eq. 4).")
    gating: Literal["all", "task"] = Field(
        "all",
        description="`all`: both gates times (R − λC) (eq. 4); `task`: both gates times R, minus λC (our choice).",
    )
    c1: bool = Field(True, description="Gate repairs of what can be repaired without the image (eq. 3).")
    c1_tries: Positive = Field(2, description="Image-free repairs of each error (our choice).")
    c1_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of them that must be correct to close it (our choice)."
    )
    c1_reference: Literal["withhold", "keep"] = Field("withhold", description="Reference in C1's prompt (our choice).")
    blank: Literal["zeros", "noise"] = Field("zeros", description="What takes the image's place.")
    text_only_tries: int = Field(4, ge=0, description="Image-free answers per problem; 0 is off (our choice).")
    text_only_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of them that must be correct to drop the problem (our choice)."
    )
    objective: ObjectiveSection = Field(
        ObjectiveSection(),
        description="As `train.objective`: what is not set here is taken from there, unless another "
        "algorithm is named; `dpo`, which repairs come in no pairs for, is not taken.",
    )
    optimizer: OptimizerSection = OptimizerSection()


class RolloutSection(Section):
    """`df rollout` (eq. 11)."""

    problems: Positive | None = Field(None, description="Problems drawn by the seed; all if null.")
    samples_per_problem: Positive = Field(8, description="G: responses to one problem.")
    temperature: Temperature = Field(0.7, description="Sampling temperature, wherever the models sample.")
    max_new_tokens: Positive = Field(2048, description="Longest response, end token included.")
    rows_per_shard: Positive = Field(
        256, description="Responses in one Parquet shard; transformers samples one at a time."
    )


class MasksSection(Section):
    """`df build-masks` (eq. 5-8)."""

    repairer: Literal["model", "sibling"] = Field(
        "model",
        description="`model`: a repair model; `sibling`: the correct rollout of the same group with the least edit "
        "cost, without a repair model or an audit (our choice).",
    )
    reference: ReferenceKind = Field(
        "answer",
        description="What the repair model is shown (eq. 5): the annotated `answer`, the problem's `preferred` "
        "response, or a `sibling`, a correct rollout of the same group drawn by the seed.",
    )
    candidates: Positive = Field(2, description="K: repairs sampled for one error.")
    candidates_when: Literal["always", "until_feasible"] = Field(
        "always",
        description="`until_feasible`: a further candidate only for errors of which none is feasible so far; the first "
        "one that is, is then taken (our choice).",
    )
    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="A token of the error stays in its repair where the repair model gives it at least this "
        "probability; only the others are drawn, so that repairs change less and invent less. All are drawn if null, "
        "as in the paper. Not with vLLM (our choice).",
    )
    errors_per_problem: Positive | None = Field(
        None,
        description="Errors of one problem that are repaired, drawn by the seed; the others leave the group, counted. "
        "All if null (our choice).",
    )
    repair_when: Literal["always", "worthwhile"] = Field(
        "always",
        description="`worthwhile`: errors of a kind of problem (its `kind`) of which too few can be repaired, as told "
        "from the shards before, are repaired no more; they leave the pairs, counted (our choice). Siblings cost "
        "nothing and always repair.",
    )
    worthwhile_share: Share = Field(
        0.15, description="Share of a kind's errors with a feasible repair at which it is `worthwhile` (our choice)."
    )
    worthwhile_after: Positive = Field(
        32, description="Errors of a kind that are repaired before that share counts (our choice)."
    )
    align: Literal["levenshtein", "lcs"] = Field("levenshtein", description="Edit path that the masks come from.")
    anchor_gaps: bool = Field(True, description="Mark the token after a gap where one side has none (our choice).")
    truncate: Literal["none", "error", "both"] = Field(
        "none", description="Keep only the first marked span (our choice)."
    )
    granularity: Literal["token", "step"] = Field(
        "token", description="`step`: a step with a marked token is marked whole; truncated, the first span's steps."
    )
    step_end: Literal["newline", "sentence"] = Field(
        "sentence", description="A step ends with a line; `sentence`: with a sentence too (our choice)."
    )
    on_no_correct: Literal["skip", "repair"] = Field(
        "skip",
        description="A problem without a correct rollout is skipped, or repaired all the same (our choice).",
    )
    no_feasible: Literal["drop", "ungated"] = Field(
        "drop", description="An error without a feasible repair leaves the group, or stays with gate 1 (our choice)."
    )


class PrimeSection(Section):
    """PRIME's implicit process reward model, trained beside the policy where `train.advantage` is `prime`."""

    beta: Annotated[float, Field(gt=0)] = Field(0.05, description="β: reward for a nat of its log-ratio.")
    gamma: Share = Field(1.0, description="γ: discount of a reward for each token that it is ahead.")
    optimizer: OptimizerSection = OptimizerSection()


class TrainSection(Section):
    """`df train-policy` (eq. 10-28)."""

    gate: Gate = Field(
        "difference",
        description="`difference`, `soft`: the masks. On the whole rollout group, with scores that `df build-masks` "
        "adds under this gate: `entropy`, the fifth of a step's tokens with the highest entropy; `perception`, the two "
        "fifths of each response whose distributions are farthest from those behind `repair_rl.blank`. `none` is the "
        "plain algorithm on that group.",
    )
    group: Literal["pairs", "all"] = Field(
        "pairs",
        description="`pairs`: the repaired errors and their repairs (eq. 16); `all`: every scored rollout and every "
        "selected repair, with gate 1 where there is no pair (our choice; needs a gate, and no `ppo` or `dpo`).",
    )
    half_life: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Tokens after which a soft weight halves (our choice)."
    )
    leak: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Weight of the tokens that a gate leaves out, and the least of the others (our choice)."
    )
    evenness: Share = Field(
        0.0,
        description="How far responses weigh alike, whatever share of them a gate leaves open: gates are multiplied by "
        "(length / their sum) to this power (our choice).",
    )
    advantage: Literal["group", "prime", "answer_gap"] = Field(
        "group",
        description="`group`: one a response, of the group's rewards. One a token, with gate `none`: `prime`, of "
        "implicit process rewards; `answer_gap`, the group's, weighed by how much likelier the policy finds the token "
        "when it is shown the answer, by `prompt.reference_instruction`.",
    )
    answer_gap_weight: Share = Field(
        0.5, description="λ: share of an `answer_gap` advantage that is weighed; the rest stays as it is."
    )
    support: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Least probability that the policy gives each marked token of a repair: an error whose repair has "
        "a less likely one counts as not repaired (our choice; 0 keeps all).",
    )
    kl_reference: Literal["start", "previous"] = Field(
        "start",
        description="What a KL term compares with: `start`, the policy that the rounds start from, where the command "
        "is given it (`--reference`; `make all` and `df loop` do); `previous`, the one that the round starts from.",
    )
    epochs: Positive = Field(1, description="Passes over the groups.")
    problems_per_step: Positive = Field(16, description="Groups an optimizer step.")
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    prime: PrimeSection = PrimeSection()

    @model_validator(mode="after")
    def _has_one_group(self) -> TrainSection:
        """What trains on the rollouts alone, or on pairs alone, leaves `group` no choice."""
        fixed = {"ppo": "the rollouts", "dpo": "pairs"}.get(self.objective.algorithm)
        if self.group == "all" and (self.gate in ROLLOUT_GATES or fixed):
            found = f"objective.algorithm is {self.objective.algorithm}" if fixed else f"gate is {self.gate}"
            raise ValueError(f"group is all, but {found}, which takes {fixed or 'the rollouts'} alone; set group=pairs")
        if self.gate in SCORE_COLUMNS and self.objective.algorithm == "dpo":
            raise ValueError(
                f"gate is {self.gate}, which takes the rollouts alone, but objective.algorithm is dpo, which takes "
                "pairs alone; set gate=difference, or another algorithm"
            )
        return self

    @model_validator(mode="after")
    def _has_one_advantage(self) -> TrainSection:
        """What gives each token an advantage takes the place of a gate and of pairs; PRIME's, of PPO's critic too."""
        advantage, algorithm = self.advantage, self.objective.algorithm
        if advantage == "group":
            return self
        if self.gate != "none":
            raise ValueError(
                f"advantage is {advantage}, but gate is {self.gate}: it takes the whole rollout group; set gate=none"
            )
        if algorithm == "dpo" or (algorithm == "ppo" and advantage != "prime"):
            raise ValueError(
                f"advantage is {advantage}, which {algorithm} has no use for; set objective.algorithm=grpo"
            )
        if advantage == "prime" and self.objective.overlong_buffer:
            raise ValueError("advantage is prime, which takes the bare outcomes; leave objective.overlong_buffer out")
        return self

    @property
    def has_critic(self) -> bool:
        """Whether a critic makes the advantages: PPO's, unless process rewards do."""
        return self.objective.algorithm == "ppo" and self.advantage != "prime"

    @property
    def scores(self) -> ScoreColumn | None:
        """The column of `groups` that `df build-masks` adds for this section; None where it needs none."""
        return SCORE_COLUMNS.get(self.gate) or SCORE_COLUMNS.get(self.advantage)


class LoraSection(Section):
    """Low-rank adapters on every linear layer of the text model instead of training all weights."""

    rank: Positive = Field(16, description="Rank of an adapter.")
    alpha: Positive = Field(32, description="Scale: an adapter's output is multiplied by alpha / rank.")
    bits: Literal[4] | None = Field(
        None,
        description="4: the layers under adapters rest in four bits (NF4, as in QLoRA), in one process, by the extra "
        "`quantized`; in model.dtype if null. The saved weights are the whole ones with the adapters added.",
    )


class TrainerSection(Section):
    """What the training stages train, and with how much of the machine."""

    tokens_per_micro_batch: Positive = Field(16384, description="Tokens of one forward and backward pass.")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass.")
    freeze_vision: bool = Field(False, description="Leave the vision tower and its projector as they are.")
    compile: bool = Field(False, description="Compile the text model's layers with torch.compile.")
    lora: LoraSection | None = Field(None, description="Train adapters: `{rank: 16, alpha: 32}`; all weights if null.")
    optimizer_bits: Literal[8] | None = Field(
        None,
        description="8: AdamW's moments rest in eight bits, but for those of embeddings and small weights, where each "
        "process trains a whole copy, by the extra `quantized`; in float32 if null.",
    )


class EvaluateSection(Section):
    """`df evaluate`."""

    draws: Positive = Field(8, description="Sampled answers per problem, at the rollout temperature.")
    image_removed: bool = Field(True, description="Also answer greedily on the blank image.")


class LoopSection(Section):
    """`df loop`."""

    validate_every: Positive = Field(1, description="Rounds between two validations.")
    best_by: Literal["sampled", "greedy"] = Field(
        "sampled", description="Accuracy on the validation problems by which the best policy is known."
    )
    patience: Positive | None = Field(
        None, description="Validations without a better policy, after which it ends; it goes on if null."
    )
    keep_rounds: Positive = Field(
        2,
        description="Of so many last rounds the weights and optimizer states are kept, beside those of the best; all "
        "rollouts, repairs and groups are.",
    )
    repair_rl_every: Positive | None = Field(
        None,
        description="Rounds after which the repair model is trained again, on the newest policy's errors; of the one "
        "that it then replaces the rows are kept, not the weights and optimizer states.",
    )


class VariantSection(Section):
    """What one variant of an ablation changes."""

    set: list[str] = Field([], description="Assignments `section.key=value`.")
    repair_model: Literal["rl", "sft", "rl_alone", "untrained", "none"] = Field(
        "rl",
        description="How far its repair model is trained, from the policy that the rounds start from; `rl_alone`: by "
        "reinforcement learning, which sees reference answers and no repair set; `untrained`: that policy, as it is "
        "(both our choice).",
    )
    start: Literal["base", "sft"] = Field(
        "base", description="`sft`: the base trained first on the repairs of the repair set as answers (our choice)."
    )
    rounds: int | None = Field(None, ge=0, description="Its own number of rounds; 0 trains the repair model alone.")
    seeds: Positive | None = Field(None, description="Of `ablate.seeds`, the first so many; all if null.")
    matches: str | None = Field(
        None,
        description="An earlier variant whose device-seconds it gets, evaluations left out: it goes on round by round "
        "until they are spent, and is read off where they end inside the last.",
    )

    @property
    def reads_repair_set(self) -> bool:
        return self.start == "sft" or self.repair_model in ("rl", "sft")


_UNGATED = {"set": ["masks.repairer=sibling", "train.gate=none", "train.group=pairs"], "repair_model": "none"}
_TO_ALL = {"set": ["train.group=all", "train.evenness=1", "train.support=0.05"]}
_EVEN = {
    "set": [*_TO_ALL["set"], "masks.keep=0.1", "audit.auditor=none", "train.problems_per_step=16"],
    "repair_model": "sft",
}


def _ungated(*assignments: str, **others: Any) -> dict[str, Any]:
    """A variant on the rollouts alone: siblings take the repair model's place, and no gate looks at them."""
    return {**_UNGATED, "set": [*_UNGATED["set"], *assignments], **others}


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "difference": {},
        "no_df": _ungated(matches="difference"),
        "lcs": {"set": ["masks.align=lcs"]},
        "soft": {"set": ["train.gate=soft"]},
        "sft_only": {"repair_model": "sft"},
        "no_edit_penalty": {"set": ["repair_rl.edit_penalty=0"]},
        "no_c1": {"set": ["repair_rl.c1=false"]},
        **{
            f"edit_penalty_{value}": {"set": [f"repair_rl.edit_penalty={value}"], "rounds": 0}
            for value in (0.2, 0.4, 0.6, 0.8)
        },
        **{f"candidates_{k}": {"set": [f"masks.candidates={k}"], "matches": "difference"} for k in (1, 3, 4)},
        "sibling": {"set": ["masks.repairer=sibling"], "repair_model": "none"},
        "prime": _ungated("train.advantage=prime", matches="difference"),
    },
    "rivals": {
        "grpo": _ungated(),
        "difference": {"set": ["train.group=pairs", "masks.on_no_correct=skip", "masks.keep=null"]},
        "difference_kept": {
            "set": ["train.group=pairs", "masks.keep=0.1", "audit.auditor=none"],
            "repair_model": "sft",
        },
        "difference_even": _EVEN,
        "difference_untrained": {**_EVEN, "repair_model": "untrained"},
        "difference_all": _TO_ALL,
        "sft_then_grpo": _ungated(start="sft"),
        "sft_then_difference_even": {**_EVEN, "start": "sft"},
        "sft_then_difference_all": {**_TO_ALL, "start": "sft", "repair_model": "sft"},
        "difference_without_set": {**_TO_ALL, "repair_model": "rl_alone"},
        "sft_only": {**_TO_ALL, "repair_model": "sft"},
        "sibling": {"set": ["train.group=pairs", "masks.repairer=sibling"], "repair_model": "none", "seeds": 3},
        "gspo": _ungated("train.objective.algorithm=gspo", seeds=3),
        "entropy": _ungated("train.gate=entropy", seeds=3),
        "answer_gap": _ungated("train.advantage=answer_gap", seeds=3),
        "perception": _ungated("train.gate=perception", seeds=3),
        "prime": _ungated("train.advantage=prime", seeds=3),
    },
}
"""Sets of variants by name: the paper's tables 3 and 4, and the study of difference feedback beside its rivals."""


class AblateSection(Section):
    """`df ablate`."""

    rounds: Positive = Field(3, description="Rounds of a variant that does not say otherwise.")
    device_seconds: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="What each variant may spend instead, evaluations left out: it goes on round by round, and is read "
        "off where they end inside the last. Null counts rounds.",
    )
    evaluations: Positive = Field(1, description="Policies of a run that are evaluated, evenly over its cost.")
    read_at: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="Device-seconds at which variants are compared beside those at the end, on the lines between their "
        "evaluations.",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1], min_length=1, description="Every variant runs with each.")
    learning_rates: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="Each variant is tuned on these first: it takes the one whose sampled accuracy on the validation "
        "problems is best. Empty takes `train.optimizer.learning_rate`.",
    )
    tuning_seed: int = Field(1000, ge=0, description="Seed of the runs that tune; none of `seeds`.")
    keep_rounds: bool = Field(True, description="Keep rollouts, groups and policies of a run that is recorded.")
    baseline: str = Field("difference", description="The variant that the others are compared with.")
    variants: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], VariantSection] = Field(
        {name: VariantSection.model_validate(variant) for name, variant in VARIANTS["paper"].items()},
        description="By name, each `{set, repair_model, start, rounds, seeds, matches}`; or `paper`, the paper's "
        "tables 3 and 4, or `rivals`, difference feedback beside other token credit.",
    )

    @field_validator("variants", mode="before")
    @classmethod
    def _set_of_variants(cls, variants: Any) -> Any:
        if not isinstance(variants, str):
            return variants
        if variants not in VARIANTS:
            raise ValueError(f"no set of variants is called {variants}; there are {', '.join(VARIANTS)}")
        return VARIANTS[variants]

    @model_validator(mode="after")
    def _known_names(self) -> AblateSection:
        earlier: list[str] = []
        for name, variant in self.variants.items():
            if variant.matches is not None and variant.matches not in earlier:
                raise ValueError(f"{name} matches {variant.matches}, which is no variant before it")
            earlier.append(name)
        if self.baseline not in earlier:
            raise ValueError(f"baseline {self.baseline} is none of the variants {', '.join(earlier)}")
        if self.tuning_seed in self.seeds:
            raise ValueError(f"tuning_seed {self.tuning_seed} is one of seeds; tune with another")
        return self


class TrackingSection(Section):
    """Where the metrics of training go while it runs; no output depends on it."""

    trackers: list[Literal["jsonl", "tensorboard", "wandb", "trackio"]] = Field(
        [],
        description="They write under `tracking/` of the run's folder, or of a step's that lies in no run; trackio in "
        "its own. All but `jsonl` need the pip extra so named.",
    )
    samples_every: Positive | None = Field(
        None,
        description="Rounds from one table of samples to the next, in wandb and trackio, from the first round on: "
        "pictures, errors and repairs with their marks, rewards. None if null.",
    )
    project: str = Field("difference-feedback", pattern=r"^[^/\\#?%:]+$", description="Project in wandb and trackio.")


SAMPLING_FIELDS = {"temperature", "max_new_tokens"}
"""Fields of `rollout` that every sampling stage depends on."""
MASK_OPTIONS = {"align", "anchor_gaps", "truncate"}
"""Fields of `masks` that pairs alone can be marked by."""
MARK_FIELDS = {"align", "anchor_gaps", "truncate", "granularity", "step_end"}
"""Fields of `masks` that decide which tokens of a pair are marked."""
