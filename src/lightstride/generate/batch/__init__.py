"""Rows inside a model: what one forward over some of them computes.

forward  the forward, and what stays of it     memory_batch  the same by a memory plan
cache    keys and values by row                masks         who sees whom, and where it stands
folded   attention, each KV head read once     segments      rows whose attention is one rectangle
packed   weights as a CPU's kernel reads them    give_way      ended before its last layer
"""
