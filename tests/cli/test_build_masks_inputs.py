"""`df build-masks` takes rollouts, problems and two models, or the pairs of an earlier output."""

import pytest

from df_cli.main import main

INPUTS = ("--rollouts", "--problems", "--repair-model", "--policy")


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """A function: exit code and what stderr says in one line, frame and line ends taken away."""

    def run(*arguments):
        monkeypatch.setattr(
            "sys.argv", ["df", "build-masks", "--recipe", "digits", "--out", str(tmp_path / "out"), *arguments]
        )
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert not (tmp_path / "out").exists()
        return exit_info.value.code, " ".join(capsys.readouterr().err.replace("│", " ").split())

    return run


@pytest.mark.parametrize("given", [(), INPUTS[:1], INPUTS[1:]])
def test_missing_inputs_are_named(given, told):
    code, message = told(*(word for name in given for word in (name, "x")))

    missing = ", ".join(name for name in INPUTS if name not in given)
    assert code == 2
    assert f"Invalid value for {missing}: missing; give {', '.join(INPUTS)}, or --pairs alone" in message
    assert ("without one by --set masks.repairer=sibling" in message) == ("--repair-model" in missing)


@pytest.mark.parametrize("given", [INPUTS, INPUTS[1:2], INPUTS[2:]])
def test_inputs_beside_pairs_are_named(given, told):
    code, message = told("--pairs", "y", *(word for name in given for word in (name, "x")))

    assert code == 2
    assert f"--pairs: takes the place of {', '.join(given)}; leave those out, or leave out --pairs" in message


def test_pairs_that_are_not_there_are_named_with_their_producer(told):
    code, message = told("--pairs", "gone")

    assert (code, message) == (1, "error: gone: no such file or folder; groups is written by df build-masks")


def test_preferences_take_the_place_of_rollouts_and_problems(told):
    code, message = told("--preferences", "y", "--problems", "x")
    assert code == 2
    assert "--preferences: takes the place of --problems; leave those out, or leave out --preferences" in message

    code, message = told("--preferences", "y", "--policy", "x")
    assert "for --repair-model: missing; give --preferences, --repair-model, --policy, or --pairs alone" in message

    code, message = told("--preferences", "y", "--pairs", "x")
    assert "--pairs: takes the place of --preferences" in message


def test_siblings_need_no_repair_model(told):
    code, message = told("--set", "masks.repairer=sibling", *(word for name in INPUTS[:2] for word in (name, "gone")))
    assert (code, "for --policy: missing; give --rollouts, --problems, --policy" in message) == (2, True)

    code, message = told("--set", "masks.repairer=sibling", "--preferences", "gone", "--policy", "x")
    assert (code, message) == (1, "error: gone: no such file or folder; preferences is written by you")
