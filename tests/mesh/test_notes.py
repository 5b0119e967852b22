from p2pkv.effects import Note
from p2pkv.mesh.notes import Notes


def test_a_warning_is_given_once_per_subject() -> None:
    notes = Notes()
    facts = (("sender", "b"),)
    assert notes.warn_once("odd", facts, about=("b",)) == (Note("odd", facts, warning=True),)
    assert notes.warn_once("odd", facts, about=("b",)) == ()
    assert len(notes.warn_once("odd", facts, about=("c",))) == 1
    assert len(notes.warn_once("strange", facts, about=("b",))) == 1


def test_subjects_remembered_are_bounded() -> None:
    notes = Notes(noted_max=2)
    assert [len(notes.warn_once("odd", (), about=(i,))) for i in range(4)] == [1, 1, 0, 0]
