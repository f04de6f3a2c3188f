"""One job for vLLM, read from stdin as JSON: greedy answers, with drafts or without; on a CPU.

Run by `engines_smash.py` with the interpreter of vLLM's own environment (`vllm_check.py` says how
it is made), where this package is not.  A job has `model`, `prompts` (tokens), `new_tokens`,
`dtype`, and `speculative`, vLLM's own settings of drafting, or null.  The last line of stdout is
one JSON document: the answers, the times and the counts of vLLM's own metrics.
"""

import json
import os
import sys
import time
from typing import Any

COUNTERS = {
    "vllm:spec_decode_num_drafts": "forwards",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
}
WARM_TOKENS = 8


def counters(engine: Any) -> dict[str, int]:
    """What vLLM has counted so far."""
    found = dict.fromkeys(COUNTERS.values(), 0)
    for metric in engine.get_metrics():
        if metric.name in COUNTERS:
            found[COUNTERS[metric.name]] += int(metric.value)
    return found


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Answers one by one, as a single user would have them."""
    import vllm

    engine = vllm.LLM(
        job["model"],
        dtype=job["dtype"],
        trust_remote_code=True,
        max_model_len=1024,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        speculative_config=job["speculative"],
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    warm = vllm.SamplingParams(temperature=0, max_tokens=WARM_TOKENS)
    engine.generate(prompts[:1], warm, use_tqdm=False)
    before = counters(engine)
    greedy = vllm.SamplingParams(temperature=0, max_tokens=job["new_tokens"])
    wall, processor = time.perf_counter(), time.process_time()
    outputs = [engine.generate([prompt], greedy, use_tqdm=False)[0] for prompt in prompts]
    seconds = {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
    }
    after = counters(engine)
    return {
        "vllm": vllm.__version__,
        "answers": [list(output.outputs[0].token_ids) for output in outputs],
        **seconds,
        **{name: after[name] - before[name] for name in after},
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))), flush=True)
    os._exit(0)
