from p2pkv.mesh.proofs import Proofs


def test_who_got_no_answer_is_kept_until_it_is_forgotten_or_too_many_came_since() -> None:
    proofs = Proofs(proofs_max=2)
    for member in "aba":
        proofs.keep(member, frozenset(f"{member}1"))
    assert [sorted(proofs.of(member)) for member in "abc"] == [["1", "a"], ["1", "b"], []]
    proofs.keep("c", frozenset("x"))
    assert [sorted(proofs.of(member)) for member in "abc"] == [["1", "a"], [], ["x"]]
    proofs.forget("a")
    proofs.forget("never")
    assert len(proofs) == 1
