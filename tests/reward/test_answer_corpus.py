"""The corpus of right and wrong answers, scored by real workers: kind by kind, all as they should."""

import pytest

import answer_corpus
from answer_corpus import ROWS, Agreement, agreement
from stages.reward.answers import score_answer


@pytest.fixture(scope="module")
def scores():
    return answer_corpus.verdicts()


def test_the_corpus_is_large_and_says_everything_once():
    assert len({row[1:4] for row in ROWS}) == len(ROWS) >= 800
    assert min(sum(row.right == right for row in ROWS) for right in (True, False)) >= 300


def test_every_answer_scores_as_reasoned(scores):
    wrong = [
        f"{row.response!r} for {row.gold!r} of {row.choices}: {float(row.right)}, scored {score}"
        for row, score in zip(ROWS, scores, strict=True)
        if score != float(row.right)
    ]
    assert wrong == []


def test_the_table_of_agreement_counts_both_errors_by_kind():
    missed = [0.0 if row.kind == "ratios" else float(row.right) for row in ROWS]
    table = agreement(missed)
    of_right = sum(row.right for row in ROWS if row.kind == "ratios")
    of_wrong = sum(not row.right for row in ROWS if row.kind == "ratios")
    assert table["ratios"] == Agreement(0, of_right, of_wrong, of_wrong)
    assert all(row.right == row.of_right for kind, row in table.items() if kind != "ratios")


PHRASINGS = """
{}|({})|{}.|{})|[{}]|**{}**|"{}"|`{}`|${}$|{}: 45°|({}) 45°|{}. 45°|Answer: {}|Answer: ({})
**Answer:** {}|**Answer: {}**|Answer {}|Ans: {}|ANSWER: {}.|Final answer: {}|Final Answer: ({})
The answer is {}|The answer is {}.|The answer is ({}).|The answer is: {}|The answer is **{}**.
The answer is option {}.|The answer is choice {}.|The answer is ({}) 45°.|The answer would be {}.
The answer should be {}.|The answer must be {}.|The correct answer is {}.|The correct answer is: ({})
The correct option is {}.|The correct choice is {}.|The right answer is {}.|The best answer is {}.
The final answer is {}|So the answer is {}.|Therefore, the answer is {}.
Thus, the correct option is ({}).|Hence ({}).|So it is {}.|Therefore, {}.|Option {}|Option {} is correct.
option {} is the right answer|{} is correct.|{} is the correct answer.|({}) is correct
{} is the best choice.|My answer is {}.|I choose {}.|I would choose option {}.|I'd go with {}.|I pick {}.
I select ({}).|It is {}.|It's {}.|Choice {}|Correct answer: {}|Correct option: {}|The letter is {}.
The answer to the question is {}.|\\boxed{{{}}}|\\boxed{{\\text{{{}}}}}|\\boxed{{({})}}
\\boxed{{\\textbf{{({})}}}}|\\boxed{{\\mathrm{{{}}}}}|<answer>{}</answer>|<answer>({}) 45°</answer>
The figure shows it, so the answer is {}.|The answer is {} because the sides agree.|答案是{}。|故选{}
"""


def test_the_usual_phrasings_of_a_choice_count_and_no_other_letter_does():
    phrasings = [phrasing for line in PHRASINGS.strip().splitlines() for phrasing in line.split("|")]
    assert len(phrasings) >= 75
    for phrasing in phrasings:
        for choices in (None, ("30°", "45°", "60°", "90°")):
            scored = {gold: score_answer(phrasing.format("B"), gold, choices=choices) for gold in "ABCD"}
            assert scored == {"A": 0.0, "B": 1.0, "C": 0.0, "D": 0.0}, phrasing


@pytest.mark.parametrize(
    "gold",
    [
        r"30^\circ, 60^\circ, 90^\circ",
        r"0.\overline{3}",
        r"\sin A",
        r"AB \parallel CD",
        r"\triangle ABC \sim \triangle DEF",
        r"A \cup B",
        r"\{x \mid x > 2\}",
        r"x \mapsto x^2",
        r"\overset{\frown}{AB}",
        r"\forall x \, \exists y",
    ],
)
def test_a_gold_is_right_verbatim_and_wrong_answers_to_it_are_wrong(gold):
    assert score_answer(rf"\boxed{{{gold}}}", gold) == 1.0
    for wrong in ("7", r"\sqrt{7}", "a word", r"\cos B", r"C \cap D", r"10^\circ, 20^\circ"):
        assert score_answer(rf"\boxed{{{wrong}}}", gold) == 0.0


@pytest.mark.parametrize(
    "gold",
    [r"\sqrt{2", "2}", r"\begin{pmatrix} 1", "((1,2)", r"\frac{1}{"],
    ids=["open", "close", "env", "round", "frac"],
)
def test_a_gold_that_does_not_close_scores_nothing(gold):
    assert [score_answer(rf"\boxed{{{said}}}", gold) for said in ("2", r"\sqrt{2}")] == [None, None]
    assert score_answer(f"The answer is {gold}", gold) is None
