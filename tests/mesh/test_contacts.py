"""When members were last heard from: the latest counts, and the longest silent is forgotten first."""

from p2pkv.mesh.contacts import NEVER, Contacts


def test_the_last_contact_is_the_one_that_counts() -> None:
    contacts = Contacts()
    contacts.heard("a", 1.0)
    contacts.heard("a", 3.0)
    assert (contacts.last("a"), contacts.last("b")) == (3.0, NEVER)


def test_beyond_the_bound_the_member_silent_for_longest_is_forgotten() -> None:
    contacts = Contacts(contacts_max=2)
    for at, member in enumerate("abac"):
        contacts.heard(member, float(at))
    assert (len(contacts), contacts.last("a"), contacts.last("b"), contacts.last("c")) == (2, 2.0, NEVER, 3.0)
