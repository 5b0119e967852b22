"""Measurements of real processes, beside others' where there are any; what a virtual clock can show is in `p2pkv.sim`."""
