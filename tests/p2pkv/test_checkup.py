"""What `p2pkv doctor` says of what was found on a host."""

from dataclasses import replace

import pytest

from p2pkv.checkup import Condition, checks

WELL = Condition(
    arena_bytes=2**30,
    arena_huge_bytes=0,
    shm_free_bytes=2**30,
    huge_pages_free=0,
    transparent_huge_pages="within_size",
    memlock_bytes=None,
    descriptors_max=65_536,
    rdma_devices=(),
    gpu=False,
    nixl_installed=True,
    nixl_wanted=False,
    fabrics=(),
    ucx="",
    may_copy=True,
    loopback=False,
    keyring=True,
    certificate_left_s=80 * 86_400.0,
    skews_s=(("b", 0.1),),
)


def test_a_host_that_is_well_gets_no_hint() -> None:
    assert [(check.state, check.hint) for check in checks(WELL)] == [("ok", "")] * 12


@pytest.mark.parametrize(
    ("change", "name", "state", "text"),
    [
        ({"transparent_huge_pages": "never", "arena_huge_bytes": 2**21}, "huge pages", "ok", "2097152 of 1073741824"),
        ({"transparent_huge_pages": "never"}, "huge pages", "warn", "never"),
        ({"transparent_huge_pages": ""}, "huge pages", "warn", "none"),
        ({"memlock_bytes": 65_536}, "locked memory", "ok", "only RDMA needs more"),
        ({"memlock_bytes": 65_536, "rdma_devices": ("mlx5_0",)}, "locked memory", "fail", "65536"),
        ({"shm_free_bytes": None}, "/dev/shm", "warn", "not there"),
        ({"shm_free_bytes": 1}, "/dev/shm", "warn", "1 bytes free"),
        ({"descriptors_max": 1024}, "open files", "warn", "1024"),
        ({"nixl_wanted": True}, "fabric", "fail", "not there"),
        (
            {"nixl_wanted": True, "fabrics": ("cma", "tcp"), "ucx": "UCX_TLS=cma,tcp"},
            "fabric",
            "ok",
            "cma, tcp (UCX_TLS",
        ),
        ({"fabrics": ("rdma",), "nixl_wanted": True}, "fabric", "ok", "trusted fabric"),
        ({"rdma_devices": ("mlx5_0",)}, "fabric", "warn", "no use is made of it"),
        ({"gpu": True}, "fabric", "warn", "a GPU"),
        ({"may_copy": False}, "copying between processes", "ok", "not allowed"),
        ({"may_copy": False, "nixl_wanted": True}, "copying between processes", "warn", "not allowed"),
        ({"keyring": False}, "keyring", "fail", "read and changed"),
        ({"keyring": False, "loopback": True}, "keyring", "ok", "loopback"),
        ({"certificate_left_s": None}, "certificate", "ok", "none"),
        ({"object_installed": True}, "object store", "ok", "none wanted"),
        ({}, "object store", "ok", "library is not installed"),
        ({"object_url": "s3://b/x"}, "object store", "ok", "s3://b/x answers"),
        ({"object_url": "s3://b/x", "object_problem": "refused"}, "object store", "fail", "these credentials"),
        ({"object_url": "s3://b/x", "object_problem": "no_bucket"}, "object store", "fail", "no such bucket"),
        ({"object_url": "s3://b/x", "object_problem": "failed"}, "object store", "fail", "cannot be reached"),
        ({"certificate_left_s": -1.0}, "certificate", "fail", "expired"),
        ({"certificate_left_s": 86_400.0}, "certificate", "warn", "1.0 days"),
        ({"skews_s": ()}, "clocks", "ok", "not known"),
        ({"skews_s": (("b", 0.1), ("c", -9.0))}, "clocks", "warn", "-9.0 s (c)"),
    ],
)
def test_what_is_not_well_is_said_with_a_hint(change: dict[str, object], name: str, state: str, text: str) -> None:
    (check,) = [one for one in checks(replace(WELL, **change)) if one.name == name]
    assert check.state == state
    assert text in check.text
    assert bool(check.hint) == (state != "ok")
