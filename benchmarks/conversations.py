"""Write conversations of a chat model with itself: the text that the demo calibrates on.

    python benchmarks/conversations.py FILE [--prompts QUESTIONS] [--count N]

makes FILE, one conversation a line in the model's own chat template.  Questions are the model's
own (`self`, sampled) unless a file gives them; answers are decoded as SmolLM2-Instruct's makers
advise (temperature 0.2, top p 0.9) with a repetition penalty, and only those that end by
themselves and do not loop stay.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from lightstride.data.prompts import Prompt, read_prompts
from lightstride.files import whole_file
from lightstride.generate import PlainDecoder, Settings, generate
from lightstride.generate.chat_template import chat_tokens
from lightstride.models.opening.load import load_model, load_tokenizer
from lightstride.smash.data.self_prompts import self_prompts

MODEL = "smollm2-135m"
LONGEST = 256
BATCH = 48
RUN = 8
"""Words of a run; an answer in which one comes twice loops."""


def main() -> int:
    """Write the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", help="a file of questions instead of the model's own")
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--penalty", type=float, default=1.1, help="of repetition")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    model, tokenizer = load_model(MODEL, dtype=torch.bfloat16), load_tokenizer(MODEL)
    if flags.prompts:
        prompts = list(read_prompts(flags.prompts))
    else:
        prompts = self_prompts(model, tokenizer, flags.count, seed=flags.seed, progress=True)
    decoder = PlainDecoder(model, tokenizer)
    top_p = 0.9 if flags.temperature else 1.0
    settings = Settings(
        max_new_tokens=LONGEST,
        temperature=flags.temperature,
        top_p=top_p,
        repetition_penalty=flags.penalty,
        seed=flags.seed,
    )
    documents, loops, unfinished = [], 0, 0
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        asked = [chat_tokens(tokenizer, turns_of(prompt)) for prompt in batch]
        for prompt, answer in zip(batch, generate(decoder, asked, settings), strict=True):
            loops += loops_in(answer.text)
            unfinished += answer.finish_reason == "length"
            if answer.finish_reason == "length" or loops_in(answer.text):
                continue
            turns = [*turns_of(prompt), {"role": "assistant", "content": answer.text}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            documents.append(json.dumps({"text": text}, ensure_ascii=False))
        print(len(documents), "of", start + len(batch), loops, unfinished, file=sys.stderr)
    with whole_file(flags.file) as partial:
        partial.write_text("\n".join(documents) + "\n", "utf-8")
    counts = {"prompts": len(prompts), "loop": loops, "cut": unfinished, "kept": len(documents)}
    print(json.dumps(counts))
    return 0


def turns_of(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat templates take it."""
    return [message.as_dict() for message in prompt.messages]


def loops_in(text: str) -> bool:
    """Whether a run of words comes twice."""
    words = text.split()
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return len(set(runs)) < len(runs)


if __name__ == "__main__":
    sys.exit(main())
