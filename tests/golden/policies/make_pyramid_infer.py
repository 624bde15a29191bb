"""PyramidInfer: the forward pass of the paper's repository, whose decoder layers are replaced by attention over given queries and keys.

Needs transformers 4.46.3: run this method with the interpreter of an environment that has it.
"""

import sys

import torch
import transformers

from inputs import GROUP, HEAD_DIM, HEADS, described, inputs, save, tensor

CONVENTIONS = (
    "Every layer has the same queries and keys, the inputs'. entered[layers]: rows that reach a layer in the prompt, ascending; its cache holds all "
    "of them: what a layer's attention drops is dropped for the layers after it. scores[layers]: what rows were ranked by, one for each of "
    "the context that entered; the first `sinks` are infinite. Recent are the last 1 + floor(recent * prompt) rows in every layer, whatever entered; "
    "their queries' attention, mean over heads, times linspace(1, newest), is averaged; context is what lies before them. A layer passes on "
    "floor(context * share) rows of it, or all where that is not above `least`; share = (1 - ratio) (cos(pi layer / layers) + 1) / 2 + ratio. "
    "gap: narrowest of all layers. generated: `steps` more rows, one by one; held[layers]: rows of each cache at the end, ascending. A layer "
    "thins out at a step where (all tokens so far) - floor(recent * prompt) - n >= every: n is the rows of the prompt that it holds, and once it has "
    "thinned out the rows that it then held less floor(recent * prompt). Of the `every` rows before its last 1 + floor(recent * prompt), "
    "max(1, floor(every * 0.9 * share)) stay, by the last 1 + floor(recent * prompt) queries' attention, weighted and averaged as above. So a layer "
    "that holds few rows of the prompt thins out at every step, and first of all the prompt's; one that holds all of them waits for long."
)


class Torch:
    """torch as the repository sees it; what it ranks stays here."""

    def __init__(self):
        self.ranked, self.layer = [], None

    def __getattr__(self, name):
        return getattr(torch, name)

    def topk(self, values, count, **named):
        self.ranked.append((self.layer, values[0].clone(), count))
        return torch.topk(values, count, **named)


class Attend(torch.nn.Module):
    def __init__(self, layer, q, keys, seen):
        super().__init__()
        self.layer, self.q, self.keys, self.seen, self.entered = layer, q, keys, seen, None

    def forward(self, hidden, past_key_value=None, **_):
        """Hidden states and values carry row numbers."""
        self.seen.layer = self.layer
        asking = hidden[0, :, 0].round().long()
        numbers = hidden[:, None, :, :1].double()
        held = past_key_value.update(numbers, numbers, self.layer)[0][0, 0, :, 0].long()
        self.entered = held.tolist() if len(asking) > 1 else self.entered
        logits = torch.einsum("qhd,hkd->hqk", self.q[asking], self.keys[:, held].repeat_interleave(GROUP, 0)) / HEAD_DIM**0.5
        logits = logits.masked_fill(held[None, None] > asking[None, :, None], -torch.inf)
        return hidden, logits.softmax(-1)[None], past_key_value


def gap_of(ranked):
    """Narrowest distance between the last score that was taken and the first that was not."""
    gaps = [ordered[count - 1] - ordered[count] for _, scores, count in ranked if count < len(scores) for ordered in [scores.sort(descending=True).values]]
    return float(min(gaps))


def make(oracles):
    sys.path.insert(0, str(oracles / "pyramidinfer"))
    import models.modeling_llama_pyramidinfer as pyramid

    cases = []
    for seed, prompt, steps, layers, ratio, least in [(41, 500, 40, 8, 0.9, 64), (44, 400, 24, 6, 0.6, 64), (43, 330, 0, 6, 0.5, 150)]:
        q, keys, _ = (torch.from_numpy(part).double() for part in inputs(seed, prompt + steps))
        pyramid.torch = seen = Torch()
        generated = {"gen_decay_ratio": 0.1, "gen_decay_strategy": "cosine", "gen_compress_ratio": 0.9, "exceed_length_to_compress": 16}
        prefill = {"recent_ratio": 0.2, "prefill_decay_ratio": ratio, "prefill_decay_strategy": "cosine", "min_context_length": least, "layerwise_downsample_interval": 1, "streamingllm_sink_len": 4, "distance_weight": 1.2}
        sizes = {"vocab_size": 8, "hidden_size": HEADS * HEAD_DIM, "intermediate_size": 8, "num_hidden_layers": layers, "num_attention_heads": HEADS, "max_position_embeddings": 1024}
        model = pyramid.LlamaModel(pyramid.LlamaConfig(**sizes, **prefill, **generated, attn_implementation="eager")).eval()
        model.layers = torch.nn.ModuleList(Attend(layer, q, keys, seen) for layer in range(layers))
        cache, lengths, recent = transformers.DynamicCache(), [], []

        def feed(rows):
            hidden = torch.tensor(rows, dtype=torch.float32)[None, :, None].expand(1, len(rows), HEADS * HEAD_DIM).clone()
            ids = torch.zeros(1, len(rows), dtype=torch.long)
            model.embed_tokens.forward = lambda _: hidden
            with torch.no_grad():
                model(ids, past_key_values=cache, use_cache=True, past_kv_seq_lens=lengths, recent_attn_weights=recent)

        feed(list(range(prompt)))
        ranked = list(seen.ranked)
        for row in range(prompt, prompt + steps):
            feed([row])
        options = {"recent": 0.2, "newest": 1.2, "sinks": 4, "ratio": ratio, "least": least, "every": 16, "generatedRatio": 0.1}
        case = {"name": f"{prompt} rows, {layers} layers, ratio {ratio}", "oracle": "pyramidinfer", "inputs": described(seed, prompt + steps), "options": options, "prompt": prompt, "steps": steps, "layers": layers}
        case |= {"gap": gap_of(ranked), "entered": [layer.entered for layer in model.layers]}
        case |= {"scores": [{"layer": layer, **tensor(scores.float().numpy())} for layer, scores, _ in ranked]}
        cases.append(case | {"held": [part[0, 0, :, 0].long().tolist() for part in cache.key_cache]})
    save("pyramidInfer", f"mutonix/pyramidinfer 61ac641; torch 2.8.0, transformers {transformers.__version__}", CONVENTIONS, cases)
