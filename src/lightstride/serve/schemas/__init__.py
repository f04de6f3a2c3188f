"""Requests as pydantic models: unknown fields are refused by name, types are not guessed.

base    what all requests that let a model write share      chat, completions, responses
tools   functions a model may call      formats   what an answer must look like      tokens
"""
