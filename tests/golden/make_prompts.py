"""Writes nano/prompts.json: the texts that both engines read, cut from the prose that the nano model wrote (models/nano/prose.json).

    python tests/golden/make_prompts.py

`positions` are those whose full logits the golden files hold: the logits after the token with that index.
"""

import json
import random

from tokenizers import Tokenizer

from golden import HERE, ROOT, write

NANO = ROOT / "models/nano"
tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
prose, words = (json.loads((NANO / name).read_text()) for name in ("prose.json", "facts.json"))
ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def opening(document, tokens):
    """The first sentences of a document that make `tokens` tokens or more."""
    count = next(n for n in range(1, len(document)) if len(ids(" ".join(document[:n]))) >= tokens)
    return document[:count]


def with_facts(sentences, facts):
    """Facts at even depths between the sentences."""
    placed = list(sentences)
    for i in reversed(range(len(facts))):
        placed.insert(round((i + 0.5) * len(sentences) / len(facts)), facts[i])
    return placed


draw = random.Random(3)
adjectives, nouns, names = (draw.sample(words[kind], 6) for kind in ("adjectives", "nouns", "names"))
code = lambda i: f"The {words['numbers'][i]} for the {adjectives[i]} {nouns[i]} is {draw.randint(10_000, 99_999)}."
facts = [
    code(0), f"{names[1]} lives in {draw.choice(words['cities'])}.", code(2),
    f"{names[3]} carries {draw.choice(words['things'])}.", code(4), f"{names[5]} works as a {draw.choice(words['jobs'])}.",
]
question = f"What is the {words['numbers'][2]} for the {adjectives[2]} {nouns[2]}?"
document = " ".join(with_facts(opening(prose[3], 1_420), facts))
texts = {
    "short": "<|bos|>The captain looked",
    "hundred": "<|bos|>" + " ".join(opening(prose[0], 100)),
    "long": "<|bos|>" + " ".join(opening(prose[1], 640)),
    "question": f"<|bos|>{document}<|user|>{question}<|end|><|assistant|>",
}
prompts = []
for name, text in texts.items():
    tokens = ids(text)
    last = len(tokens) - 1
    positions = {"hundred": [0, 49, last, last + 16, last + 63], "question": [0, 511, 1023, last, last + 15]}.get(name)
    prompts.append({"name": name, "text": text, "tokens": tokens} | ({"positions": positions} if positions else {}))
    print(name, len(tokens))
write(HERE / "nano/prompts.json", {"model": "models/nano"}, prompts=prompts)

# What the tiny models of every family read: the second batch of 512 begins inside it, and a window of 128 is crossed.
tokens = ids("<|bos|>" + " ".join(opening(prose[5], 640)))[:544]
teacher = {"text": tokenizer.decode(tokens, skip_special_tokens=False), "positions": [299, 543], "tokens": tokens}
assert ids(teacher["text"]) == tokens
write(HERE / "tiny/teacher.json", teacher)
