"""Writes the prose that the demo plants its facts in: text sampled from the shipped models themselves.

    python models/write_prose.py nano                                               -> models/nano/prose.json
    bun models/sample_mini.ts ENGINE_FOLDER | python models/write_prose.py mini     -> models/mini/prose.json

nano: 20 documents of a bit over 1,900 tokens, sampled here. mini: 4 documents of a bit over 12,000, sampled by llama.cpp.
Each file is an array of documents, each an array of sentences; a document's text is its sentences joined by single
spaces, and its tokens are counted on that text. The files are made once and committed, so nothing here is a dependency
of anything. Versions: Python 3.11, torch 2.8.0, transformers 4.57.1, tokenizers 0.22.2; node-llama-cpp 3.22.1, Bun 1.4.5.
The same versions on the same processor give the same text; others may round a logit otherwise and go their own way.
"""

import json
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PLANS = {"nano": dict(documents=20, tokens=1_900), "mini": dict(documents=4, tokens=12_000)}
# Tokens of a run: short enough for the nano model to stay in what it was trained on.
RUN, BATCH = 640, 32
HERE = Path(__file__).parent
SEED, TEMPERATURE, TOP_P = 2413, 0.7, 0.92
OPENINGS = [
    "The old house stood", "It was late in the evening when", "In the spring of that year", "My father had always",
    "The captain looked", "There was a time when", "When the rain had ceased", "She had been sitting", "Upon the hill",
    "The morning was", "At the end of the street", "He was a tall man", "We had not gone far", "The road went down",
    "Nothing in the world", "The river was", "After supper the company", "The young lady", "His uncle had been",
    "The garden was full", "I remember very well", "The ship had been", "By the time we reached", "The village lay",
    "Every one in the room", "The wind had fallen", "For some days after", "The doctor was", "As soon as the door",
    "The light of the fire", "Many years ago", "The people of the town",
]
# What a planted fact or its question says: the prose must not say it by itself, or an answer would prove nothing.
FACTLIKE = re.compile(
    r"secret code|pass ?key|magic number|serial number|lucky number|\blive[sd]? in\b|\bcarr(y|ies|ied) an?\b"
    r"|\bwork(s|ed)? as\b|\bkey\b|\bcode\b|\bnumbers?\b|had ever seen|<\||\|>",
    re.IGNORECASE,
)
# Period books speak badly of peoples and creeds; the models learnt that too, and it is left out.
UNKIND = re.compile(r"\b(neg|nig+[aeu]|jew|heathen|slave|savage|gyps|gips|half-?breed|cool(ie|y)|indian|native|mulat|darky|darkie)", re.IGNORECASE)


def sentences_of(text):
    """Whole sentences of a sampled text: the first (it begins with an opening of ours) and the last (cut) are left out."""
    text = re.sub(r"\s+", " ", text)
    return [s.strip() for s in re.split(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.) (?=[A-Z])", text)[1:-1]]


def is_good(sentence):
    """Plain: ASCII prose of 4 to 60 words without digits, quotation marks, verse or headings, and without a stutter."""
    words = re.findall(r"[a-z']+", sentence.lower())
    threes = [tuple(words[i:i + 3]) for i in range(len(words) - 2)]
    return (
        4 <= len(words) <= 60
        and re.fullmatch(r"[A-Z][A-Za-z ,;:.!?'-]*[a-z]{2}[.!?]", sentence) is not None
        and re.search(r"[A-Z]{2}|\.\.|--| '|' ", sentence) is None
        and FACTLIKE.search(sentence) is None
        and UNKIND.search(sentence) is None
        and len(set(threes)) == len(threes)
        and all(a != b for a, b in zip(words, words[1:]))
    )


def runs_of_nano(tokenizer):
    """Sampled texts without end. A run ends early where the model ends its text."""
    model = AutoModelForCausalLM.from_pretrained(HERE / "nano", dtype=torch.float32).eval()
    bos, special = tokenizer.bos_token_id, set(tokenizer.all_special_ids)
    ends = tokenizer.convert_tokens_to_ids(["<|eos|>", "<|end|>"])
    controls = [i for t, i in tokenizer.get_vocab().items() if t.startswith("<|") and i not in ends]
    torch.manual_seed(SEED)
    while True:
        for group in groups(tokenizer):
            ids = torch.tensor([[bos, *row] for row in (group * BATCH)[:BATCH]])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0,
                max_new_tokens=RUN, suppress_tokens=controls, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
            )
            for row in out.tolist():
                yield tokenizer.decode([t for t in row if t not in special], skip_special_tokens=True)


def groups(tokenizer):
    """Openings by their number of tokens, so that a batch needs no padding."""
    by_length = {}
    for opening in OPENINGS:
        ids = tokenizer(opening, add_special_tokens=False).input_ids
        by_length.setdefault(len(ids), []).append(ids)
    return sorted(by_length.values(), key=len, reverse=True)


def main(name):
    plan, tokenizer = PLANS[name], AutoTokenizer.from_pretrained(HERE / name)
    count = lambda sentences: len(tokenizer(" ".join(sentences), add_special_tokens=False).input_ids)
    documents, document, seen = [], [], set()
    for text in runs_of_nano(tokenizer) if name == "nano" else map(json.loads, sys.stdin):
        for sentence in filter(is_good, sentences_of(text)):
            if sentence not in seen:
                seen.add(sentence)
                document.append(sentence)
        if count(document) >= plan["tokens"]:
            while count(document[:-1]) >= plan["tokens"]:
                document.pop()
            documents.append(document)
            document = []
            print(f"{len(documents)} of {plan['documents']} documents", file=sys.stderr)
        if len(documents) == plan["documents"]:
            break
    rows = ",\n".join("  [\n" + ",\n".join("    " + json.dumps(s) for s in d) + "\n  ]" for d in documents)
    (HERE / name / "prose.json").write_text(f"[\n{rows}\n]\n")
    print(f"{name}: {[count(d) for d in documents]} tokens")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PLANS:
        sys.exit(__doc__)
    main(sys.argv[1])
