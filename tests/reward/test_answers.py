"""Expected values are reasoned by hand from the rules at the top of ``stages/reward/answers.py``."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.reward.answers import AnswerScorer, _decide, score_answer
from stages.reward.extraction import final_answer
from stages.reward.rules.quantities import number

ROOT = Path(__file__).parents[2]
HANG = "9^{9^{9^9}}"


def boxed(answer: str) -> str:
    return f"So the result is $\\boxed{{{answer}}}$."


@pytest.fixture(scope="module")
def scorer():
    with AnswerScorer(workers=1, timeout_s=5.0) as shared:
        yield shared


# (final answer, gold, verdict); the final answer is put in a box.
ANSWERS = [
    # plain numbers
    ("18", "18", 1.0),
    ("18", "19", 0.0),
    ("-18", "18", 0.0),
    ("−18", "-18", 1.0),
    ("+18", "18", 1.0),
    ("018", "18", 1.0),
    ("18.0", "18", 1.0),
    ("18.", "18", 1.0),
    (".5", "0.5", 1.0),
    ("1,234", "1234", 1.0),
    ("1{,}234", "1234", 1.0),
    (r"1\,234", "1234", 1.0),
    (r"1,\!234", "1234", 1.0),
    ("1,23", "123", 0.0),
    ("1 234", "1234", 1.0),
    ("1.5e3", "1500", 1.0),
    (r"1.5 \times 10^{3}", "1500", 1.0),
    (r"1.5 \cdot 10^3", "1.5e3", 1.0),
    ("2 × 10^{-3}", "0.002", 1.0),
    ("1e999999999", "5", 0.0),
    ("0.1", "0.10000000000000001", 0.0),
    # simple fractions
    ("1/2", "0.5", 1.0),
    ("0.5", "1/2", 1.0),
    (r"\frac{1}{2}", "0.5", 1.0),
    (r"\dfrac{2}{4}", "1/2", 1.0),
    (r"\frac12", "0.5", 1.0),
    (r"-\frac{1}{2}", "-0.5", 1.0),
    (r"\frac{-1}{2}", "-1/2", 1.0),
    ("4/2", "2", 1.0),
    ("0.333", "1/3", 0.0),
    ("0.3333333333333333", "1/3", 0.0),
    ("1/3", "0.333", 0.0),
    ("1/0", "0", 0.0),
    ("3.14", r"\pi", 0.0),
    ("3.141592653589793", r"\pi", 0.0),
    # work left to do is no final answer
    ("1+1", "2", 0.0),
    ("2^3", "8", 0.0),
    ("3!", "6", 0.0),
    ("2*3", "6", 0.0),
    (r"\sqrt{4}", "2", 0.0),
    ("(2)", "2", 0.0),
    (r"1\frac{1}{2}", "1.5", 1.0),
    (r"\sum_{n=1}^{\infty} 2^{-n}\sqrt{2}", r"\sqrt{2}", 0.0),
    (r"\int_0^1 2x e\, dx", "2e", 0.0),
    # several answers, hedges
    ("Either 3 or 5 or 7", "7", 0.0),
    ("3, or 5", "5", 0.0),
    ("3, 5", "5", 0.0),
    ("3 or 5", "3", 0.0),
    ("3 5", "3", 0.0),
    (r"3 \text{ or } 5", "5", 0.0),
    (r"\sqrt{2} \text{ or } \sqrt{3}", r"\sqrt{2}", 0.0),
    (r"\sqrt{2}, \sqrt{3}", r"\sqrt{3}", 0.0),
    (r"\sqrt{3} = \sqrt{2}", r"\sqrt{2}", 0.0),
    (r"\pm 3", "3", 0.0),
    ("not 5", "5", 0.0),
    ("5?", "5", 0.0),
    ("about 5", "5", 0.0),
    # names
    ("x = 5", "5", 1.0),
    ("5", "x=5", 1.0),
    ("y = 5", "x = 5", 0.0),
    ("AB = 5", "5", 1.0),
    ("3 = 5", "5", 0.0),
    # units
    ("12 cm", "12 miles", 0.0),
    ("12 cm", "12", 1.0),
    ("12", "12 cm", 1.0),
    ("12cm", "12 cm", 1.0),
    (r"12\text{ cm}", "12 centimeters", 1.0),
    (r"12\,\mathrm{cm}", "12 cm", 1.0),
    ("120 mm", "12 cm", 0.0),
    ("12 cm", "13 cm", 0.0),
    ("12 cm^2", "12 cm", 0.0),
    ("12 cm²", "12 square centimeters", 1.0),
    (r"12\text{ cm}^2", "12 cm^2", 1.0),
    ("60 km/h", "60 kilometers per hour", 1.0),
    ("60 mph", "60 km/h", 0.0),
    (r"\$18", "18", 1.0),
    ("18 dollars", r"\$18", 1.0),
    ("€18", "$18", 0.0),
    (r"30^\circ", "30", 1.0),
    ("30°", "30 degrees", 1.0),
    (r"100^\circ\text{C}", "100 °F", 0.0),
    (r"^\circ", "(1,2)", 0.0),
    ("5 million", "5", 0.0),
    ("5 dozen", "5", 0.0),
    ("5 factorial", "5", 0.0),
    ("12 apples", "12 apples", 1.0),
    ("12 apples", "12 oranges", 0.0),
    ("12 apples", "12", 0.0),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}", 1.0),
    (r"\sqrt{12} \text{ cm}", r"2\sqrt{3} \text{ cm}", 1.0),
    (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}\text{ miles}", 0.0),
    # percent
    ("50%", "50%", 1.0),
    (r"50\%", "50 percent", 1.0),
    ("50%", "0.5", 0.0),
    ("0.5", "50%", 0.0),
    ("50", "50%", 0.0),
    ("50%", "50", 0.0),
    # choices
    ("B", "B", 1.0),
    ("(B)", "B", 1.0),
    ("B.", "B", 1.0),
    ("b", "B", 1.0),
    (r"\text{B}", "(B)", 1.0),
    (r"\textbf{(B)}", "B", 1.0),
    ("B or C", "B", 0.0),
    ("B, C", "B", 0.0),
    ("B. 12 cm", "B", 1.0),
    ("C. 12 cm", "B", 0.0),
    ("C", "B", 0.0),
    # text
    ("New  york", "New York", 1.0),
    (r"\text{Yes}", "yes", 1.0),
    ("Yes.", "yes", 1.0),
    ("yes, it is", "yes", 0.0),
    ("yes or no", "yes", 0.0),
    ("Straße", "STRASSE", 1.0),
    ("None", "None", 1.0),
    ("", "None", 0.0),
    ("none of these", "None", 0.0),
    ("listen", "silent", 0.0),
    ("10:30", "10:30", 1.0),
    ("20:60", "10:30", 0.0),
    ("2016", "2022-05-01", 0.0),
    # gold as it is written in data sets
    ("18", r"\boxed{18}", 1.0),
    ("18", "$18$", 1.0),
    ("18", "Half of 36 is 18.\n#### 18", 1.0),
    ("18", "", None),
    ("18", "  $ $ ", None),
    ("18", "####", None),
    ("18", "1" * 1001, None),
    ("18", r"\foo{", None),
    (r"\foo{", r"\sqrt{2}", 0.0),
    # LaTeX
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", 1.0),
    ("√2", r"\sqrt{2}", 1.0),
    ("2π", r"2\pi", 1.0),
    ("1024", "2^{10}", 1.0),
    ("1023.9999999", "2^{10}", 0.0),
    ("x^2+2x+1", "(x+1)^2", 1.0),
    ("x²+1", "1+x^2", 1.0),
    ("x^2", "X^2", 0.0),
    ("2r+R", "2R+r", 0.0),
    ("x", "x", 1.0),
    ("y", "x", 0.0),
    ("e^{-60}", "e^{-50}", 0.0),
    ("3i+2", "2+3i", 1.0),
    ("2, 1", "1, 2", 1.0),
    ("1 and 2", "1, 2", 1.0),
    ("1", "1, 2", 0.0),
    (r"\pm 3", "3, -3", 1.0),
    (r"\{2, 1\}", r"\{1,2\}", 1.0),
    ("(1, 2)", "(1,2)", 1.0),
    (r"\left(1, \frac{4}{2}\right)", "(1,2)", 1.0),
    ("(2,1)", "(1,2)", 0.0),
    ("[1,2]", "(1,2)", 0.0),
    ("1,2", "(1,2)", 0.0),
    (r"\{1,2\}", "(1,2)", 0.0),
    (r"(3,4) \cup (1,2)", r"(1,2) \cup (3,4)", 1.0),
    ("x <= 3", r"x \le 3", 1.0),
    ("x < 3", r"x \le 3", 0.0),
    ("2x - y + 1 = 0", "y = 2x + 1", 1.0),
    ("2x + 1", "y = 2x + 1", 1.0),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1.0),
    (r"\begin{bmatrix}1&2\\3&5\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 0.0),
    # digits of other scripts are digits; superscripts are powers
    ("١٢", "12", 1.0),
    ("１２", "12", 1.0),
    ("2²", "22", 0.0),
    ("2²", "4", 0.0),
    ("¹²", "12", 0.0),
    ("½", "0.5", 0.0),
    ("五", "5", 0.0),
    ("\u202e12\u0000\ud800", "12", 0.0),
    # hostile
    (HANG, "2", 0.0),
    ("10000!", "2", 0.0),
    ("10000!", r"\sqrt{2}", 0.0),
    ("1" * 1001, "1", 0.0),
    ("9" * 1000, r"\sqrt{2}", 0.0),
    ("$" * 900, r"\sqrt{2}", 0.0),
    (r"\sqrt{2} $ \sqrt{3}", r"\sqrt{2}", 0.0),
    (r"\sqrt{3} answer \[\sqrt{2}\] x", r"\sqrt{2}", 0.0),
    ("__import__('os').system('true')", "0", 0.0),
]


@pytest.mark.parametrize(("answer", "gold", "verdict"), ANSWERS)
def test_boxed_answer(scorer, answer, gold, verdict):
    assert scorer.score_many([boxed(answer)], [gold]) == [verdict]


# (response, final answer)
RESPONSES = [
    ("The answer is 18.", "18"),
    ("The answer is 18. I hope that helps.", "18"),
    ("The answer is 3.5. Done", "3.5"),
    ("the ANSWER IS: 18", "18"),
    ("Answer: 18\nThat was easy.", "18"),
    ("**Answer:** 18", "18"),
    ("**Answer**: 18", "18"),
    ("**The answer is 18.**", "18"),
    ("The answer is **18**.", "18"),
    ("The answer is $18$.", "18"),
    ("The answer is $18.$", "18"),
    ("The answer is $$\\frac{1}{2}$$", r"\frac{1}{2}"),
    (r"The answer is \(18\).", "18"),
    ("The answer is:\n\n18", "18"),
    ("The answer is 3. No: the answer is 5.", "5"),
    ("The answer is either 3 or 5.", "either 3 or 5"),
    ("The answer is B. It is 12 cm.", "B"),
    (r"\boxed{3}, so the answer is 5.", "3"),
    (r"\boxed{3} and then \boxed{5}", "5"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{\left\{ 1 \right.}", r"\{ 1"),
    (r"First \boxed{3}, then \boxed{5", None),
    (r"\boxed {7}", "7"),
    (r"\boxed{7}\% of it", r"7 \%"),
    (r"\boxed{\frac{7}{8}}\% of it", r"\frac{7}{8} \%"),
    (r"The answer is \$7. That is \$2 more.", r"\$7"),
    (r"The answer is $\$7.5$ each.", r"\$7.5 each"),
    ("<answer>7</answer>", "7"),
    (r"\boxed{3} <answer>The answer is 7.</answer>", "7"),
    (r"<answer>3</answer> \boxed{7}", "7"),
    ("<answer>7", None),
    ("The answer is:\n\n\\[\n7.\n\\]\nIt fits.", "7"),
    ("The answer is St. Louis. It lies there.", "St. Louis"),
    ("The answer is 7. This answer is consistent with the figure.", "7"),
    ("The answer is correct.", "correct"),
    ("The answer is 7. That answer is wrong.", "wrong"),
    (r"\boxed{}", None),
    ("The answer is", None),
    ("I counted 18 apples.", None),
    ("18", None),
    ("", None),
    ("None", None),
]


@pytest.mark.parametrize(("response", "answer"), RESPONSES)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


def test_missing_answer_never_equals_gold_none():
    assert score_answer("I give up.", "None") == 0.0
    assert score_answer("The answer is None.", "None") == 1.0


TEN_MB = 10_000_000


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("word " * (TEN_MB // 5) + r"\boxed{7}", 1.0),
        ("x" * TEN_MB + "\nThe answer is 7.", 1.0),
        ("The answer is " + "7" * TEN_MB, 0.0),
        (r"\boxed{" + "7" * TEN_MB + "}", 0.0),
        (r"\boxed{" * (TEN_MB // 7), 0.0),
        (r"\boxed{" + "{" * TEN_MB, 0.0),
        ("answer is " * (TEN_MB // 10), 0.0),
        ("answer" + " " * TEN_MB, 0.0),
        ("*" * TEN_MB, 0.0),
    ],
    ids=["box-last", "cue-last", "long-number", "long-box", "open-boxes", "braces", "cues", "spaces", "stars"],
)
def test_ten_megabytes(scorer, response, verdict):
    assert scorer.score_many([response], ["7"]) == [verdict]


def test_memory_limit_holds():
    with AnswerScorer(workers=1, timeout_s=10.0, memory_mb=256) as scorer:
        assert scorer.score_many([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"]) == [1.0]
        status = Path(f"/proc/{scorer._workers[0]._process.pid}/status")
        assert scorer.score_many([boxed("2^{10^{11}}")], [r"\sqrt{2}"])[0] in (0.0, None)
        if status.exists():
            peak_kb = int(next(line for line in status.read_text().splitlines() if "VmPeak" in line).split()[1])
            assert peak_kb <= 256 * 1024
        assert scorer.score_many([boxed(r"\sqrt{18}")], [r"3\sqrt{2}"]) == [1.0]


def test_worker_that_cannot_start_says_why():
    with AnswerScorer(workers=1, memory_mb=20) as scorer, pytest.raises(RuntimeError, match="memory_mb=20"):
        scorer.score_many([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"])


def test_works_off_the_main_thread(scorer):
    verdicts: list[list[float | None]] = [[], []]

    def score(place: int) -> None:
        verdicts[place] = scorer.score_many([boxed(r"\sqrt{8}"), boxed("3")], [r"2\sqrt{2}", "4"])

    threads = [threading.Thread(target=score, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [[1.0, 0.0]] * 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9))))
def test_order_is_kept(pairs):
    with AnswerScorer() as scorer:
        verdicts = scorer.score_many([boxed(str(a)) for a, _ in pairs], [str(b) for _, b in pairs])
    assert verdicts == [float(a == b) for a, b in pairs]


def test_order_is_kept_across_workers():
    roots = [2, 3, 5, 6, 7, 10, 11, 13]
    with AnswerScorer(workers=2) as scorer:
        verdicts = scorer.score_many(
            [boxed(rf"\sqrt{{{4 * n}}}") for n in roots], [rf"{2 + n % 2}\sqrt{{{n}}}" for n in roots]
        )
    assert verdicts == [float(n % 2 == 0) for n in roots]


@given(st.fractions(max_denominator=1000))
def test_fractions_are_read_exactly(value):
    sign = "-" if value < 0 else ""
    assert number(f"{value.numerator}/{value.denominator}") == value
    assert number(rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}") == value


LATEX = st.lists(st.sampled_from(["^", r"\circ", r"\text{", "{", "}", "$", "%", " ", "=", "x", "3", ",", "(", "cm"]))


@settings(max_examples=300)
@given(st.text(max_size=50) | LATEX.map("".join), st.text(max_size=50) | LATEX.map("".join) | st.just("(1,2)"))
def test_no_text_crashes_the_rules(text, gold):
    _decide(boxed(text), gold)
    _decide(f"The answer is {text}", gold)


def test_nothing_is_executed(scorer, tmp_path):
    canary = tmp_path / "canary"
    attacks = [
        f"__import__('os').system('touch {canary}')",
        rf"\text{{__import__('os').system('touch {canary}')}}",
        f"open('{canary}', 'w')",
        f"$(touch {canary})",
        rf"\sqrt{{2}} + eval(\"open('{canary}', 'w')\")",
        rf"\operatorname{{open('{canary}','w')}}",
        rf"\input{{{canary}}} \write18{{touch {canary}}}",
    ]
    verdicts = scorer.score_many([boxed(attack) for attack in attacks], [r"\sqrt{2}"] * len(attacks))
    assert set(verdicts) == {0.0}
    scorer.score_many([boxed(r"\sqrt{2}")] * len(attacks), attacks)
    assert not canary.exists()


def test_plain_throughput():
    responses = [f"Long reasoning. {'step ' * 100} " + boxed(str(n)) for n in range(4000)]
    with AnswerScorer() as scorer:
        start = time.process_time()
        assert sum(scorer.score_many(responses, [str(n) for n in range(4000)])) == 4000
        assert 4000 / (time.process_time() - start) > 1000


def test_no_worker_outlives_the_interpreter():
    script = (
        "from stages.reward import answers\n"
        r"assert answers.score_answer(r'\boxed{\sqrt{8}}', r'2\sqrt{2}') == 1.0"
        "\n"
        "print(answers._shared_scorer(5.0)._workers[0]._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_unequal_lengths_are_refused(scorer):
    with pytest.raises(ValueError, match="1 responses for 2 answers"):
        scorer.score_many(["a"], ["b", "c"])
