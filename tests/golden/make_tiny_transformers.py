"""Writes tiny/transformers.json and tiny/dequantised.json: what Hugging Face transformers makes of the tiny models.

    bun tests/golden/tiny/make.ts all FOLDER && python tests/golden/make_tiny_transformers.py FOLDER

transformers.json: the directories (safetensors), computed in float32; those in BF16 computed in bfloat16 too.
dequantised.json: the GGUF files, their weights expanded by the gguf package and computed in float32. llama.cpp rounds
activations to 8 bits where weights are quantised; here nothing but the weights is rounded, so this is the narrower judge.
"""

import hashlib
import json
import sys
from pathlib import Path

import gguf
import torch
import transformers

from golden import HERE, base64_of, step_of, write

FOLDER = Path(sys.argv[1])
TEACHER = json.loads((HERE / "tiny/teacher.json").read_text())
TOKENS, POSITIONS = TEACHER["tokens"], TEACHER["positions"]
VERSION = f"{transformers.__version__} (torch {torch.__version__.split('+')[0]}"


@torch.no_grad()
def judged(model):
    logits = model(torch.tensor([TOKENS])).logits[0].float()
    steps = [step_of(row) for row in logits]
    return {
        "logprob": [round(float(logs[token]), 5) for (logs, _, _), token in zip(steps, TOKENS[1:])],
        "best": [best for _, best, _ in steps],
        "gap": [round(gap, 4) for _, _, gap in steps],
        "logits": [{"position": p, "f32": base64_of(logits[p].numpy())} for p in POSITIONS],
    }


def of_directory(folder, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    hashes = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))}
    return {"name": folder.name, "sha256": hashes, "dtype": str(dtype).removeprefix("torch.")} | judged(model)


LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def name_of(name):
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("blk."):
        return f"{TOP[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def of_gguf(file):
    """The model that a directory of the same family configures, with this file's weights and RoPE scaling."""
    family, _, *rope = file.stem.split("-")
    config = transformers.AutoConfig.from_pretrained(FOLDER / f"{family}-F32")
    if rope:
        config.rope_scaling = json.loads((FOLDER / f"llama-{rope[0]}-F32/config.json").read_text())["rope_scaling"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    state = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if family in ("llama", "mistral") and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.num_attention_heads if "attn_q" in tensor.name else config.num_key_value_heads
            values = values.view(heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)  # neighbours to halves
        state[name_of(tensor.name)] = values
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return {"name": file.stem, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} | judged(model)


def shown(case):
    print(case["name"], case.get("dtype", ""), "mean log-probability", round(sum(case["logprob"]) / len(case["logprob"]), 4), flush=True)
    return case


order = json.loads((HERE / "tiny/llamacpp.json").read_text())["cases"]
dequantised = [shown(of_gguf(FOLDER / f"gguf/{case['name']}.gguf")) for case in order]
write(HERE / "tiny/dequantised.json", {"engine": "transformers", "version": f"{VERSION}, gguf 0.19.0)", "dtype": "float32"}, cases=dequantised)

cases = []
for config in sorted(FOLDER.glob("*/config.json")):
    cases.append(shown(of_directory(config.parent, torch.float32)))
    if config.parent.name.endswith("-BF16"):
        cases.append(shown(of_directory(config.parent, torch.bfloat16)))
write(HERE / "tiny/transformers.json", {"engine": "transformers", "version": f"{VERSION})"}, cases=cases)
