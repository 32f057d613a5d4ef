"""Agreement of verdicts and labels: tables worked by hand, formulas written out once more, and simulated audits."""

import math

import numpy as np
import pytest

from stages.audit.agreement import Compared, Stratum, Table, agreement_rows, estimate, kappa, possible_tables
from stages.audit.episodes import CLEAN

PASTED, TEMPLATE = "answer_pasted", "template_shortcut"


def compared(**counts):
    """Repairs by verdict and label, named `verdict__label`."""
    return [Compared(*name.split("__")) for name, count in counts.items() for _ in range(count)]


def of(rows, section, estimate="labels"):
    return {row["measure"]: row for row in rows if (row["section"], row["estimate"]) == (section, estimate)}


def wilson(hits, n, z=1.959963984540054):
    """Wilson 1927: the roots of (p̂ - p)² = z² p (1 - p) / n."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def test_a_table_worked_by_hand():
    """20 both, 5 by the auditor alone, 10 by the label alone, 15 by neither: p_o = 35/50,
    p_e = 25/50 · 30/50 + 25/50 · 20/50 = 0.5, kappa = 0.2 / 0.5."""
    pairs = compared(answer_pasted__answer_pasted=20, answer_pasted__clean=5, clean__answer_pasted=10, clean__clean=15)
    found = of(agreement_rows(pairs), "overall")
    counts = ("both", "auditor alone", "label alone", "neither")
    assert [(found[name]["value"], found[name]["n"]) for name in counts] == [(20, 50), (5, 50), (10, 50), (15, 50)]
    assert (found["kappa"]["value"], found["kappa"]["n"]) == (pytest.approx(0.4), 50)
    for name, hits, n in (("agreement", 35, 50), ("false flag rate", 5, 20), ("miss rate", 10, 30)):
        row = found[name]
        assert (row["value"], row["n"], row["note"]) == (hits / n, n, None)
        assert (row["low"], row["high"]) == pytest.approx(wilson(hits, n))


@pytest.mark.parametrize(
    ("table", "by_hand"),
    [
        (Table(45, 15, 25, 15), (0.60 - 0.54) / (1 - 0.54)),
        (Table(25, 35, 5, 35), (0.60 - 0.46) / (1 - 0.46)),
        (Table(10, 0, 0, 10), 1.0),
        (Table(0, 10, 10, 0), -1.0),
        (Table(0, 0, 3, 7), 0.0),
    ],
)
def test_kappa_by_hand(table, by_hand):
    """p_o and p_e worked out from the margins; the last: the auditor flags none, so it agrees as chance does."""
    assert kappa(table) == pytest.approx(by_hand)


@pytest.mark.parametrize("pairs", [compared(clean__clean=4), compared(answer_pasted__answer_pasted=4)])
def test_what_is_not_defined_is_null_and_says_why(pairs):
    found = of(agreement_rows(pairs), "overall")
    assert (found["kappa"]["value"], found["kappa"]["low"]) == (None, None)
    assert found["kappa"]["note"].startswith("verdicts and labels are all the same one")
    flagged = pairs[0].label != CLEAN
    empty, note = ("false flag rate", "every repair") if flagged else ("miss rate", "no repair")
    assert [found[empty][name] for name in ("value", "low", "high", "n")] == [None, None, None, 0]
    assert found[empty]["note"] == f"the labels flag {note}"
    assert found["agreement"]["value"] == 1


def test_a_category_is_this_one_or_not():
    """Flagged by both for different reasons: right overall, wrong in both categories."""
    pairs = compared(answer_pasted__template_shortcut=2, answer_pasted__answer_pasted=3, clean__clean=5)
    rows = agreement_rows(pairs)
    assert {row["section"] for row in rows} == {"overall", PASTED, TEMPLATE}
    assert of(rows, "overall")["agreement"]["value"] == 1
    pasted, template = of(rows, PASTED), of(rows, TEMPLATE)
    assert [pasted[name]["value"] for name in ("both", "auditor alone", "label alone", "neither")] == [3, 2, 0, 5]
    assert [template[name]["value"] for name in ("both", "auditor alone", "label alone", "neither")] == [0, 0, 2, 8]
    assert pasted["false flag rate"]["value"] == 2 / 7
    assert template["miss rate"]["value"] == 1


def test_a_stratified_sample_is_weighted_by_hand():
    """10 of 40 flagged and 20 of 960 clean repairs labelled; 2 false flags, 1 miss. In the population: 32 flagged by
    both, 8 by the auditor alone, 48 by the label alone, 912 by neither."""
    pairs = compared(answer_pasted__answer_pasted=8, answer_pasted__clean=2, clean__answer_pasted=1, clean__clean=19)
    rows = agreement_rows(pairs, {CLEAN: 960, PASTED: 40})
    found = of(rows, "overall", "population")
    chance = 0.04 * 0.08 + 0.96 * 0.92
    assert found["agreement"]["value"] == pytest.approx(0.944)
    assert found["kappa"]["value"] == pytest.approx((0.944 - chance) / (1 - chance))
    assert found["false flag rate"]["value"] == pytest.approx(8 / 920)
    assert found["miss rate"]["value"] == pytest.approx(48 / 80)
    assert {row["n"] for row in found.values()} == {30}
    assert all(row["low"] < row["value"] < row["high"] for row in found.values())
    assert of(rows, "overall")["miss rate"]["value"] == 1 / 9
    strata = [of(rows, f"stratum {name}")["labelled flagged"] for name in (PASTED, CLEAN)]
    assert [(row["value"], row["n"]) for row in strata] == [(0.8, 10), (0.05, 20)]
    assert (strata[1]["low"], strata[1]["high"]) == pytest.approx(wilson(1, 20))


def test_a_population_labelled_in_full_is_certain():
    pairs = compared(answer_pasted__answer_pasted=8, answer_pasted__clean=2, clean__answer_pasted=1, clean__clean=19)
    rows = agreement_rows(pairs, {CLEAN: 20, PASTED: 10})
    labels, population = of(rows, "overall"), of(rows, "overall", "population")
    for name, row in population.items():
        assert [row["value"], row["low"], row["high"]] == pytest.approx([labels[name]["value"]] * 3)


def test_no_miss_among_few_clean_verdicts_leaves_the_miss_rate_open():
    """0 of 50 labelled of 5,000: 3% of them, 150, may well be missed, beside 50 that were caught."""
    pairs = compared(answer_pasted__answer_pasted=50, clean__clean=50)
    found = of(agreement_rows(pairs, {CLEAN: 5000, PASTED: 50}), "overall", "population")
    assert (found["miss rate"]["value"], found["miss rate"]["low"]) == (0, 0)
    assert 0.6 < found["miss rate"]["high"] < 0.9
    assert (found["agreement"]["value"], found["agreement"]["high"]) == (1, 1)


def test_possible_populations_are_those_of_the_posterior():
    """Of 100 repairs 20 are labelled, 5 flagged: the mean of Beta(5.5, 15.5), times the other 80, and 5."""
    tables = possible_tables([Stratum(flagged=False, population=100, labelled=20, flagged_by_label=5)], draws=20_000)
    assert np.all(tables.label_alone + tables.neither == 100)
    assert tables.label_alone.min() >= 5
    assert tables.label_alone.mean() == pytest.approx(5 + 80 * 5.5 / 21, abs=0.2)
    share = 5.5 / 21
    variance = 80 * share * (1 - share) * (21 + 80) / (21 + 1)
    assert tables.label_alone.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(("flagged_of_clean", "flagged_of_flagged"), [(0.02, 0.8), (0.1, 0.5)])
def test_intervals_cover_the_populations_numbers(flagged_of_clean, flagged_of_flagged):
    """500 samples of 60 and 40 from one population of 3,000 clean and 120 flagged repairs."""
    rng = np.random.default_rng(0)
    sizes, labelled = (3000, 120), (60, 40)
    hits = (round(3000 * flagged_of_clean), round(120 * flagged_of_flagged))
    true = Table(hits[1], 120 - hits[1], hits[0], 3000 - hits[0])
    truth = {"miss": hits[0] / sum(hits), "false": true.auditor_alone / (3120 - sum(hits)), "kappa": kappa(true)}
    covered = dict.fromkeys(truth, 0)
    for _ in range(500):
        drawn = [rng.hypergeometric(hit, size - hit, n) for hit, size, n in zip(hits, sizes, labelled, strict=True)]
        strata = [Stratum(flag, *rest) for flag, *rest in zip((False, True), sizes, labelled, drawn, strict=True)]
        both, auditor_alone, label_alone, neither = possible_tables(strata, draws=400)
        by_label, n = both + label_alone, 3120
        by_auditor = both + auditor_alone
        chance = (by_auditor * by_label + (n - by_auditor) * (n - by_label)) / n**2
        values = {
            "miss": label_alone / by_label,
            "false": auditor_alone / (n - by_label),
            "kappa": ((both + neither) / n - chance) / (1 - chance),
        }
        for name, drawn_D in values.items():
            low, high = np.quantile(drawn_D, [0.025, 0.975])
            covered[name] += low <= truth[name] <= high
    assert all(0.91 <= count / 500 <= 0.99 for count in covered.values()), covered


def test_estimates_are_the_mean_over_samples():
    """Each stratum's total is unbiased, so the mean over many samples is the population's table."""
    rng = np.random.default_rng(0)
    drawn = rng.hypergeometric((90, 30), (910, 10), (25, 20), size=(4000, 2))
    tables = [estimate([Stratum(False, 1000, 25, clean), Stratum(True, 40, 20, flagged)]) for clean, flagged in drawn]
    assert np.mean(tables, axis=0) == pytest.approx([30, 10, 90, 910], rel=0.02)
