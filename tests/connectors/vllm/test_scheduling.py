"""What is brought, claimed, loaded and saved, decided without vLLM, threads or a clock."""

import pytest

from p2pkv.blocks import Namespace, OpaqueLayout
from p2pkv.connectors.vllm.chains import Chains, Identity, Item, names_content
from p2pkv.connectors.vllm.scheduling import BAD_S, FRESH_S, Begin, Brought, Release, Scheduled, Scheduling, opted

BLOCK = 4
TIMEOUT_S = 5.0


def space(rank=0, tp=1):
    layout = OpaqueLayout(
        engine="e",
        version="1",
        isa="x",
        dtype="bf16",
        block_tokens=BLOCK,
        rank=rank,
        tp=tp,
        block_bytes=64,
        segment_bytes=32,
    )
    return Namespace(weights_id="w", layout=layout)


class Engine:
    """Drives the core as vLLM does; one table of pages, page of block i is 100 + i."""

    def __init__(self, ranks=1, asking_max=8):
        self.spaces = [space(rank, ranks) for rank in range(ranks)]
        self.core = Scheduling(
            groups=(0,) * ranks, block_tokens=BLOCK, fetch_timeout_s=TIMEOUT_S, asking_max=asking_max
        )
        self.now = 100.0

    def arrive(self, request_id="r", tokens=17, **wishes):
        chains = Chains(self.spaces, Identity())
        chains.extend(list(range(tokens)))
        return self.core.arrived(request_id, chains, self.now, **wishes)

    def bring(self, effects, blocks, **more):
        (begin,) = effects
        return self.core.brought(Brought(begin.ticket, blocks, **more), self.now)

    def match(self, request_id="r", tokens=17, computed=0, preemptions=0):
        return self.core.matched(request_id, tokens, computed, preemptions, self.now)

    def allocate(self, external, request_id="r", pages=10):
        return self.core.allocated(request_id, external, (range(100, 100 + pages),))

    def step(self, computed, new, known=None, request_id="r", pages=10):
        known = computed + new if known is None else known
        return self.core.planned([Scheduled(request_id, computed, new, known, (range(100, 100 + pages),))])

    def load(self, blocks=4):
        """Take the request to the point where its load is under way."""
        self.bring(self.arrive(), blocks)
        self.match()
        self.allocate(blocks * BLOCK)
        ((load,), _) = self.core.planned([])
        return load


def test_a_prefix_that_is_here_is_claimed_loaded_and_let_go():
    engine = Engine()
    (begin,) = effects = engine.arrive(tokens=17)
    assert [len(chain) for chain in begin.chains] == [4]
    assert begin.deadline == engine.now + TIMEOUT_S
    assert engine.match() == (None, []), "it is on its way"
    assert engine.bring(effects, 3) == []
    assert engine.match() == (12, [])
    assert engine.match() == (12, []), "vLLM asks again where it had no room"
    assert engine.allocate(12) == []
    ((load,), saves) = engine.step(computed=12, new=5, request_id="another")
    assert (load.request_id, load.first, load.parts[0].pages) == ("r", 0, (100, 101, 102))
    assert load.parts[0].chain == begin.chains[0][:3]
    assert saves == []
    assert engine.step(0, 0) == ([], []), "a load is given once"
    assert engine.core.loaded(["r"], set(), set(), engine.now) == [Release(begin.ticket)]
    assert engine.core.finished("r") == []


def test_what_the_engine_has_itself_is_not_loaded():
    engine = Engine()
    engine.bring(engine.arrive(), 4)
    assert engine.match(computed=8)[0] == 8
    engine.allocate(8)
    ((load,), _) = engine.core.planned([])
    assert (load.first, load.parts[0].pages, len(load.parts[0].chain)) == (2, (102, 103), 4)


def test_less_may_be_loaded_than_was_claimed():
    engine = Engine()
    engine.bring(engine.arrive(), 4)
    engine.match(computed=4)
    engine.allocate(8)
    ((load,), _) = engine.core.planned([])
    assert (load.first, load.parts[0].pages, len(load.parts[0].chain)) == (1, (101, 102), 3)


def test_one_token_is_always_left_to_compute():
    engine = Engine()
    (begin,) = effects = engine.arrive(tokens=16)
    assert len(begin.chains[0]) == 3
    engine.bring(effects, 3)
    assert engine.match(tokens=16) == (12, [])


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_a_prompt_without_a_block_before_its_last_token_asks_for_nothing(tokens):
    engine = Engine()
    assert engine.arrive(tokens=tokens) == []
    assert engine.match(tokens=tokens) == (0, [])


def test_a_very_long_prompt_is_claimed_up_to_what_may_be_asked():
    engine = Engine()
    engine.core.chain_blocks_max = 2
    (begin,) = effects = engine.arrive()
    assert len(begin.chains[0]) == 2
    engine.bring(effects, 2)
    assert engine.match() == (8, [])
    _, (save,) = engine.step(computed=8, new=9)
    assert save.depth == 2


def test_what_takes_too_long_is_computed_and_let_go_when_it_comes():
    engine = Engine()
    effects = engine.arrive()
    engine.now += TIMEOUT_S - 0.1
    assert engine.match() == (None, [])
    engine.now += 0.2
    assert engine.match() == (0, [])
    assert engine.match() == (0, []), "it is not asked for again"
    assert engine.bring(effects, 4) == [Release(effects[0].ticket)]
    assert engine.core.counts["fetches_over_budget"] == 1


def test_a_daemon_that_did_not_answer_costs_the_next_requests_nothing():
    engine = Engine()
    engine.bring(engine.arrive(), 0, answered=False)
    assert engine.match() == (0, [Release(1)])
    assert engine.arrive("s") == []
    assert engine.match("s") == (0, [])
    assert engine.core.counts["fetches_spared"] == 1
    engine.now += 2.1
    effects = engine.arrive("t")
    assert len(effects) == 1, "one request finds out"
    assert engine.arrive("u") == []
    engine.bring(effects, 0)
    assert len(engine.arrive("v")) == 1


def test_a_miss_is_let_go_at_once():
    engine = Engine()
    effects = engine.arrive()
    engine.bring(effects, 0)
    assert engine.match() == (0, [Release(effects[0].ticket)])
    assert engine.core.finished("r") == []


def test_an_abort_lets_go_whatever_the_request_was_doing():
    engine = Engine()
    effects = engine.arrive()
    assert engine.core.finished("r") == []
    assert engine.bring(effects, 4) == [Release(effects[0].ticket)], "it came for nobody"

    effects = engine.arrive()
    engine.bring(effects, 4)
    assert engine.core.finished("r") == [Release(effects[0].ticket)]

    effects = engine.arrive()
    engine.bring(effects, 4)
    engine.match()
    engine.allocate(16)
    assert engine.core.finished("r") == [Release(effects[0].ticket)]
    ((load,), _) = engine.core.planned([])
    assert load.request_id == "r", "vLLM waits for its end before it frees the pages"
    assert engine.core.loaded(["r"], set(), set(), engine.now) == []


def test_no_room_means_that_nothing_is_loaded():
    engine = Engine()
    effects = engine.arrive()
    engine.bring(effects, 4)
    engine.match()
    assert engine.allocate(0) == [Release(effects[0].ticket)]
    assert engine.core.planned([]) == ([], [])


def test_a_load_that_failed_is_not_tried_again_and_its_blocks_are_saved_anew():
    engine = Engine()
    load = engine.load()
    assert engine.core.loaded([], {102}, set(), engine.now) == []
    assert engine.core.loaded(["r"], {103}, set(), engine.now) == [Release(1)]
    assert engine.core.counts["loads_failed"] == 1
    assert engine.match() == (0, []), "or else it would fail for ever"
    _, (save,) = engine.step(computed=0, new=17)
    assert (save.depth, save.parts[0].keys) == (0, load.parts[0].chain)


def test_a_block_that_failed_is_not_claimed_again_for_a_while():
    engine = Engine()
    engine.load()
    engine.core.loaded(["r"], {102, 103}, set(), engine.now)
    engine.bring(engine.arrive("s"), 4)
    assert engine.match("s")[0] == 8, "what is before it is good"
    engine.now += BAD_S
    engine.bring(engine.arrive("t"), 4)
    assert engine.match("t")[0] == 16


def test_a_preempted_request_starts_again_and_may_load_again():
    engine = Engine()
    engine.load()
    engine.core.loaded(["r"], set(), set(), engine.now)
    assert engine.match()[0] == 0
    tokens, effects = engine.match(preemptions=1)
    assert tokens is None
    engine.bring(effects, 4)
    assert engine.match(preemptions=1) == (16, [])


def test_a_lease_that_may_have_run_out_is_asked_for_again():
    engine = Engine()
    engine.bring(engine.arrive(), 4)
    engine.now += FRESH_S + 1
    tokens, effects = engine.match()
    assert tokens is None
    assert effects[0] == Release(1)
    assert isinstance(effects[1], Begin)


def test_requests_beyond_the_bound_are_computed():
    engine = Engine(asking_max=2)
    assert len(engine.arrive("a")) == len(engine.arrive("b")) == 1
    assert engine.arrive("c") == []
    assert engine.match("c") == (0, [])
    assert engine.core.counts["fetches_crowded_out"] == 1


def test_blocks_are_saved_as_steps_complete_them_and_once():
    engine = Engine()
    engine.bring(engine.arrive(tokens=17), 1)
    _, (save,) = engine.step(computed=0, new=10)
    assert (save.depth, save.parts[0].pages) == (1, (101,)), "block 0 is in the node, block 2 is not complete"
    assert engine.step(computed=10, new=1)[1] == []
    _, (save,) = engine.step(computed=11, new=6)
    assert (save.depth, save.parts[0].pages) == (2, (102, 103))
    assert save.parts[0].keys == tuple(engine.core.chains("r").keys(0)[2:4])


def test_a_block_with_tokens_that_are_not_certain_waits():
    engine = Engine()
    engine.arrive(may_load=False)
    assert engine.step(computed=0, new=16, known=11)[1][0].parts[0].pages == (100, 101)
    assert engine.step(computed=16, new=1, known=17)[1][0].parts[0].pages == (102, 103)


def test_generated_tokens_get_keys_that_go_on_with_the_prompts():
    engine = Engine()
    engine.arrive(tokens=6, may_load=False)
    chains = engine.core.chains("r")
    chains.extend(list(range(9)))
    whole = Chains(engine.spaces, Identity())
    whole.extend(list(range(9)))
    assert list(chains.keys(0)) == list(whole.keys(0))
    assert len(engine.step(computed=0, new=9)[1][0].parts[0].keys) == 2


def test_a_request_that_wants_neither_is_left_alone():
    engine = Engine()
    assert engine.arrive(may_load=False, may_save=False) == []
    assert engine.match() == (0, [])
    assert engine.step(0, 17) == ([], [])


def test_ranks_have_keys_of_their_own_and_one_prefix():
    engine = Engine(ranks=2)
    (begin,) = effects = engine.arrive()
    one, other = begin.chains
    assert not set(one) & set(other)
    engine.bring(effects, 2)
    engine.match()
    engine.allocate(8)
    ((load,), _) = engine.core.planned([])
    assert [part.pages for part in load.parts] == [(100, 101), (100, 101)]
    assert [part.chain for part in load.parts] == [one[:2], other[:2]]


def test_hits_are_told_apart_by_where_they_came_from():
    engine = Engine()
    engine.bring(engine.arrive(), 4, remote_blocks=3)
    engine.match()
    assert engine.core.sources("r", 16) == (12, 4)
    assert engine.core.sources("unknown", 16) == (0, 16)


@pytest.mark.parametrize(
    ("params", "wishes"),
    [
        (None, (True, True)),
        ({}, (True, True)),
        ({"do_remote_prefill": True}, (True, True)),
        ({"p2pkv": True}, (True, True)),
        ({"p2pkv": False}, (False, False)),
        ({"p2pkv": "load"}, (True, False)),
        ({"p2pkv": "save"}, (False, True)),
        ({"p2pkv": "sav"}, (False, False)),
        ({"p2pkv": {"load": True}}, (False, False)),
    ],
)
def test_a_request_may_opt_out(params, wishes):
    assert opted(params) == wishes


def keys(identity, tokens=12):
    chains = Chains([space()], identity)
    chains.extend(list(range(tokens)))
    return list(chains.keys(0))


def test_salts_and_adapters_separate_whole_prompts():
    plain = keys(Identity())
    for identity in (Identity(cache_salt="s"), Identity(lora="a@1"), Identity(lora="a@2")):
        assert not set(plain) & set(keys(identity))
    assert keys(Identity(lora="a@1"))[0] != keys(Identity(lora="a@2"))[0]


def test_an_item_separates_the_block_it_begins_in_and_all_behind():
    image, other = Item("a" * 64, offset=5, length=4), Item("b" * 64, offset=5, length=4)
    plain, with_image, with_other = keys(Identity()), keys(Identity(items=(image,))), keys(Identity(items=(other,)))
    assert plain[0] == with_image[0] == with_other[0]
    assert len({plain[1], with_image[1], with_other[1]}) == 3
    assert len({plain[2], with_image[2], with_other[2]}) == 3
    moved = keys(Identity(items=(Item("a" * 64, offset=6, length=4),)))
    assert moved[1] != with_image[1], "placeholders look the same wherever the item stands"


@pytest.mark.parametrize(
    ("identifier", "answer"),
    [("ab" * 32, True), ("adapter:" + "ab" * 32, True), ("my-cat", False), ("req-1-image-0", False), ("", False)],
)
def test_only_digests_of_content_name_an_item(identifier, answer):
    assert names_content(identifier) is answer
