"""What a cache holds: everything while texts are short (`whole`), then group by group (`groups`).

`rules` says of all heads at once which entries count.
"""
