r"""Right and wrong answers by kind, the verdicts reasoned by hand from the rules; see ``stages/reward/rules``.

``python tests/reward/answer_corpus.py`` prints the table of agreement: how many of each kind score as they should.
"""

from typing import NamedTuple

from stages.reward.answers import AnswerScorer


class Row(NamedTuple):
    """A response, the gold, the choices' texts or None, and whether the response is right."""

    kind: str
    response: str
    gold: str
    choices: tuple[str, ...] | None
    right: bool


def boxed(answer: str) -> str:
    return rf"Adding up, it is $\boxed{{{answer}}}$"


def rows(kind: str, gold: str, right: list[str], wrong: list[str], choices: tuple[str, ...] | None = None) -> list[Row]:
    """Whole responses beside one gold."""
    pairs = [(response, True) for response in right] + [(response, False) for response in wrong]
    return [Row(kind, response, gold, choices, verdict) for response, verdict in pairs]


def in_boxes(kind: str, gold: str, right: list[str], wrong: list[str]) -> list[Row]:
    """Final answers beside one gold, each in a box."""
    return rows(kind, gold, [boxed(answer) for answer in right], [boxed(answer) for answer in wrong])


ANGLES = ("30°", "45°", "60°", "90°")
ANIMALS = ("the owl", "a field mouse", "the red fox", "none of these")
SURE = ("Yes", "No")
PARTS = ("half", "half past", "quarter", "quarter to")
SAMPLES = ("sample A", "sample B", "neither; both are as warm")
FRACTIONS = (r"\frac{3}{4}", r"\frac{4}{3}", r"\frac{2√{5}}{5}", r"2\sqrt{3}")
CHANGES = ("increase", "decrease", "stays the same")

CHOICES = [
    *rows(
        "choice: a letter",
        "B",
        [
            "The answer is B.",
            "The answer is (B).",
            "the answer is b",
            "So the correct answer is: **B**",
            "**Answer: B**",
            "Answer: (B)",
            "ANSWER: B",
            "Ans: B",
            "Answer B",
            r"\boxed{B}",
            r"\boxed{(B)}",
            r"\boxed{\text{B}}",
            r"\boxed{\textbf{(B)}}",
            r"\boxed{\textrm{B}}",
            r"\boxed{\mathrm{B}}",
            'The answer is "B".',
            "The answer is `B`.",
            "The answer is option B.",
            "The answer is choice (B)",
            "It is therefore choice (B). The answer is therefore (B).",
            "The correct option is B.",
            "The correct choice is [B].",
            "The best answer is B",
            "Option B is correct.",
            "Hence option (B) is the right answer.",
            "B is the correct answer.",
            "I choose B.",
            "I would go with option B",
            "My pick: the correct letter is B",
            "Thus, the final answer is $B$.",
            "Final answer: B",
            "### Answer\nB",
            "**Final Answer**\n\n(B)",
            "<answer>B</answer>",
            "<answer>(B)</answer>",
            "B",
            "(B)",
            "B.",
            "**B**",
            "The two sides agree.\n\nB",
            "The answer is B!",
            "The answer would be B.",
            "The answer to the question is B.",
            "答案是B。",
            "答案：B",
            "故选B",
            "故选：B.",
            "The answer is B because the sides agree.",
            "The answer is definitely (B).",
            "The answer is still B.",
            "Answer = B",
            "So it is B.",
            "Therefore, B.",
            "I first took A. The answer is B.",
        ],
        [
            "The answer is A.",
            "The answer is (C).",
            "The answer is B or C.",
            "The answer is either B or D.",
            r"\boxed{B, C}",
            r"\boxed{\text{A or B}}",
            "The answer is not B.",
            "Option B is wrong.",
            "B is not correct.",
            "B is incorrect.",
            "The answer is B. No: the answer is C.",
            "The answer is A, not B.",
            "The answer is B and C.",
            "Maybe B.",
            "The answer is B?",
            "The answer is probably B",
            r"\boxed{BC}",
            r"\boxed{B=5}",
            r"\boxed{AB}",
            r"\boxed{2B}",
            "A, B, C or D",
            "The choices are A, B, C and D.",
            "The answer is A\nB is too small.",
            r"\boxed{A} since B fails",
            "The answer is B, or perhaps C.",
            "I cannot tell B from C.",
            "Neither A nor B is correct.",
            "I would not choose B.",
            "I don't think B is correct.",
            "If B is correct, the sides differ.",
            "The wrong answer is B.",
            "Let us check whether B is the right answer.",
            "A is larger than B.",
            "<answer>C</answer> B",
            r"The answer is B, so \boxed{C}",
            "Line B is longer than line A.",
            "B is the vertex of the angle.",
            "((B))",
        ],
    ),
    *rows(
        "choice: the letter first",
        "B",
        [
            "B\n\nExplanation: the lines never meet.",
            "**(B)**\nThe lines never meet.",
            "B. 45°\n\nThe lines never meet.",
            "(B) 45°\n\nBoth angles are equal, as the base is level.",
            "ans: (b)",
            "Answer — B",
            "I would say B.",
            "The angle is half of 90°, which corresponds to option B.",
            "Half of 90° it is. This matches choice (B).",
            "因此选择B选项。",
        ],
        [
            "A\n\nExplanation: the lines never meet.",
            "B. 45°\nC. 60°\nD. 90°\n\nThe lines never meet.",
            "B\n\nThis is what one might think, but the answer is C.",
            "A. 30°\n\nB. 45°\n\nBoth are acute.",
            "Point B lies left.\n\nIt is below the line.",
            "I would not say B.",
            "This corresponds to option B only if the lines meet.",
            "因此选择C选项。",
            "答案是B和C",
        ],
    ),
    *rows(
        "choice: a letter and its text, texts unknown",
        "B",
        [
            "The answer is (B) 45 degrees.",
            "The answer is B: 45 degrees",
            r"\boxed{B. 45}",
            r"\boxed{\text{(B) }45}",
            "Answer: B) a mouse",
            "The answer is (B), the owl.",
            "The correct answer is **(B) No**.",
            "(B) 45°",
        ],
        ["The answer is (A) 45 degrees.", "B. 45 or C. 60", "The answer is (C) sample B.", r"\boxed{A. B}"],
    ),
    *rows(
        "choice: a letter beside its text",
        "B",
        [
            "The answer is (B) 45°.",
            "The answer is **(B)**, 45°",
            "B: 45 degrees",
            r"\boxed{\text{(B) } 45^\circ}",
            r"\boxed{B. 45}",
            "The correct answer is choice (B), 45.",
            "(B) 45",
            "The answer is 45 degrees, option B.",
            "The answer is (B) 45 degrees, since the base is level.",
            "The answer is 45 degrees because the base is level.",
        ],
        [
            "The answer is (B) 60°.",
            "The answer is (C) 45°.",
            r"\boxed{\text{(B) } 90^\circ}",
            "The answer is (B) 15°.",
            "B: 60 degrees",
            "The answer is 45 degrees, option C.",
            "The answer is (B) 45° or (C) 60°.",
            "The answer is (A) 30°.",
            "The answer is (B) 60 degrees, since the base is level.",
            "The answer is 45 degrees, since 60 is too large.",
            "The answer is 60 degrees because the base is level.",
        ],
        ANGLES,
    ),
    *rows(
        "choice: a full stop behind the letter",
        "B",
        [
            "The answer is B. 45°.",
            "The correct answer is **B. 45°**.",
            "Answer: B. 45 degrees",
            "The answer is B. The base is level.",
            "The answer is B. All the others are too large.",
            "答案是B. 45°",
        ],
        [
            "The answer is B. 60°.",
            "The correct answer is **B. 60°**.",
            "Answer: B. 50 degrees",
            "答案是B. 60°",
            "The correct option is: **C. 45°**",
        ],
        ANGLES,
    ),
    *rows(
        "choice: a full stop behind the letter",
        "B",
        ["The answer is (B). No, there are fewer.", "Answer: B. No"],
        ["The answer is (B). Yes, there are more.", "Answer: B. Yes", "The answer is (A). No."],
        SURE,
    ),
    *rows(
        "choice: other words",
        "C",
        ["It stays the same.", "The answer is that it stays the same.", "The correct answer is **C. stays the same**."],
        ["It does not stay the same.", "The correct answer is **C. decrease**.", "The answer is that it may decrease."],
        CHANGES,
    ),
    *rows(
        "choice: other words",
        "B",
        ["The value matches option (B).", "The solution is B.", "选项B是正确的。", "B选项正确。", "答：B"],
        [
            "Suppose the answer is B.",
            "We ask whether the answer is B.",
            "There is no answer B.",
            "The answer is B. Wait, it should be D.",
            "不选B",
            "B不正确",
            "不能选B，选C",
        ],
    ),
    *rows(
        "choice: the text alone",
        "B",
        [
            r"\boxed{45}",
            r"\boxed{45^\circ}",
            "The answer is 45 degrees.",
            r"The angle is $\boxed{45^{\circ}}$.",
            "<answer>45°</answer>",
            r"x = \boxed{45}",
            "45°",
        ],
        [
            r"\boxed{60}",
            r"\boxed{44}",
            r"\boxed{45, 60}",
            "The answer is 45 or 60.",
            "The answer is about 45.",
            r"\boxed{45 cm}",
            "It may well be 45.",
            r"\boxed{-45}",
            "The angles are 45 and 90.",
        ],
        ANGLES,
    ),
    *rows(
        "choice: words",
        "B",
        [
            "The answer is a field mouse.",
            "The answer is the field mouse",
            r"\boxed{\text{field mouse}}",
            "The answer is (B), the field mouse.",
            "Answer: **(B) A field mouse**",
            "A field mouse",
            "The answer is (B): a field mouse, because it eats seeds.",
        ],
        [
            "The answer is the red fox.",
            "The answer is (B) the red fox.",
            "The answer is (C) a field mouse.",
            "The answer is a mouse or a fox",
            "The answer is none of these.",
            "The answer is the owl or a field mouse.",
            "The answer is not a field mouse.",
            "The answer is (A) the owl.",
        ],
        ANIMALS,
    ),
    *rows(
        "choice: yes or no",
        "B",
        [
            "The answer is (B) No.",
            "The answer is no.",
            "The answer is **(B)**, No.",
            "So the answer is no, there are fewer.",
            "The answer is definitely no, there are none.",
            "No",
            r"\boxed{\text{No}}",
            "The answer is no because it is red.",
        ],
        [
            "The answer is yes.",
            "The answer is (A) Yes.",
            "The answer is (B) Yes.",
            "The answer is (A) No.",
            "The answer is yes or no.",
            "The answer is no, or maybe yes.",
            "No doubt, the answer is yes.",
            "Not sure.",
        ],
        SURE,
    ),
    *rows(
        "choice: one text begins another",
        "B",
        ["The answer is half past.", "(B) half past"],
        ["The answer is half.", "The answer is (B) half.", "The answer is quarter to."],
        PARTS,
    ),
    *rows(
        "choice: one text begins another",
        "A",
        ["The answer is half.", "The answer is (A) half."],
        ["The answer is half past.", "The answer is (A) half past."],
        PARTS,
    ),
    *rows(
        "choice: a letter in a text",
        "A",
        ["The answer is (A) sample A.", "The answer is sample A."],
        ["The answer is (A) sample B.", "The answer is sample B.", "The answer is (B) sample B."],
        SAMPLES,
    ),
    *rows(
        "choice: a letter in a text",
        "B",
        ["The answer is (B) sample B.", "(B)"],
        ["The answer is (B) sample A."],
        SAMPLES,
    ),
    *rows(
        "choice: formulas",
        "C",
        [
            r"\boxed{\frac{2\sqrt{5}}{5}}",
            r"\boxed{\frac{2}{\sqrt{5}}}",
            r"\boxed{\text{(C) }\frac{2\sqrt{5}}{5}}",
            "The answer is C.",
        ],
        [
            r"\boxed{2\sqrt{3}}",
            r"\boxed{\text{(C) }\frac{4}{3}}",
            r"\boxed{\frac{\sqrt{5}}{5}}",
            r"\boxed{\text{(D) }\frac{2\sqrt{5}}{5}}",
        ],
        FRACTIONS,
    ),
    *rows(
        "choice: formulas",
        "A",
        [r"\boxed{0.75}", r"\boxed{3/4}", r"\boxed{\frac34}"],
        [r"\boxed{\frac43}", r"\boxed{0.7}"],
        FRACTIONS,
    ),
    *rows(
        "choice: a value on the way",
        "D",
        [
            r"The answer is (D). For half of it is $\boxed{37}$.",
            r"The correct answer is (D) 90°. Twice $x$ is $\boxed{180}$.",
        ],
        [r"The answer is (D). Hence $\boxed{60}$.", r"The answer is (A). Half is $\boxed{37}$.", r"$\boxed{37}$"],
        ANGLES,
    ),
    *rows(
        "choice: gold by its text",
        "decrease",
        ["The answer is B.", "It will decrease. The answer is decrease.", "(B) decrease"],
        ["The answer is A.", "The answer is increase.", "(A) decrease"],
        CHANGES,
    ),
    *rows(
        "choice: texts like letters",
        "D",
        ["The answer is (D).", "(D)"],
        ["The answer is (b).", "(A)"],
        ("(c)", "(d)", "(a)", "(b)"),
    ),
    *rows(
        "choice: equal texts",
        "C",
        ["(C)", "The answer is C: 18"],
        ["The answer is 18.", "The answer is 9."],
        ("9", "12", "18", "18"),
    ),
]

STATEMENTS = [
    *rows(
        "where the answer stands",
        "42",
        [
            "The answer is 42.",
            "The answer is:\n\n\\[\n42\n\\]",
            "The answer is\n$$\n42\n$$",
            "The answer is: $$42$$",
            "<answer>The answer is 42.</answer>",
            "<answer>42</answer>",
            "<think>40?</think><answer>\n42\n</answer>",
            r"<answer>So \boxed{42}</answer>",
            "The answer is <b>42</b>.",
            "The answer is 42.<|im_end|>",
            "The answer is 42</s>",
            "The answer is 42. This answer is consistent with the figure.",
            "The answer is 42. The answer is reasonable.",
            "The answer is 42. That answer is twice the first one, as it should be.",
            "The answer would be 42.",
            "The answer to the question is 42.",
            "Answer: 42",
            r"Answer \( 42 \)",
            r"Answer $42$",
            "### Final Answer\n42",
            "**Answer**\n\n42",
            "答案是42。",
            "答案：42",
            "答案为 42",
            r"\boxed {42}",
            r"\boxed{{42}}",
            "The answer is therefore 42.",
            r"So $\boxed{42.}$",
            "The answer is \\[ 42. \\]",
            "The answer is 42.\n\nThe answer is correct.",
            r"\boxed{41} is what I had. <answer>42</answer>",
            r"\boxed{Therefore $42$ is the answer.}",
            r"\boxed{\text{The sum is } 42}",
            "The answer is 42 because the two halves are equal.",
            "The answer is 42, since nothing else fits.",
            "The answer is 42. I hope this answer is helpful.",
            "<Answer>42</Answer>",
            "The answer is:\n\\begin{equation*}\n42\n\\end{equation*}",
            "The answer will be 42.",
            "The answer is, therefore, 42.",
            r"\fbox{42}",
            "答：42",
        ],
        [
            "42",
            "It is 42",
            "The answer is 41. I had 42.",
            "The answer is 42 or 43.",
            "The answer is not 42.",
            "answer 42",
            "The answer is 42. That answer is wrong.",
            "The answer is 42. The answer is incorrect.",
            r"\boxed{42} \boxed{43}",
            "<answer>43</answer> 42",
            "<answer>42 or 43</answer>",
            "The answer is about 42",
            "The answer is:\n\n\\[\n43\n\\]",
            r"The answer is 42. \boxed{43}",
            "<answer>42</answer> <answer>43</answer>",
            "The answer is 42?",
            "答案是43。",
            "The answer is 42 because 43 is prime",
            "The answer is 41 because the two halves are equal.",
            "The answer is 42 since it is 41 plus 1",
            "The answer is 42 because I am not sure.",
            r"\boxed{42",
            "The sum, 42, is reasonable: this answer is plausible.",
            "Suppose the answer is 42.",
            "Let us see whether the final answer is 42.",
            "The answer is 42. Wait, it should be 43.",
        ],
    ),
    *rows(
        "where the answer stands",
        "St. Louis",
        ["The answer is St. Louis.", "Answer: St. Louis. It lies on the river."],
        ["The answer is St. Paul.", "The answer is Louis."],
    ),
    *rows("where the answer stands", "Mt. Etna", ["The answer is Mt. Etna. It is high."], ["The answer is Mt. Fuji."]),
    *rows("where the answer stands", "J. S. Bach", ["The answer is J. S. Bach."], ["The answer is J. C. Bach."]),
    *rows(
        "where the answer stands", "12 sq. ft", ["The answer is 12 sq. ft. That is all."], ["The answer is 13 sq. ft."]
    ),
    *rows(
        "where the answer stands",
        "28%",
        [r"So $\boxed{28}\%$.", r"That is $\boxed{28}$ percent.", r"\boxed{28\%}"],
        [r"So $\boxed{28}$.", r"\boxed{0.28}"],
    ),
    *rows(
        "where the answer stands",
        "28",
        [r"So $\boxed{28}\%$.", r"It grows by $\boxed{28}$ percent.", r"It turns by $\boxed{28}^\circ$."],
        [r"\boxed{28\%}", "The answer is 28%.", r"So $\boxed{82}\%$.", r"So $\boxed{0.28}\%$."],
    ),
    *rows("where the answer stands", "28 cm", [r"It has $\boxed{28}$ cm."], [r"So $\boxed{28}\%$."]),
    *rows(
        "where the answer stands",
        r"\frac{3}{8}\%",
        [r"So $\boxed{\frac{3}{8}}\%$.", r"That is $\boxed{ 0.375 }$ percent."],
        [r"So $\boxed{\frac{3}{8}}$.", r"So $\boxed{\frac{8}{3}}\%$."],
    ),
    *rows(
        "where the answer stands",
        r"\$7.50",
        [
            r"The answer is $\$7.50$.",
            r"The answer is $$\$7.50$$",
            r"The answer is $\$$7.50.",
            r"<answer>$\$7.50$</answer>",
            r"\boxed{$\$7.50$}",
            r"The answer is \$7.50. That is \$2 less.",
            r"The answer is $\$7.50$. That is $\$2$ less.",
        ],
        [
            r"The answer is $\$5.70$.",
            r"The answer is $\$7.50$ or $\$9$.",
            r"The answer is \$9. The other costs \$7.50.",
            r"<answer>$\$7.50 + \$2$</answer>",
        ],
    ),
]

NUMBERS = [
    *in_boxes(
        "numbers",
        r"\frac{5}{8}",
        [r"{5 \over 8}", r"{{5} \over {8}}", r"\nicefrac{5}{8}", r"\bf \frac58", r"{\bf 0.625}", "5⁄8"],
        [r"{8 \over 5}", r"\nicefrac{5}{9}"],
    ),
    *in_boxes(
        "numbers", r"2.4 \times 10^{-7}", ["2.4 x 10^-7", "2.4e-7", "2.4 × 10⁻⁷"], ["2.4 x 10^7", "2.4", "2.5 x 10^-7"]
    ),
    *in_boxes("numbers", "313", ["313_7", "(313)_7", r"313_{(7)}"], ["(133)_7"]),
    *in_boxes("numbers", "(313)_7", ["313", "313_7"], ["313_8", "133_7"]),
    *in_boxes("numbers", "2+7i", [r"2+7\mathrm{i}", "7i + 2"], [r"2-7\mathrm{i}", "9i"]),
    *in_boxes(
        "numbers",
        "-1 1/2",
        [r"-\frac{3}{2}", "-1.5", r"-1\frac{1}{2}", r"\frac{-3}{2}", r"\frac{3}{-2}"],
        ["1.5", r"-1\frac{1}{3}", "-11/2"],
    ),
    *in_boxes(
        "numbers",
        "1.5",
        [r"1\frac{1}{2}", "1 1/2", r"\frac32", r"\frac{3}2", r"\left( \frac{3}{2} \right)"],
        [r"1\frac{3}{2}", r"2\frac{1}{2}", "1,5", "15"],
    ),
    *in_boxes(
        "numbers",
        r"\frac{1}{72}",
        [r"\frac1{72}", r"\frac{1}{72}", "1/72", r"\frac{2}{144}", r"\dfrac 1{72}"],
        [r"\frac172", "0.0139", r"\frac1{27}"],
    ),
    *in_boxes("numbers", r"\frac{9}{19}", [r"\frac9{19}", "9/19", r"{9}/{19}"][:2], [r"\frac{19}{9}", r"\frac91{9}"]),
    *in_boxes(
        "numbers",
        "13",
        ["{13}", "13.0", "+13", r"\text{13}", '"13"', r"\mathbf{13}"],
        ["{31}", "1 3", "1,3", "13!", "(13)", "13 or 14"],
    ),
    *in_boxes(
        "numbers",
        "1500",
        [r"1.5 \times {10}^{3}", r"1.5 \times 10^3", "1,500", r"1,\!500", r"1,\! 500", r"1\,500", "1.5e3"],
        [r"1.5 \times {10}^{2}", "1, 500", "15 00"],
    ),
    *in_boxes("numbers", "32349", [r"32,\! 349", r"32{,}349", "32,349", "32 349"], ["32, 349", "32.349", "3234"]),
    *in_boxes("numbers", r"32,\! 349", ["32349", "32,349"], ["32", "349", "32350"]),
    *in_boxes("numbers", "11111", [r"11,\! 111"], ["11, 111"]),
    *in_boxes(
        "numbers",
        r"0.\overline{3}",
        [r"\frac{1}{3}", "1/3", r"0.\overline{3}", r"0.\overline{33}", r"0.\bar{3}"],
        ["0.3", "0.333", r"0.\overline{6}", "0.33"],
    ),
    *in_boxes("numbers", "-1/3", ["1/-3", r"\frac{1}{-3}"], ["1/3", "-1/-3"]),
    *in_boxes("numbers", "10^{-30}", ["1e-30", r"1 \times 10^{-30}", r"\frac{1}{10^{30}}"], ["10^{-31}", "1e30", "0"]),
    *in_boxes("numbers", r"1 \times 10^{-30}", ["10^{-30}", "1e-30"], ["10^{-29}", "2e-30"]),
    *in_boxes("numbers", "1/6", [r"0.1\overline{6}"], [r"0.\overline{16}"]),
    *in_boxes("numbers", r"\frac{1}{-2}", ["-0.5", r"-\frac{1}{2}"], ["0.5"]),
    *in_boxes("numbers", "204", ["204_5", r"204_{5}", r"204_{\text{five}}", "204 base 5"], ["54", "402_5"]),
    *in_boxes("numbers", "204_5", ["204", r"204_{5}"], ["204_6", "54", "205_5"]),
    *in_boxes(
        "tiny and large", r"\frac{1}{49!}", [r"\frac{50}{50!}", r"\frac{1}{49 \cdot 48!}"], [r"\frac{1}{50!}", "0"]
    ),
    *in_boxes(
        "tiny and large", "e^{-3000}", [r"\frac{1}{e^{3000}}", "(e^{-1500})^2"], ["e^{-2000}", "0", "-e^{-3000}"]
    ),
    *in_boxes("tiny and large", r"(e^{-900}, 1)", [r"(\frac{1}{e^{900}}, 1)"], ["(e^{-800}, 1)"]),
    *in_boxes("tiny and large", r"\frac{x}{60!}", [r"\frac{60x}{60 \cdot 60!}"], [r"\frac{x}{61!}"]),
    *in_boxes("tiny and large", r"2^{1000}", [r"4^{500}"], [r"2^{1000}+1", r"2^{999}"]),
    *in_boxes(
        "roundings",
        "1/3",
        [r"\frac{1}{3} \approx 0.333", r"x = \frac{1}{3} \approx 0.33"],
        [r"\frac{1}{3} \approx 0.34", r"0.333", r"x = \frac{1}{3} \approx 11", r"\frac{2}{3} \approx 0.667"],
    ),
    *in_boxes(
        "roundings",
        r"5\sqrt{3}",
        [r"5\sqrt{3} \approx 8.66", r"AB = 5\sqrt{3} \approx 8.660", r"5\sqrt{3} ≈ 8.7"],
        [r"5\sqrt{3} \approx 5\sqrt{2}", r"5\sqrt{3} \approx 8.67", r"5\sqrt{2} \approx 7.07", "8.66"],
    ),
    *in_boxes(
        "roundings", "7.5", [r"x \approx 7.5", r"x = 7.5"], [r"x \approx 7.6", r"7.5 \approx 8.5", r"x \approx 7"]
    ),
    *in_boxes(
        "roundings",
        r"\sqrt{7}",
        [
            r"\sqrt{7} \ (\approx 2.65)",
            r"\sqrt{7} \text{ (approximately } 2.646)",
            r"\sqrt{7} \doteq 2.6",
        ],
        [r"\sqrt{7} \ (\approx 2.6458 + 1)", r"\sqrt{7} \ (\approx 2.66)", r"(\approx 2.65)"],
    ),
    *in_boxes(
        "roundings",
        r"\frac{2}{7} \approx 0.29",
        [r"\frac{2}{7}", "0.29", "2/7", r"\frac27 \approx 0.286"],
        ["0.28", "0.3"],
    ),
    *in_boxes("roundings", r"\approx 0.29", ["0.29", r"x \approx 0.29"], ["0.3", r"\frac{2}{7}"]),
    *in_boxes("roundings", "8.66", [r"5\sqrt{3} \approx 8.66"], [r"5\sqrt{2} \approx 8.66", r"5\sqrt{3}"]),
    *in_boxes(
        "roundings",
        "2/3",
        [r"\frac{2}{3} \approx 0.667"],
        [r"\frac{2}{3} \approx 0.666", r"\frac{2}{3} \approx \frac{3}{4}"],
    ),
]

UNITS = [
    *in_boxes("units", "3 MPa", ["3", r"3\text{ MPa}", "3 megapascals"], ["3 GPa", "3 Pa", "4 MPa"]),
    *in_boxes("units", "16 GB", ["16", "16 gigabytes", r"16\,\mathrm{GB}"], ["16 MB", "15 GB"]),
    *in_boxes("units", "2 MΩ", ["2MΩ", "2 megaohms"], ["2 kΩ", "2 Ω"]),
    *in_boxes("units", "8 (cm)", ["8", r"8 \text{ (cm)}", r"8\ (\text{cm})", "8 cm"], ["8 (m)", "9 (cm)"]),
    *in_boxes(
        "units",
        "6",
        [
            r"{6}\text{ cm}",
            r"\mathbf{6}\text{ cm}",
            r"6\rm{cm}",
            r"6 \rm cm",
            r"6{\text{ cm}}",
            r"6 \hspace{1mm} \text{cm}",
            "6 lux",
        ],
        [r"{7}\text{ cm}", r"6 \text{ million}", "6 dozen", "6 people"],
    ),
    *in_boxes("units", "70", ["70^o", r"70^{o}", r"70^\text{o}"], ["70^2", "70'", r"7^{0}"]),
    *in_boxes("units", "18°C", ["18 degrees Celsius", r"18^\circ\text{C}", "18℃"], ["18 degrees Fahrenheit", "18°F"]),
    *in_boxes("units", "$80", ["80 USD", "US$80", "80"], ["80 EUR", "US$81"]),
    *in_boxes(
        "units",
        "2.5 m/s^2",
        [r"2.5\,\mathrm{m\,s^{-2}}", r"2.5\,\mathrm{m/s^{2}}", r"2.5\text{ m/s²}"],
        [r"2.5\,\mathrm{m\,s^{-1}}", r"2.5\,\mathrm{m/s}"],
    ),
    *in_boxes(
        "words",
        "oak, elm and ash",
        ["oak, elm, and ash", r"\text{oak}, \text{elm}, \text{ash}"],
        ["oak, elm", "oak, ash, elm", "oak, elm or ash"],
    ),
    *in_boxes("units", "5 Ω", [r"5\ \Omega", "5 ohms", "5Ω", r"5\,\text{ohm}", "5"], [r"5 k\Omega", "5 V", "6 ohms"]),
    *in_boxes("units", "3 F", ["3 farads", r"3\,\mathrm{F}", "3"], ["3 μF", "3 V"]),
    *in_boxes("units", "4 J/(kg·K)", [r"4\,\mathrm{J/(kg \cdot K)}", "4 J/(K·kg)", "4"], ["4 J/kg", "4 J·K/kg"]),
    *in_boxes("units", "30 mpg", ["30 miles per gallon", "30"], ["30 miles", "30 mph"]),
    *in_boxes("units", "8 fl oz", ["8 fluid ounces", "8"], ["8 oz"]),
    *in_boxes(
        "degrees and minutes",
        r"30^\circ 15'",
        ["30° 15'", "30°15′", r"30^{\circ}15^{\prime}", "30.25°", "30.25"],
        [r"15^\circ 30'", "30°", "30.15°", r"30^\circ 15' 20''", r"-30^\circ 15'"],
    ),
    *in_boxes(
        "degrees and minutes",
        r"45^\circ 30' 18''",
        ["45°30'18\"", "45.505°", "45° 30′ 18″"],
        [r"45^\circ 18' 30''", "45°30'", "45.3018°"],
    ),
    *in_boxes("times", "3:30 PM", ["3:30 pm", "3:30 p.m.", r"3:30\text{ PM}"], ["3:30 AM", "4:30 PM", "3:31 p.m."]),
    *in_boxes("times", "7 a.m.", ["7 am", "7 AM"], ["7 p.m.", "7", "8 a.m."]),
    *in_boxes("units", "3 kW", ["3kW", "3 kilowatts", r"3\text{ kW}"], ["3 W", "3 MW", "3 kJ"]),
    *in_boxes("units", "450 nm", [r"450\,\mathrm{nm}", "450 nanometers"], ["450 mm", "450 μm"]),
    *in_boxes("units", "2 mol", ["2 moles", r"2\text{ mol}"], ["2 mmol"]),
    *in_boxes("units", "7 kJ", ["7 kilojoules", r"7{\rm kJ}"], ["7 J"]),
    *in_boxes("units", "12 gallons", ["12 gal", r"12\textnormal{ gallons}"], ["12 quarts", "12 liters"]),
    *in_boxes(
        "units",
        r"4\,\text{m}/\text{s}",
        [r"4\frac{\text{m}}{\text{s}}", "4 m/s", "4 meters per second", r"4 \text{ m s}^{-1}"],
        ["4 km/h", "4 m", "4 m/s^2"],
    ),
    *in_boxes(
        "units", "42 cm", ["42厘米", r"42{\rm cm}", "42cm", r"42 \textbf{centimeters}"], ["42米", "42毫米", "42 cm^2"]
    ),
    *in_boxes("units", "9 cm^2", ["9平方厘米", "9 square centimeters", r"9\text{ cm}^2", "9 cm²"], ["9厘米", "9 cm^3"]),
    *in_boxes("units", "$25", [r"25\$", r"\$25", "25 dollars", "25$", "25"], ["€25", "25 cents", "$26"]),
    *in_boxes("units", "1000.99", ["1,000.99$", "$1,000.99", r"1,000.99\$", "1,000.99 €"], ["1,000.98$", "1.000,99"]),
    *in_boxes("units", "28%", ["28 pct", "28 percent", r"28\%", "28 percentage"], ["28", "0.28", "28 cm", "82%"]),
    *in_boxes("units", "125 miles", [r"125\textnormal{ miles}", "125 mi", "125"], ["125 km"]),
    *in_boxes(
        "units",
        r"\frac{1}{3}",
        [r"\frac{1}{3} \textbf{meters}", r"\frac{1}{3}\text{ cm}"],
        [r"\frac{2}{3} \textbf{meters}", r"\frac{1}{3} apples"],
    ),
    *in_boxes("units", "60", [r"60^\circ", "60°", r"60^{\circ}", r"60\degree", "60度"], [r"61^\circ", "60%"]),
    *in_boxes(
        "words",
        "12 apples",
        [r"12\text{ apples}", r"12~\text{apples}", r"\text{12 apples}"],
        ["12 pears", "13 apples", "12"],
    ),
    *in_boxes("words", r"12\text{ apples}", ["12 apples", r"12 \mathrm{apples}"], ["12 oranges", "21 apples"]),
    *in_boxes(
        "words",
        "New York",
        [r"\text{New York}", '"New York"', "new york", r"\text{New }\text{York}"],
        ["York", "New York or Boston", "not New York"],
    ),
    *in_boxes(
        "words",
        "it froze because the night was clear",
        ["It froze because the night was clear."],
        ["it froze", "it froze because the wind fell"],
    ),
    *in_boxes(
        "words",
        "isosceles triangle",
        ["an isosceles triangle", "The isosceles triangle"],
        ["isosceles", "an isosceles trapezoid", "no isosceles triangle"],
    ),
    *in_boxes("words", r"90^\circ \text{ clockwise}", ["90° clockwise"], ["90° counterclockwise", "80° clockwise"]),
    *in_boxes("words", "The cat is 5", ["The cat is 5", "5"], ["The dog is 5", "The cat is 6", r"\text{The dog: } 5"]),
    *in_boxes("words", "yes", [r"\textbf{Yes}", "Yes."], ["no", "yes or no", "yes and no"]),
]

NAMES = [
    *in_boxes(
        "names of figures",
        r"\angle ABC",
        [r"\angle CBA", "∠ABC", r"\angle{ABC}", "angle ABC", r"m\angle ABC"],
        [r"\angle BAC", r"\angle ACB", r"\angle ABD", r"\triangle ABC", "ABC"],
    ),
    *in_boxes(
        "names of figures",
        r"\square ABCD",
        [r"\square BCDA", r"\square DCBA", "□CDAB", r"\text{quadrilateral } ABCD"],
        [r"\square ABDC", r"\square ACBD", r"\square ABCE"],
    ),
    *in_boxes(
        "names of figures",
        r"\triangle PQR",
        [r"\triangle RPQ", "△QPR", r"\Delta PQR"],
        [r"\triangle PQS", r"\angle PQR"],
    ),
    *in_boxes(
        "names of figures",
        r"\overline{AB}",
        [r"\overline{BA}", r"\overline{ AB }"],
        [r"\overline{AC}", r"\overrightarrow{AB}"],
    ),
    *in_boxes(
        "names of figures",
        r"\overrightarrow{AB}",
        [r"\overrightarrow{AB}", r"\vec{AB}"],
        [r"\overrightarrow{BA}", r"\overline{AB}"],
    ),
    *in_boxes("names of figures", r"\widehat{AMB}", [r"\widehat{BMA}"], [r"\widehat{ABM}", r"\widehat{AB}"]),
    *in_boxes("names of figures", r"\angle 3", [r"∠3", r"\angle{3}"], [r"\angle 2", "3"]),
    *in_boxes(
        "names in formulas", r"2\angle ABC", [r"2\angle CBA", r"\angle ABC \cdot 2"], [r"2\angle BAC", r"2\angle ACB"]
    ),
    *in_boxes("names in formulas", r"AC \cdot BD", [r"DB \cdot CA", r"BD \cdot AC"], [r"AB \cdot CD", r"AC \cdot BE"]),
    *in_boxes("names in formulas", "AB + CD", ["CD + BA"], ["AC + BD", "AB - CD"]),
    *in_boxes("names in formulas", r"90^\circ - \angle ABC", [r"90^\circ - \angle CBA"], [r"90^\circ - \angle BCA"]),
    *in_boxes("names in formulas", r"\frac{AB}{CD}", [r"\frac{BA}{DC}"], [r"\frac{AC}{BD}", r"\frac{CD}{AB}"]),
    *in_boxes(
        "relations",
        r"AB \parallel CD",
        ["AB ∥ CD", r"CD \parallel BA", "AB || CD", r"\overline{AB} \parallel \overline{CD}"],
        [r"AB \perp CD", r"AC \parallel BD", r"AB \parallel CE"],
    ),
    *in_boxes("relations", r"AB \perp CD", ["AB ⊥ CD", r"DC \perp AB"], [r"AB \parallel CD"]),
    *in_boxes(
        "relations",
        r"\triangle ABC \sim \triangle DEF",
        ["△ABC ∼ △DEF", r"\triangle BCA \sim \triangle EFD", r"\triangle DEF \sim \triangle ABC", "△ABC ~ △DEF"],
        [r"\triangle ABC \sim \triangle EDF", r"\triangle ABC \cong \triangle DEF", r"\triangle ABC"],
    ),
    *in_boxes("relations", r"l \parallel m", [r"m \parallel l", "l ∥ m"], [r"l \perp m", r"l \parallel n"]),
    *in_boxes("relations", "PQ = RS", ["RS = PQ", "SR = QP"], ["PR = QS", "PQ = RT", "PQ = 2RS"]),
    *in_boxes(
        "relations",
        r"\angle PQR = \angle STU",
        [r"\angle UTS = \angle PQR"],
        [r"\angle QPR = \angle STU", r"\angle PQR = \angle SUT"],
    ),
    *in_boxes("relations", r"p \land q", [r"p \wedge q", "p ∧ q"], [r"p \lor q", r"p \land r"]),
    *in_boxes("relations", r"p \to q", [r"p \rightarrow q", "p → q"], [r"q \to p"]),
    *in_boxes("relations", r"A \cup B", ["A ∪ B", r"B \cup A"], [r"A \cap B", r"A \cup C", "AB"]),
    *in_boxes("relations", r"\sin A", ["sin A", r"\sin{A}", r"\sin(A)"], [r"\cos A", r"\sin B", "A"]),
    *in_boxes(
        "names before a sign",
        "45",
        [
            r"\angle ABC = 45^\circ",
            r"m\angle B = 45",
            "x = 45",
            r"\theta = 45^\circ",
            r"\text{Angle} = 45",
            r"y_1 = 45",
            r"\text{The angle is } 45",
        ],
        [r"\angle ABC = 54^\circ", "2x = 45", "45 = 46", "not x = 45", "x = 45 = 46", r"\pi = 45", "x + 1 = 45"],
    ),
    *in_boxes(
        "names before a sign",
        r"8\sqrt{3}",
        [
            r"\overline{AB} = 8\sqrt{3}",
            r"AB = 8\sqrt{3}",
            r"|AB| = 8\sqrt{3}",
            r"\text{Area} = 8\sqrt{3}",
            r"[ABC] = 8\sqrt{3}",
            r"S_{ABC} = 8\sqrt{3}",
        ],
        [r"AB = 8\sqrt{2}", r"8\sqrt{3} = x"],
    ),
    *in_boxes(
        "names before a sign",
        r"\frac{3}{5}",
        [
            r"\sin A = \frac{3}{5}",
            r"\cos \theta = 0.6",
            r"P(A) = 3/5",
            r"\tan(x) = \frac35",
            r"\frac{AB}{CD} = \frac{3}{5}",
        ],
        [r"\sin A = \frac{4}{5}", r"\sin A"],
    ),
    *in_boxes(
        "names before a sign",
        "(3,4)",
        ["(x, y) = (3, 4)", "A(3,4)", "x = 3, y = 4", "y = 4, x = 3", r"(x,y)=\left(3, 4\right)", "B = (3, 4)"],
        ["(x, y) = (4, 3)", "A(4,3)", "x = 4, y = 3", "3, 4", "[3,4]"],
    ),
    *in_boxes(
        "names before a sign",
        "x = 5, y = 3",
        ["(5,3)", "y = 3, x = 5", r"x=5 \text{ and } y=3", "(x, y) = (5, 3)"],
        ["(3,5)", "x = 3, y = 5", "x = 5", "x = 5, z = 3"],
    ),
    *in_boxes("names before a sign", "|AB| = 5", ["5", "AB = 5", r"\overline{BA} = 5"], ["4", "AC = 5"]),
    *in_boxes("names before a sign", r"\angle ABC = 45", [r"\angle CBA = 45^\circ", "45"], [r"\angle BAC = 45", "54"]),
    *in_boxes("names before a sign", "S_{MN}:S = 7:32", ["7:32", "7 : 32", r"7\colon 32"], ["32:7", "7:33"]),
    *in_boxes("names of figures", r"A'B'C'", [r"A'B'C'"], ["ABC", r"A'B'D'"]),
    *in_boxes(
        "names in formulas", r"\angle P + \angle Q", [r"\angle Q + \angle P"], [r"\angle P + \angle R", r"\angle P"]
    ),
    *in_boxes("names in formulas", r"2\sqrt{5}", [r"\sqrt{20}"], [r"2\sqrt{5}'"]),
    *in_boxes("names in formulas", "f'(x)", [r"f'(x)"], ["f(x)", "f'(y)"]),
    *in_boxes(
        "names before a sign",
        "17",
        [
            "x = y = 17",
            "PQ = RS = 17",
            r"\angle P = \angle Q = 17^\circ",
            "PQ + QR = 17",
            r"S_{\triangle PQR} = 17",
            r"\text{area}(PQR) = 17",
            r"\|\vec{a}\| = 17",
            r"PQ \text{ is } 17",
        ],
        ["x = y = 18", "PQ = 17 = 18", "x + 1 = 17", "PQ + QR = 18", "x^2 = 17", "3PQ = 17", "PQ = RS + 17"],
    ),
    *in_boxes("names before a sign", "x + y = 17", ["y + x = 17", "2x + 2y = 34"], ["17", "x + y = 18"]),
    *in_boxes(
        "names before a sign",
        "5/13",
        [r"\sin 2P = 5/13", r"\cos(\alpha+\beta) = \frac{5}{13}", "P(X=2) = 5/13"],
        [r"\sin 2P = 12/13"],
    ),
    *in_boxes(
        "names before a sign",
        "(2,9)",
        ["P_1(2,9)", "Q: (2, 9)", r"\text{the point } (2, 9)"],
        ["P_1(9,2)", "Q: (2, 8)"],
    ),
    *in_boxes("names before a sign", r"\text{The width is } 17", ["17", "17 cm"], ["16", "71"]),
    *in_boxes(
        "names before a sign",
        "17",
        [
            r"\gcd(34, 51) = 17",
            "f(g(3)) = 17",
            "f^{-1}(2) = 17",
            r"(f \circ g)(2) = 17",
            r"\lim_{x \to 0} f(x) = 17",
            r"\operatorname{Area}(PQR) = 17",
            r"\text{Area}_{PQR} = 17",
            r"\text{Area: } 17",
            r"\angle PQR \text{ is } 17^\circ",
        ],
        [r"\gcd(34, 51) = 18", r"\text{not: } 17", r"\text{maybe: } 17"],
    ),
    *in_boxes("names before a sign", "x = 7", ["7 = x", "x = 7.0"], ["7 = y", "8 = x", "7 = 2x"]),
    *in_boxes("names before a sign", "(3,4)", ["(y, x) = (4, 3)", r"\text{Vertex: } (3, 4)"], ["(y, x) = (3, 4)"]),
    *in_boxes("ratios", "5:8", ["5 to 8", r"5 \text{ to } 8"], ["8 to 5", "5 to 9"]),
    *in_boxes("ratios", "20-30", ["20 - 30", "20 to 30", "20–30"], ["30 to 20", "20 to 40", "-10"]),
    *in_boxes("ratios", "3:4", ["3 : 4", r"3\colon4", "3∶4", "x:y = 3:4"], ["4:3", "3/4 or 4/3", "34"]),
]

SEVERAL = [
    *in_boxes(
        "several answers",
        "1,2",
        [
            r"x=1 \text{ or } x=2",
            "2, 1",
            "1 and 2",
            r"\{1, 2\}",
            "x = 1, 2",
            r"x_1 = 1, x_2 = 2",
            r"1 \text{ and } 2",
            "1; 2",
        ],
        ["1", "1, 3", "1, 2, 3", "12", r"x=1 \text{ or } x=3"],
    ),
    *rows(
        "several answers",
        "2,3",
        [r"\boxed{2}, \boxed{3}", r"$\boxed{3}$ and $\boxed{2}$", r"\boxed{2}\text{ and }\boxed{3}"],
        [r"\boxed{3}", r"\boxed{2}, \boxed{4}", r"\boxed{2}. Then, after a while, \boxed{3}"],
    ),
    *in_boxes(
        "several answers",
        "1331 and 1728",
        ["1331, 1728", r"1331 \text{ and } 1728", "1728, 1331"],
        ["1331", "1331, 1729", "13311728"],
    ),
    *in_boxes(
        "several answers",
        "19, 46, and 82",
        [r"19, 46, \text{ and } 82", "82, 46, 19", "19, 46, 82"],
        ["19, 46", "19, 46, 83"],
    ),
    *in_boxes("several answers", "1 and 2 and 3", ["1, 2, 3", r"\{3, 2, 1\}"], ["1, 2", "6"]),
    *in_boxes(
        "several answers",
        "(5, 8), (8, 5)",
        [r"(x, y) = (5, 8) \quad \text{and} \quad (8, 5)", "(8,5), (5,8)", "(8, 5) or (5, 8)"],
        ["(5, 8)", "(5, 8), (5, 8)", "(8, 5), (5, 9)"],
    ),
    *in_boxes("several answers", "x=1, y=2; x=3, y=4", ["(1,2), (3,4)", "(3,4) and (1,2)"], ["(1,2)", "(2,1), (4,3)"]),
    *in_boxes(
        "several answers",
        r"30^\circ, 60^\circ, 90^\circ",
        ["30°, 60°, 90°", "90, 60, 30", r"30^{\circ}, 60^{\circ} \text{ and } 90^{\circ}"],
        [r"30^\circ, 60^\circ", r"30^\circ, 60^\circ, 80^\circ", "180"],
    ),
    *in_boxes(
        "several answers",
        r"\pm 5",
        ["5 and -5", "x = 5 or x = -5", r"\{\pm 5\}", r"-5 \text{ and } 5"],
        ["5", "x = 5", "5 and -6", r"\pm 5, 0"],
    ),
    *in_boxes("several answers", r"0, \pm 5", ["-5, 0, 5", r"0 \text{ and } \pm 5"], [r"\pm 5", "0, 5"]),
    *in_boxes("several answers", r"2 \pm \sqrt{6}", [r"2+\sqrt{6}, 2-\sqrt{6}"], [r"2+\sqrt{6}", r"2 \pm \sqrt{5}"]),
    *in_boxes(
        "several answers",
        "x = 6, y = 1",
        [r"\begin{cases} x = 6 \\ y = 1 \end{cases}"],
        [r"\begin{cases} x = 1 \\ y = 6 \end{cases}"],
    ),
    *in_boxes(
        "several answers",
        r"45^\circ, 45^\circ, 90^\circ",
        ["90, 45, 45", r"45°, 90°, 45°"],
        ["45, 90", "45, 90, 90", "45, 45, 90, 90"],
    ),
    *in_boxes("several answers", r"\{2, 7\}", ["2, 7, 2", r"\{7, 2, 2\}"], ["2, 2", r"\{2, 7, 1\}"]),
    *in_boxes("several answers", "-3", ["-3, -3", "x = -3"], ["-3, 3", "-3, -3, 3"]),
    *in_boxes("several answers", "(5, 5)", ["(5, 5)", "x = 5, y = 5"], ["5", "(5, 6)"]),
    *in_boxes(
        "several answers",
        r"5, 5, 5\sqrt{2}",
        [r"5\sqrt{2}, 5, 5", r"5, \sqrt{50}, 5"],
        [r"5, 5\sqrt{2}", r"5, 5\sqrt{2}, 5\sqrt{2}", "5, 5"],
    ),
    *in_boxes("several answers", "P, Q, R", ["R, P and Q"], ["P, Q, R'", "P, Q"]),
    *in_boxes(
        "several answers",
        r"\frac{1}{2}, \sqrt{3}",
        [r"\sqrt{3}, 0.5"],
        [r"\sqrt{3}!, \frac{1}{2}", r"3 = \frac{1}{2}, \sqrt{3}"],
    ),
    *in_boxes("several answers", r"\sqrt{6}", [r"\sqrt{6}, \sqrt{6}"], [r"\sqrt{6}, 0"]),
    *in_boxes("several answers", "(1, 2), (3, 4)", ["(3, 4), (1, 2), (3, 4)"], ["(1, 2), (1, 2)"]),
    *in_boxes("several answers", r"\pm 3", ["3, -3", r"-3 \text{ or } 3", r"x = \pm 3"], ["3", "-3", r"\pm 4"]),
    *in_boxes(
        "several answers",
        r"\sqrt{2}, \sqrt{3}",
        [r"\sqrt{3} \text{ and } \sqrt{2}"],
        [r"\sqrt{2}", r"\sqrt{2}, \sqrt{5}"],
    ),
    *in_boxes(
        "several answers", "a = 45, b = 2", ["b = 2, a = 45", r"a = 45 \text{ and } b = 2"], ["a = 2, b = 45", "45"]
    ),
]

RANGES = [
    *in_boxes(
        "inequalities",
        "[-4, 9)",
        [r"x \ge -4 \text{ and } x < 9", "[-4; 9)", r"\{x \mid -4 \le x < 9\}", r"x < 9 \land x \ge -4"],
        [r"x \ge -4 \text{ or } x < 9", r"x > -4 \text{ and } x < 9", r"x \ge -4 \text{ and } y < 9"],
    ),
    *in_boxes(
        "inequalities",
        r"x \neq 8",
        [r"x \not= 8", r"\{x \mid x \ne 8\}", r"\mathbb{R} \setminus \{8\}", r"(-\infty, 8) \cup (8, \infty)"],
        ["8", r"\mathbb{R}", r"y \ne 8", r"\mathbb{R} \setminus \{9\}"],
    ),
    *in_boxes("inequalities", r"\{n \mid n = 4k\}", [r"\{n : n = 4k\}"], ["4k", r"\{n \mid n = 5k\}"]),
    *in_boxes(
        "inequalities",
        r"(-\infty, -2] \cup [3, \infty)",
        [r"[3, \infty) \cup (-\infty, -2]", r"x \ge 3 \text{ or } x \le -2"],
        [r"[3, \infty) \cup (-\infty, -2)", r"(3, \infty) \cup (-\infty, -2]"],
    ),
    *in_boxes("inequalities", "a > 0, b < 0", [r"b < 0 \text{ and } a > 0"], [r"a > 0 \text{ or } b < 0", "a > 0"]),
    *in_boxes("inequalities", r"\{x \mid -1 < x < 3\}", ["-1 < x < 3"], [r"\{y \mid -1 < x < 3\}", "-1 < x < 4"]),
    *in_boxes("inequalities", r"(-\infty, \infty)", [r"\mathbb{R}", r"x \in \mathbb{R}"], [r"\mathbb{Z}"]),
    *in_boxes("inequalities", r"\mathbb{R} \setminus \{8\}", [r"x \neq 8"], [r"x \neq 9", "x = 8"]),
    *in_boxes(
        "inequalities",
        r"\mathbb{R}",
        [r"(-\infty, \infty)", r"\text{all real numbers}"],
        [r"(0, \infty)", r"\emptyset"],
    ),
    *in_boxes(
        "inequalities", r"-6 \le t \le 1", [r"t \in [-6, 1]", "[-6, 1]"], ["(-6, 1)", r"-6 \le s \le 1", r"-6 < t < 1"]
    ),
    *in_boxes("inequalities", r"[-6, 1]", [r"-6 \le t \le 1", r"-6 \leqslant t \leqslant 1"], [r"-6 \le t < 1"]),
    *in_boxes(
        "inequalities",
        r"(-\infty,2) \cup (6,\infty)",
        [r"(-\infty,2) \bigcup (6,+\infty)"],
        [r"(-\infty,2) \bigcap (6,+\infty)"],
    ),
    *in_boxes(
        "inequalities",
        "x >= 5",
        [r"x \geq 5", "5 <= x", r"[5, \infty)", r"x \in [5, \infty)", "x ≥ 5"],
        ["x > 5", r"x \le 5", r"(5, \infty)", "x = 5", "y >= 5"],
    ),
    *in_boxes(
        "inequalities",
        "x < 3",
        [r"x \lt 3", "3 > x", r"(-\infty, 3)", r"3 \gt x"],
        ["x <= 3", "x > 3", r"(-\infty, 3]"],
    ),
    *in_boxes("inequalities", r"x \neq 3", ["x != 3", "x ≠ 3", r"x \ne 3"], ["x = 3", r"x \neq 4"]),
    *in_boxes(
        "inequalities",
        "-2 <= x < 7",
        [r"x \in [-2, 7)", "[-2, 7)", "7 > x >= -2", r"-2 \leq x < 7"],
        ["(-2, 7)", "[-2, 7]", "-2 < x < 7"],
    ),
    *in_boxes(
        "inequalities",
        r"x \in [-2,7]",
        [r"-2 \le x \le 7", "[-2, 7]", r"-2 \\le x \\le 7"],
        ["(-2, 7)", "-2 < x < 7", "[-2, 8]"],
    ),
    *in_boxes(
        "inequalities",
        r"\{x \mid x > 2\}",
        ["x > 2", r"\{x : x > 2\}", r"(2, \infty)", r"\{ x | x > 2 \}", r"\{x \in \mathbb{R} \mid x > 2\}"],
        ["x < 2", r"x \ge 2", r"\{x \mid x > 3\}", "2"],
    ),
    *in_boxes(
        "inequalities",
        r"(-\infty, 1) \cup (3, \infty)",
        [r"x < 1 \text{ or } x > 3", r"(3, \infty) \cup (-\infty, 1)"],
        [r"x < 1", r"x < 1 \text{ or } x \ge 3", r"(-\infty, 3) \cup (1, \infty)"],
    ),
    *in_boxes(
        "points", "(1,2)", ["(1, 2)", r"\left(1, 2\right)", "(2-1, 2)"], ["(2,1)", "1<x<2", "1,2", "[1,2]", "(1,2,3)"]
    ),
]

FORMULAS = [
    *in_boxes(
        "formulas",
        r"\sqrt{8}",
        [r"2\sqrt{2}", "2 sqrt(2)", r"\sqrt8", r"{2}\sqrt{2}", r"\left(2\sqrt{2}\right)"],
        [r"2\sqrt{3}", "2.83", r"\sqrt{8} \text{ or } 3", r"\sqrt{2}\sqrt{2}\sqrt{3}"],
    ),
    *in_boxes("formulas", r"\frac{\ln 3}{\ln 2}", [r"\log_2 3", r"\log_{2}(3)"], [r"\log_3 2", r"\log_2 5"]),
    *in_boxes("formulas", r"90^\circ - \alpha", ["90° - α", r"90 - \alpha"], ["90° + α", "90° - β"]),
    *in_boxes("formulas", "2x+1", ["1+2x", r"2{x}+1", "2(x+1)-1"], ["2x-1", "2X+1", "x+1"]),
    *in_boxes("formulas", "y = 2x + 1", ["2x - y + 1 = 0", "2x + 1", "4x - 2y + 2 = 0"], ["y = 2x - 1", "y = 2x"]),
    *in_boxes(
        "formulas",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        [
            r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
            r"\left[\begin{array}{cc}1 & 2 \\ 3 & 4\end{array}\right]",
            r"\left(\begin{array}{rr}1&2\\3&4\end{array}\right)",
            r"\text{The matrix is } \begin{pmatrix}1&2\\3&4\end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 \\[2mm] 3 & 4 \end{pmatrix}",
            r"\left(\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}\right)",
        ],
        [r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", "10"],
    ),
    *in_boxes(
        "formulas", r"1 - \frac{1}{e}", [r"1 - \frac{1}{\mathrm{e}}", r"\frac{e-1}{e}"], [r"1 + \frac{1}{e}", "0.632"]
    ),
    *in_boxes(
        "work left to do",
        "10",
        [],
        ["5+5", r"2 \cdot 5", r"\sqrt{100}", "10!", r"\sum_{k=1}^{4} k", "x = 5+5", "x = 5+5 = 7 = 10"],
    ),
    *in_boxes("golds that no grammar reads", r"AB \to CD", [r"AB \to CD", r"AB  \to  CD"], ["CD", r"CD \to AB", "5"]),
    *in_boxes(
        "golds that no grammar reads",
        r"\overleftrightarrow{PQ} \ni R",
        [r"\overleftrightarrow{PQ} \ni R"],
        ["R", "5", r"\sqrt{2}"],
    ),
]

ROWS = [*CHOICES, *STATEMENTS, *NUMBERS, *UNITS, *NAMES, *SEVERAL, *RANGES, *FORMULAS]


class Agreement(NamedTuple):
    """Of one kind: right answers that score 1.0 and wrong ones that score 0.0, each of how many."""

    right: int
    of_right: int
    wrong: int
    of_wrong: int


def verdicts() -> list[float | None]:
    with AnswerScorer(workers=2, timeout_s=60.0) as scorer:
        return scorer.score_many(
            [row.response for row in ROWS], [row.gold for row in ROWS], [row.choices for row in ROWS]
        )


def agreement(scores: list[float | None]) -> dict[str, Agreement]:
    table: dict[str, Agreement] = {}
    for row, score in zip(ROWS, scores, strict=True):
        right, of_right, wrong, of_wrong = table.get(row.kind, Agreement(0, 0, 0, 0))
        table[row.kind] = Agreement(
            right + (row.right and score == 1.0),
            of_right + row.right,
            wrong + (not row.right and score == 0.0),
            of_wrong + (not row.right),
        )
    return table


def main() -> None:
    for kind, row in agreement(verdicts()).items():
        print(f"{kind:46} right {row.right:3} of {row.of_right:3}   wrong {row.wrong:3} of {row.of_wrong:3}")


if __name__ == "__main__":
    main()
