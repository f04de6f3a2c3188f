"""Write prompts for drafts to learn from: chat, code, conversations of two turns, maths.

    python benchmarks/draft_prompts.py prompts.jsonl --chat dolly.jsonl.gz alpaca.jsonl.gz \
        --maths gsm8k_train.jsonl.gz
    lightstride smash smollm2-135m -o drafts --prompts prompts.jsonl --start-from smollm2-135m-smash

The built-in drafts learned from such a file last.  Questions are asked as they are; answers are the
model's own, but those in the files are the first ones of conversations of two turns.  Code comes
from Python's own library: heads of functions with what they promise, and short orders.
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lightstride.data.conversations import read_conversations
from lightstride.errors import LightstrideError
from lightstride.files import whole_file

WRAPPED = ("### Instruction:\n", "\n\n### Response:")
"""What stands around a question in files that are wrapped for models without a chat template."""
LONGEST = 1500
"""Characters of a question."""
FOLLOWING = (
    "Can you explain that in simpler terms?",
    "Give me an example.",
    "Summarize that in one sentence.",
    "Why is that?",
    "Rewrite your answer as a list of bullet points.",
    "Now write it as a short poem.",
    "Can you say more about the last point?",
    "Are you sure? Check your answer.",
    "What should I do next?",
    "Make it shorter.",
    "What are the advantages and disadvantages?",
    "Turn this into an email to a colleague.",
    "Write a short story about it.",
)
ASKING = (
    "Complete this Python function:\n\n```python\n{}\n```",
    "Write the body of this function.\n\n```python\n{}\n```",
    "Implement this in Python and explain how it works:\n\n```python\n{}\n```",
    "{}",
)
VERBS = ("reverses", "sorts", "merges", "validates", "parses", "removes duplicates from", "rotates")
THINGS = ("a list of numbers", "a string", "a dictionary", "a CSV file", "a tree", "a matrix")
LANGUAGES = ("Python", "Python", "JavaScript", "SQL", "Java", "C", "Bash")

Row = dict[str, object]


def row(domain: str, *turns: str) -> Row:
    """A prompt; the user has the first turn, and every second one after it."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"messages": messages, "domain": domain}


def questions(files: list[str]) -> Iterator[tuple[str, str]]:
    """Questions of one turn with their answers."""
    for file in files:
        for each in read_conversations(file):
            question = each.prompt.messages[-1].content
            before, after = WRAPPED
            if before in question:
                question = question.split(before, 1)[1].split(after, 1)[0]
            if len(question) <= LONGEST:
                yield question.strip(), each.answer.strip()


def function_heads(least: int = 40, most: int = 900) -> list[str]:
    """Heads and docstrings of the functions of Python's library."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"test", "tests", "site-packages", "lib2to3", "idlelib"} & set(path.parts):
            continue
        try:
            text = path.read_text("utf-8")
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines = text.split("\n")  # as ast counts them: not at form feeds
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and len(ast.get_docstring(node) or "") >= least:
                head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])
                if len(head) <= most and not node.decorator_list:
                    found[head] = None
    return list(found)


def all_rows(flags: argparse.Namespace) -> list[Row]:
    """All prompts, in an order drawn by the seed."""
    draw = random.Random(flags.seed)
    chat = list(questions(flags.chat))
    rows = [row("chat", question) for question, _ in chat]
    answered = [each for each in chat if 20 < len(each[1]) < 700]
    for question, answer in draw.sample(answered, min(flags.turns, len(answered))):
        rows.append(row("chat", question, answer, draw.choice(FOLLOWING)))
    heads = function_heads()
    for head in draw.sample(heads, min(flags.code, len(heads))):
        rows.append(row("code", draw.choice(ASKING).format(head)))
    for verb in VERBS:
        for thing in THINGS:
            order = f"Write a {draw.choice(LANGUAGES)} function that {verb} {thing}."
            rows.append(row("code", order))
    maths = list(questions(flags.maths))
    rows += [row("maths", question) for question, _ in draw.sample(maths, min(700, len(maths)))]
    draw.shuffle(rows)
    return rows


def main() -> int:
    """Write the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--chat", nargs="+", required=True, help="files of questions and answers")
    parser.add_argument("--maths", nargs="*", default=[])
    parser.add_argument("--turns", type=int, default=700, help="conversations of two turns")
    parser.add_argument("--code", type=int, default=900, help="functions of Python's library")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    try:
        rows = all_rows(flags)
    except LightstrideError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    with whole_file(flags.file) as partial:
        partial.write_text("".join(f"{json.dumps(each)}\n" for each in rows), "utf-8")
    print(json.dumps({"prompts": len(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
