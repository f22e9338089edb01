"""What the prompt filter catches, what it blocks by mistake, and how long it takes.

    python benchmarks/prompt_filter/evaluate.py [-o FILE]

Everything is made here from fixed seeds: the stand-ins of `policy.yaml`, each in every disguise of
`disguises.py` and within an innocent sentence; ten thousand captions of the demo's grammar; `must_pass.txt`.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from disguises import DISGUISES

from sd35.demo.captions import caption
from sd35.demo.vocabulary import load_vocabulary
from sd35.serving.policy import read_policy
from sd35.serving.safety import PromptPolicy

HERE = Path(__file__).parent
SEED, CAPTIONS, ROUNDS = 35, 10_000, 3


def main() -> int:
    """Print the figures as JSON; exit code 1 if one of the bars is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    report = evaluate()
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    return 0 if all(report["bars_met"].values()) else 1


def evaluate() -> dict[str, Any]:
    """All figures."""
    policy = PromptPolicy.read(HERE / "policy.yaml")
    terms = next(terms.terms for terms in read_policy(HERE / "policy.yaml").lists if terms.match == "word")
    recall = {name: share_caught(policy, terms, name) for name in DISGUISES}
    lines = must_pass()
    made = captions()
    blocked_lines = [line for line in lines if not policy.judge(line).allowed]
    blocked = sum(not policy.judge(text).allowed for text in made)
    times = milliseconds(policy, made[:2000] + lines + long_prompts(made))
    caught = sum(recall.values()) / len(recall)
    report = {
        "caught": round(caught, 4),
        "caught_by_disguise": {name: round(share, 3) for name, share in sorted(recall.items())},
        "disguised_prompts": len(terms) * len(DISGUISES) * ROUNDS,
        "captions": CAPTIONS,
        "captions_blocked": blocked,
        "must_pass": len(lines),
        "must_pass_blocked": blocked_lines,
        "processor_milliseconds": {
            "p50": percentile(times, 0.5),
            "p99": percentile(times, 0.99),
            "max": max(times),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "command": "python benchmarks/prompt_filter/evaluate.py",
    }
    wrong = (blocked + len(blocked_lines)) / (CAPTIONS + len(lines))
    report["bars_met"] = {
        "caught >= 95 %": caught >= 0.95,
        "blocked <= 0.5 %": wrong <= 0.005,
        "p99 <= 1 ms": report["processor_milliseconds"]["p99"] <= 1.0,
    }
    return report


def share_caught(policy: PromptPolicy, terms: tuple[str, ...], name: str) -> float:
    """How many of all terms are seen through one disguise, within a sentence."""
    random = Random(f"{SEED} {name}")
    texts = [
        f"a photo of {DISGUISES[name](term, random)} on the wall" for term in terms for _ in range(ROUNDS)
    ]
    return sum(not policy.judge(text).allowed for text in texts) / len(texts)


def captions() -> list[str]:
    """Captions as the demo model was trained on."""
    words, random = load_vocabulary(), Random(SEED)
    return [
        caption(
            random.choice(words.subjects), random.choice(words.styles), random.choice(words.colours), random
        )
        for _ in range(CAPTIONS)
    ]


def must_pass() -> list[str]:
    """The written captions."""
    lines = (HERE / "must_pass.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def long_prompts(made: list[str]) -> list[str]:
    """Two hundred prompts of about 600 characters, as long as a T5 prompt of 150 words."""
    random = Random(SEED)
    return [", ".join(random.sample(made, 14))[:600] for _ in range(200)]


def milliseconds(policy: PromptPolicy, texts: list[str]) -> list[float]:
    """Processor time of each judgement in order, so that other work on the machine is not counted."""
    times = []
    for text in texts:
        begun = time.thread_time()
        policy.judge(text)
        times.append(round((time.thread_time() - begun) * 1e3, 4))
    return sorted(times)


def percentile(ordered: list[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    sys.exit(main())
