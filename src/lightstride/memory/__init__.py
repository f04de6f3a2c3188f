"""What a model keeps of old tokens, head by head, and the cache that keeps it.

`plan` is the value, `attention` and `cache` store and read by head group, `masked` is the slow
twin, `documents`, `effects` and `fitness` are what the search of plans is made of.
"""
