"""The page: the answer in one sentence, tables, pictures, and where every number comes from."""

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from lightstride.report.charts import Picture
from lightstride.report.facts import Comparison, Facts, ModelFacts, common_items, shorten
from lightstride.report.measured import Compared
from lightstride.results import MIB, Result

TEMPLATE = Path(__file__).with_name("template.html")
TITLE = "Lightstride report"
MEAN = "mean"
NONE = "–"


def render(facts: Facts, pictures: Sequence[Picture]) -> str:
    """The whole page as one HTML document, pictures inside."""
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        title=TITLE,
        answer=html.escape(answer(facts)),
        tables="\n".join([model_table(facts), *map(retained_table, facts.retained)]),
        figures="\n".join(map(figure, pictures)),
        origins="\n".join(origin(path, result) for path, result in facts.results.items()),
    )


def answer(facts: Facts) -> str:
    """The answer in one sentence: the model that lost least, against the one it came from."""
    for model, against, numbers in facts.retained:
        mean = numbers.get(MEAN) or next(iter(numbers.values()))
        return compared(facts, model, against, mean, len(numbers))
    text = facts.text()
    known = [m for m in facts.models if text is not None and text in m.perplexities]
    if text is not None and len(known) > 1:
        dense, small = known[0], known[-1]
        return (
            f"{small.name} has {less(small, dense)} {dense.name}; its perplexity is "
            f"{small.perplexities[text]:.2f} against {dense.perplexities[text]:.2f} ({text})."
        )
    if text is not None and known:
        return f"{known[0].name} has a perplexity of {known[0].perplexities[text]:.2f} ({text})."
    if facts.models:
        names = ", ".join(model.name for model in facts.models)
        return f"Measured: {names}."
    kinds = ", ".join(sorted({result["kind"] for result in facts.results.values()}))
    return f"{len(facts.results)} results of lightstride {kinds}."


def compared(facts: Facts, model: str, against: str, mean: Compared, count: int) -> str:
    """The share that one model retains of another, with size and speed if they are known."""
    by_source = {one.source: one for one in facts.models}
    small, dense = by_source[model], by_source[against]
    tasks = f"the mean of {count - 1} tasks" if count > 2 else "one task"
    text = facts.text(small, dense)
    parts = [
        f"{small.name} retains {number(mean.ratio, 0.01, 1)}% of {dense.name}'s accuracy "
        f"({100 * mean.score:.1f}% against {100 * mean.against:.1f}%, {tasks})"
    ]
    if text in small.perplexities and text in dense.perplexities:
        parts.append(
            f"has a perplexity of {small.perplexities[text]:.2f} against "
            f"{dense.perplexities[text]:.2f}"
        )
    if (faster := speedup(small, dense)) is not None:
        parts.append(f"decodes {faster:.2f} times as fast")
    said = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"With {less(small, dense)} {dense.name}, {said}."


def less(small: ModelFacts, dense: ModelFacts) -> str:
    """How many parameters fewer, as the beginning of `... than the dense model`."""
    if small.parameters is None or dense.parameters is None:
        return "another size than"
    share = 1 - small.parameters / dense.parameters
    return f"{100 * share:.1f}% fewer parameters than" if share > 0 else "no fewer parameters than"


def speedup(small: ModelFacts, dense: ModelFacts) -> float | None:
    """Ratio of decoding speeds under the first load that both were measured under."""
    for mine in small.loads:
        for other in dense.loads:
            if (mine.batch, mine.prompt) == (other.batch, other.prompt):
                return mine.decode_tokens_per_second.median / other.decode_tokens_per_second.median
    return None


def model_table(facts: Facts) -> str:
    """One line a model: size, quality, speed; then its tasks."""
    if not facts.models:
        return ""
    texts = facts.texts
    perplexities = {
        text: "perplexity" if len(texts) == 1 else f"perplexity {place}"
        for place, text in enumerate(texts, start=1)
    }
    header = ["model", "parameters, M", "MiB"]
    header += ["sparsity"] if any(m.sparsity is not None for m in facts.models) else []
    header += perplexities.values()
    header += ["accuracy %"] if any(m.tasks for m in facts.models) else []
    header += ["tokens/s", "first token ms"] if any(m.loads for m in facts.models) else []
    rows = [
        [row[name] for name in header] for row in (cells(m, perplexities) for m in facts.models)
    ]
    notes = [f"{name}: {text}" for text, name in perplexities.items()]
    fewest = common_items(facts.models)
    counts = {len(m.tasks): sum(fewest[t] for t in m.tasks) for m in facts.models if m.tasks}
    notes += [f"accuracy: mean of {n} tasks, {items:,} items" for n, items in counts.items()]
    if any(m.loads for m in facts.models):
        load = next(m.loads[0] for m in facts.models if m.loads)
        notes.append(f"speed: batch {load.batch}, prompts of {load.prompt} tokens")
    tables = [html_table("; ".join(notes), header, rows)]
    if any(m.tasks for m in facts.models):
        tables.append(task_table(facts.models))
    return "\n".join(tables)


def cells(model: ModelFacts, perplexities: Mapping[str, str]) -> dict[str, str]:
    """One model's row of the table, by column."""
    load = model.loads[0] if model.loads else None
    speed = None if load is None else load.decode_tokens_per_second.median
    first = None if load is None else 1000 * load.first_token_seconds.median
    return {
        "model": model.name,
        "parameters, M": number(model.parameters, 1e6, 1),
        "MiB": number(model.weight_bytes, MIB, 0),
        "sparsity": NONE if model.sparsity is None else f"{100 * model.sparsity:.1f}%",
        "accuracy %": number(model.accuracy, 0.01, 1),
        "tokens/s": number(speed, 1, 1),
        "first token ms": number(first, 1, 1),
        **{name: number(model.perplexities.get(text), 1, 2) for text, name in perplexities.items()},
    }


def task_table(models: Sequence[ModelFacts]) -> str:
    """Every task of every model that has any, with standard errors."""
    judged = [model for model in models if model.tasks]
    tasks = list(dict.fromkeys(task for model in judged for task in model.tasks))
    rows = []
    for model in judged:
        scores = [model.tasks.get(task) for task in tasks]
        rows.append([model.name, *map(score_cell, scores), number(model.accuracy, 0.01, 1)])
    caption = "score in % ± standard error"
    if any(model.leveled for model in judged):
        caption += "; the mean on the first items of each task, as many as all models saw"
    return html_table(caption, ["model", *tasks, "mean"], rows)


def score_cell(value: tuple[float, float | None] | None) -> str:
    """A score in percent with its standard error."""
    if value is None:
        return NONE
    error = "" if value[1] is None else f" ± {100 * value[1]:.1f}"
    return f"{100 * value[0]:.1f}{error}"


def retained_table(comparison: tuple[str, str, Comparison]) -> str:
    """Two models task by task; the mean stands last, under its parts."""
    model, against, numbers = comparison
    rows = []
    for task, one in numbers.items():
        name = f"mean of {len(numbers) - 1}" if task == MEAN else task
        values = [number(value, 0.01, 1) for value in (one.score, one.against)]
        change = f"{number(one.difference, 0.01, 1, sign=True)} ± "
        change += number(one.difference_stderr, 0.01, 1)
        ratio = f"{number(one.ratio, 0.01, 1)} ± {number(one.ratio_stderr, 0.01, 1)}"
        rows.append([name, *values, change, ratio, number(one.above_chance, 0.01, 1)])
    header = ["task", "score", "against", "difference", "retained %", "above chance %"]
    caption = f"{model} against {against}, item by item; ± is one standard error"
    return html_table(caption, header, rows, last_is_mean=MEAN in numbers)


def number(value: object, unit: float, digits: int, *, sign: bool = False) -> str:
    """A number in a unit, or a dash where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    return f"{value / unit:{'+' if sign else ''},.{digits}f}"


def html_table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    last_is_mean: bool = False,
) -> str:
    """A table that scrolls inside its own frame where the screen is narrow."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = []
    for place, (first, *others) in enumerate(rows, start=1):
        kind = ' class="mean"' if last_is_mean and place == len(rows) else ""
        data = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        body.append(f'<tr{kind}><th scope="row">{html.escape(first)}</th>{data}</tr>')
    label = html.escape(caption, quote=True)
    return (
        f'<p class="note">{html.escape(caption)}</p>'
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0">'
        f'<table aria-label="{label}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(picture: Picture) -> str:
    """A picture inside the page, under its own heading."""
    data = base64.b64encode(picture.png).decode()
    alt = html.escape(picture.alt, quote=True)
    return (
        f"<h2>{html.escape(picture.title)}</h2>\n<figure>"
        f'<img src="data:image/png;base64,{data}" alt="{alt}" '
        f'width="{picture.width}" height="{picture.height}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def origin(path: str, result: Result) -> str:
    """Command, commit, machine, seed and data of one result."""
    hardware = result["hardware"]
    machine = (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_bytes'] / 2**30:.0f} GiB"
    )
    facts = {
        "date": result["created"],
        "commit": result["commit"] or "not a checkout",
        "machine": ", ".join([machine, *hardware["gpus"]]),
        "versions": ", ".join(f"{name} {text}" for name, text in result["versions"].items()),
        "seed": "none" if result["seed"] is None else str(result["seed"]),
        "data": ", ".join(f"{name} ({text[:12]})" for name, text in result["data"].items()) or NONE,
    }
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    command = html.escape(shlex.join(result["command"]))
    return (
        f"<details><summary>{html.escape(shorten(path))} ({html.escape(result['kind'])})</summary>"
        f"<pre><code>{command}</code></pre><dl>{rows}</dl></details>"
    )
