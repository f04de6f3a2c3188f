"""Drafters: what proposes further tokens of a row; checking does not know where a guess came from.

guesses       Guess, Budget, the Drafter protocol, and trees of guesses
micro_tree    the micro decoder, branching        micro_chain    the micro decoder, one chain
lookups       what followed the latest tokens before
shared        what followed them in earlier answers of the process
"""
