"""GGUF files that llama.cpp reads.

write    the file    architecture   which of llama.cpp's fits, and its keys
tensors, rope  names and layouts   quantize    Q8_0, Q4 and the like
vocabulary    tokenizers    weights    tensors of a checkpoint, one at a time
head    an EAGLE-3 head as a file of its own
"""
