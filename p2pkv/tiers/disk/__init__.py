"""Blocks on a local disk: own slab files, every slot of which says what it is. Nothing read back is believed unchecked."""
