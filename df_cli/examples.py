"""What stands at the end of each command's `--help`: lines to copy and change. Tests parse every one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "import-problems": (
        "df import-problems hiyouga/geometry3k --preset geometry3k --split train --sample 5",
        "df import-problems rows.jsonl --preset ms-swift --split-test 0.1 --out data/mine",
        "df import-problems rows.csv --question text --images picture --answer right --out data/mine/problems_train",
    ),
    "repair-set sheet": (
        "df repair-set sheet --recipe my.yaml --problems data/mine/problems_train --policy org/model --out sheet",
    ),
    "repair-set read": (
        "df repair-set read --sheet sheet --annotated export.json --policy org/model --out data/mine/repair_set",
    ),
    "sft-repair": (
        "df sft-repair --recipe digits --repair-set data/digits/repair_set.parquet --policy data/digits/base --out sft",
        "df sft-repair --repair-set data/digits/repair_set.parquet --policy data/digits/base --prompt policy "
        "--out taught",
    ),
    "rl-repair": (
        "df rl-repair --problems data/digits/problems_train.parquet --policy data/digits/base --repair-model sft "
        "--out rl",
        "df rl-repair --problems train --policy org/model --repair-model sft --stop-after 3h30m --out rl",
    ),
    "audit-sample": ("df audit-sample --episodes rl --problems data/mine/problems_train --count 200 --out sample",),
    "audit-agreement": ("df audit-agreement --episodes rl --labels labels.csv --sample sample --out agreement",),
    "rollout": (
        "df rollout --recipe digits --problems data/digits/problems_train.parquet --policy data/digits/base "
        "--out rollout",
        "df rollout --recipe my.yaml --set rollout.temperature=1 --problems train --policy org/model --dry-run --out r",
    ),
    "build-masks": (
        "df build-masks --rollouts rollout --problems data/digits/problems_train.parquet --repair-model rl "
        "--policy data/digits/base --out masks",
        "df build-masks --rollouts rollout --problems train --policy org/model --set masks.repairer=sibling "
        "--out masks",
        "df build-masks --pairs masks --set masks.align=lcs --out masks-lcs",
    ),
    "train-policy": (
        "df train-policy --groups masks --problems data/digits/problems_train.parquet --policy data/digits/base "
        "--out policy",
        "df train-policy --groups masks --problems train --policy org/model --set train.gate=none --out plain",
    ),
    "evaluate": (
        "df evaluate --problems data/digits/problems_test.parquet --policy policy --out scores",
        "df evaluate --recipe digits --problems data/digits/problems_test.parquet --policy data/digits/base --out base",
    ),
    "loop": (
        "df loop --problems data/digits/problems_train.parquet --policy data/digits/base --repair-model rl --rounds 10 "
        "--out runs/loop",
        "df loop --recipe my.yaml --problems train --validation held --policy org/model --repair-model rl "
        "--rounds 300 --stop-after 3h30m --out runs/mine",
    ),
    "summarize": (
        "df summarize runs/digits",
        "df summarize runs/loop --rounds 10",
        "df summarize scores-base scores-mine",
    ),
    "ablate": (
        "df ablate --recipe digits --train data/digits/problems_train.parquet --test data/digits/problems_test.parquet "
        "--repair-set data/digits/repair_set.parquet --base data/digits/base --out runs/digits-ablation",
    ),
    "merge-studies": (
        "df merge-studies runs/study-seed-0 runs/study-seed-1 --baseline grpo --out runs/study",
        "df merge-studies slow=runs/study fast=runs/again.parquet --variant slow/grpo --variant fast/difference_all "
        "--baseline grpo --read-at 100 --out runs/compared",
    ),
    "report": (
        "df report runs/digits",
        "df report runs/digits runs/mine --out compared.html",
        "df report scores-base scores-mine --out compared.html",
    ),
    "recipe list": ("df recipe list",),
    "recipe show": (
        "df recipe show digits --set rollout.temperature=1",
        "df recipe show runs/digits/round-1/train-policy",
    ),
    "recipe copy": ("df recipe copy qwen2.5-vl-7b-gspo my.yaml",),
}


def epilog(command: str) -> str:
    """The examples of one command, or of all of a group, as typer's help wants its lines: a blank one between them."""
    lines = [line for name, of in EXAMPLES.items() if f"{name} ".startswith(f"{command} ") for line in of]
    return "\n\n".join(["Examples:", *lines])
