"""The rules behind ``answers.score_answer``: pure functions on texts, nothing is evaluated.

``typography`` frees an answer of its typesetting; ``quantities`` reads numbers and units, ``names`` what stands left of
an equals sign, ``figures`` angles, polygons and their relations, ``lists`` several answers, ``ranges`` inequalities and
intervals; ``choices`` says which choice a statement names; ``equality`` compares two answers. What peers accept and
these rules refuse on purpose is listed in ``REFUSED.md``.
"""
