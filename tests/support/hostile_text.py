"""A text as somebody writes it who means harm to a terminal or a page, and what is left of it where it is shown."""

CONTROLS = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
MARKUP = "[red]x[/red] [/bold] <script>x</script></p></mark><img src=x onerror=x> \" onerror=x ' onerror=x "
HOSTILE = MARKUP + CONTROLS


def assert_plain(*texts):
    """Nothing that a terminal obeys, or that hides or reorders letters."""
    for text in texts:
        assert not {letter for letter in text if not letter.isprintable()} - {"\n"}
