"""What tests are made of: contracts for tiers and transports, fakes to run against, and strategies for messages.

Write a backend of your own, subclass its contract, and pytest does the rest:

    class TestMyTier(TierContract):
        @pytest.fixture
        def tier(self) -> Iterator[Tier]:
            yield MyTier(capacity_bytes=CAPACITY_BYTES)

`contracts` needs pytest and `strategies` needs hypothesis; p2pkv itself depends on neither, so import the modules.
"""
