"""Writes nano/transformers-*.json: what Hugging Face transformers makes of models/nano (see README.md for the format).

    python tests/golden/make_transformers.py

f32: the weights (BF16) widened to float32, and float32 throughout: greedy.
bf16: bfloat16 throughout, as the checkpoint declares itself: greedy, and fed the f32 file's tokens (teacher).
"""

import json

import torch
import transformers

from golden import HERE, ROOT, measure, write

prompts = json.loads((HERE / "nano/prompts.json").read_text())["prompts"]


def make(name, dtype, teachers=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "models/nano", dtype=dtype, attn_implementation="eager").eval()
    kind = str(dtype).removeprefix("torch.")
    head = {
        "engine": "transformers", "version": f"{transformers.__version__} (torch {torch.__version__.split('+')[0]})",
        "model": "models/nano", "dtype": kind, "kvDtype": kind,
    }
    results = []
    for i, prompt in enumerate(prompts):
        teacher = teachers[i]["greedy"] if teachers else None
        measured = measure(model, prompt["tokens"], teacher=teacher, positions=prompt.get("positions", ()))
        results.append({key: prompt[key] for key in ("name", "text", "tokens")} | measured)
        print(name, prompt["name"], "smallest gap", min(measured["gap"]))
    write(HERE / f"nano/{name}.json", head, prompts=results)
    return results


f32 = make("transformers-f32", torch.float32)
make("transformers-bf16", torch.bfloat16)
make("transformers-bf16-teacher", torch.bfloat16, teachers=f32)
