"""The varint and capsule codec of `relay.framing` twice more, in pure Python and in Cython, as measuring sticks.

Nothing of the relay imports these. Their functions and results have the names and shapes of `relay.framing`.
"""
