from training import text

REPORT = (
    "The U.S. Senate passed H.R. 6 on July 31, 2003. Mr. Smith (a senator) objected. "
    "It failed! Did the agency follow P.L. 102-486 as required? See Fig. 3 for J. R. Adams."
)


def test_abbreviations_and_initials_end_no_sentence():
    assert list(text.sentences(REPORT)) == [
        "The U.S. Senate passed H.R. 6 on July 31, 2003.",
        "Mr. Smith (a senator) objected.",
        "It failed!",
        "Did the agency follow P.L. 102-486 as required?",
        "See Fig. 3 for J. R. Adams.",
    ]


def test_pieces_give_the_text_back_and_the_joined_form_has_one_line():
    source = f"A Heading\n\n{REPORT}\n\nThe second paragraph has one sentence of several words."
    parts = text.pieces(source)
    assert "".join(part.separator + part.text for part in parts) == source
    line = "".join(part.separator + part.text for part in text.joined(parts))
    assert "\n" not in line
    assert "Heading" not in line
    assert line.startswith("The U.S. Senate")


def test_lines_of_wrapped_text_belong_together():
    line = "and so the wind went over the hills until the evening came again"
    wrapped = "\n".join([f"The day began {line}"] + [line] * 30) + "."
    assert text.is_wrapped(wrapped)
    assert len(text.pieces(wrapped)) == 1


def test_what_is_quotable():
    assert text.is_sentence("The agency found that the program had met its goals.")
    assert not text.is_sentence("Too short.")
    assert not text.is_sentence("and this one starts in the middle of things.")
    assert not text.is_sentence("This one never comes to its end although it is long")


def test_cues_raise_and_pronouns_lower_the_prior():
    plain = text.prior("The river ran past the village and the old mill near the forest edge.")
    cue = text.prior("The report found that the river past the village and the mill had risen.")
    weak = text.prior("They ran past the village and the old mill near the forest edge at night.")
    assert weak < plain < cue
    assert text.prior("In 1999 12,345 and 67,890 and 11,111 were 22,222 or 33,333.") == text.UNFIT
