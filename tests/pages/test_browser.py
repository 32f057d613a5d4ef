"""The page in a real browser: its filters and its axis, by mouse and by keyboard, and no error."""

import time

import pytest

from browser import chromium, tab
from stages.pages.page import MEGABYTE, report_page
from written_run import write_run, write_study

pytestmark = pytest.mark.skipif(chromium() is None, reason="NO CHROMIUM: the page was not tried in a browser")
SHOWN = "[...document.querySelectorAll('article.pair')].filter((pair) => pair.checkVisibility()).length"
TOLD = "document.querySelector('#matches').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 1,000 pairs, loaded."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(
        report_page([write_run(folder / "run", rounds=2, count=250)], 5 * MEGABYTE), encoding="utf-8"
    )
    with tab() as opened:
        started = time.monotonic()
        opened.open(folder / "page.html")
        opened.loading_s = time.monotonic() - started
        yield opened


def choose(page, name, begins):
    """Choose the option that begins so, as a person does: the list changes, and the page hears of it."""
    return page.run(
        f"""(() => {{ const list = document.querySelector('select[name={name}]');
        list.value = [...list.options].find((option) => option.text.startsWith({begins!r})).value;
        const started = performance.now();
        list.dispatchEvent(new Event('change', {{ bubbles: true }}));
        document.body.offsetHeight;
        return performance.now() - started; }})()"""
    )


def test_a_thousand_pairs_load_and_are_filtered_without_a_stall(page):
    assert page.loading_s < 10
    assert page.run("document.querySelectorAll('article.pair').length") == 1000
    assert (page.run(SHOWN), page.run(TOLD)) == (30, "30 of 1000 shown")
    assert choose(page, "outcome", "flagged") < 1000
    assert page.run(TOLD) == "30 of 166 shown"  # every third of 250 problems from the second, in two rounds
    choose(page, "round", "2")
    assert page.run(TOLD) == "30 of 83 shown"
    choose(page, "kind", "difference")
    expected = len([place for place in range(250) if place % 3 == 1 and place % 2 == 1])
    assert page.run(TOLD) == f"30 of {expected} shown"
    visible = "[...document.querySelectorAll('article.pair')].filter((pair) => pair.checkVisibility())"
    assert page.run(f"{visible}.every((pair) => pair.textContent.includes('answer_pasted'))")
    choose(page, "category", "not flagged")
    assert (page.run(SHOWN), page.run(TOLD)) == (0, "0 of 0 shown")


def test_buttons_show_more_and_show_all_again(page):
    page.run("document.querySelector('#filters button').click(); new Promise((done) => setTimeout(done, 50))")
    assert page.run(TOLD) == "30 of 1000 shown"
    page.run("document.querySelector('#more').focus()")
    page.press("Enter")
    page.run("document.querySelector('#more').click()")
    assert page.run(SHOWN) in (60, 90)  # Enter presses it too, where the browser has the window's focus
    choose(page, "outcome", "wrong")
    assert page.run(SHOWN) == 30


def test_rollouts_over_rounds_stay_whatever_is_filtered(page):
    problems = "[...document.querySelectorAll('article.course')].filter((problem) => problem.checkVisibility())"
    choose(page, "round", "2")
    told = (
        f"{problems}.map((problem) => [...problem.querySelectorAll('tbody th')].map((cell) => cell.textContent).join())"
    )
    assert page.run(told) == ["1,2", "1,2"]
    page.run("document.querySelector('#rollouts').scrollIntoView()")
    assert page.run(f"{problems}[0].querySelector('.picture use').getBoundingClientRect().width") > 0
    page.run("document.querySelector('#filters button').click()")


def test_the_axis_turns_every_chart(page):
    charts = "[...document.querySelectorAll('svg.chart')].filter((chart) => chart.checkVisibility())"
    axes = f"[...new Set({charts}.map((chart) => chart.dataset.axis))].join()"
    count = page.run("document.querySelectorAll('figure.panel').length")
    assert (page.run(axes), page.run(f"{charts}.length")) == ("round", count)
    turn = "(() => { const axis = document.querySelector('.axis'); axis.value = '%s'; "
    page.run(turn % "device_seconds" + "axis.dispatchEvent(new Event('change')); })()")
    assert (page.run(axes), page.run(f"{charts}.length")) == ("device_seconds", count)


def test_pictures_are_drawn_and_nothing_is_wider_than_the_window(page):
    page.run("document.querySelector('#gallery').scrollIntoView()")
    picture = "[...document.querySelectorAll('.picture use')].find((use) => use.checkVisibility())"
    assert page.run(f"{picture}.getBoundingClientRect().width") > 0
    page.call("Emulation.setDeviceMetricsOverride", width=380, height=800, deviceScaleFactor=1, mobile=False)
    assert page.run("document.documentElement.scrollWidth") <= 380
    place = "getComputedStyle(document.querySelector('#filters')).position"
    assert page.run(place) == "static"  # it would stay over most of such a window
    page.call("Emulation.clearDeviceMetricsOverride")
    assert page.run(place) == "sticky"


CONTRAST = """(() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (color) => { paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
      .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0); };
  const style = getComputedStyle(document.documentElement), of = (name) => light(style.getPropertyValue(`--${name}`));
  const ratio = (a, b) => (Math.max(of(a), of(b)) + 0.05) / (Math.min(of(a), of(b)) + 0.05);
  return Object.fromEntries([['ink', 'ground'], ['soft', 'ground'], ['ink', 'raised'], ['bad-ink', 'bad'],
    ['good-ink', 'good'], ...[...Array(8).keys()].map((place) => [`c${place}`, 'ground'])]
    .map((pair) => [pair, ratio(...pair)]));
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(page, scheme):
    """WCAG 2.2: 4.5 for text, 3 for what a chart is read by."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    ratios = page.run(CONTRAST)
    assert len(ratios) == 13
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < (3 if pair.startswith("c") else 4.5)} == {}


PRINTED = """(() => {
  const ground = getComputedStyle(document.documentElement).getPropertyValue('--ground');
  const seen = (name) => [...document.querySelectorAll(name)].some((element) => element.checkVisibility());
  return [ground, seen('form'), seen('article.pair'), seen('svg.chart')];
})()"""


def test_on_paper_it_is_light_and_has_nothing_to_choose(page):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    light, *on_screen = page.run(PRINTED)
    assert on_screen == [True, True, True]
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", features=dark)
    assert page.run(PRINTED)[0] != light
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert page.run(PRINTED) == [light, False, True, True]
    page.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_study_is_filtered_by_variant_and_seed_and_turned_by_its_own_axis(page, tmp_path):
    """Of two runs of `ours`, of two rounds and of one, each with 8 pairs a round, and one round of `rival`."""
    (tmp_path / "page.html").write_text(report_page([write_study(tmp_path / "study")], MEGABYTE), encoding="utf-8")
    page.open(tmp_path / "page.html")
    assert page.run(TOLD) == "30 of 32 shown"
    choose(page, "variant", "ours")
    assert page.run(TOLD) == "24 of 24 shown"
    choose(page, "seed", "1")
    assert page.run(TOLD) == "8 of 8 shown"
    chosen = "[...document.querySelectorAll('.curves')].map((part) => [...new Set([...part.querySelectorAll('.chart')]"
    chosen += ".filter((chart) => chart.checkVisibility()).map((chart) => chart.dataset.axis))].join())"
    assert page.run(chosen) == ["device_seconds", "round"]
    page.run(
        "(() => { const axis = document.querySelector('.axis'); axis.value = 'rollouts'; "
        "axis.dispatchEvent(new Event('change')); })()"
    )
    assert page.run(chosen) == ["rollouts", "round"]


def test_there_was_no_error_in_the_console(page):
    assert page.errors == []
