"""Writes tokenizer/nano.json and tokenizer/mini.json: token ids and chat texts by the Python libraries of Hugging Face.

    python tests/golden/make_tokenizer.py

`ids`: control tokens spelled in the text become control tokens. `plain`: they stay text, as in what a user wrote
(left out where it is the same). No token is added. Every list of ids decodes to its text.
"""

import json

import tokenizers
import transformers

from golden import HERE, ROOT, write

TEXTS = [
    "", " ", "  ", "     five spaces", "trailing space ", "trailing spaces   ", "\n", "\n\n\n", "\t", " \n \t\r\n x", "line\r\nfeed\rreturn\nend",
    "The captain looked at the sea.", "THE CAPTAIN LOOKED", "tHe CaPtAiN", "antidisestablishmentarianism", "a", "aa" * 20,
    "I'm, you're, he's, we've, I'll, she'd, isn't; 'tis 'twas o'clock", "I'M YOU'RE HE'S WE'VE I'LL SHE'D", "rock 'n' roll's 'sword'",
    "0", "0123456789", "3.14159, 1,000,000 and 2e-10", "in 1893 he had 42 of 48213", "½ ² ⅷ ٣ 五", "+1 (555) 010-9999",
    "naïve café, coöperate, Ærøskøbing, Straße", "e\u0301 is not é", "Привет, мир! Ελληνικά", "日本語のテキスト、中文文本。한국어", "العربية עברית",
    "👍🏽 👩‍👩‍👧 🇩🇪 emoji🙂inside", "\u200bzero\u200bwidth\ufeff", "\u00a0no\u00a0break\u3000space\u2028line", "control \x00\x01\x1b\x7f bytes",
    "math ∑∀x∈ℝ ≤ ∞", "\U0001d518\U0001f600\U00020000", "snake_case camelCase kebab-case x=y; f(x){return}", "!!! ??? ... --- === ###",
    "<|bos|>", "<|user|>What does Clara carry?<|end|><|assistant|>", "text<|end|>text", "<|end|", "<|nothing|> <|END|> < |end|>",
    " <|end|> ", "<|bos|><|bos|><|eos|><|system|><|pad|>", "The secret code for the amber falcon is 48213.", "a\u0000b",
]
DOCUMENT = "The rain had ceased. The secret code for the amber falcon is 48213. They went on."
ASK = "What is the secret code for the amber falcon?"
CHATS = {
    "document and question": [("system", DOCUMENT), ("user", ASK)],
    "question alone": [("user", ASK)],
    "two turns": [("system", DOCUMENT), ("user", ASK), ("assistant", "The secret code for the amber falcon is 48213."), ("user", "Where does Clara live?")],
    "ends with the assistant": [("user", ASK), ("assistant", "It is not known.")],
    "control tokens in what a user wrote": [("system", "A text with <|end|><|user|> in it."), ("user", "<|assistant|>Say <|end|>")],
    "spaces and lines": [("system", "  \n two lines\n"), ("user", " café 👍🏽 \n")],
    "a role that the template leaves out": [("tool", "42"), ("user", ASK)],
    "empty": [("system", ""), ("user", "")],
}


def make(name):
    folder = ROOT / "models" / name
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    chat = transformers.AutoTokenizer.from_pretrained(folder)

    def ids(text, plain):
        tokenizer.encode_special_tokens = plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    strings = []
    for text in TEXTS:
        item = {"text": text, "ids": ids(text, False)}
        assert tokenizer.decode(item["ids"], skip_special_tokens=False) == text
        if ids(text, True) != item["ids"]:
            item["plain"] = ids(text, True)
        strings.append(item)
    chats = []
    for title, turns in CHATS.items():
        messages = [{"role": role, "content": content} for role, content in turns]
        for prompted in (True, False):
            text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
            chats.append({"name": title, "messages": messages, "addGenerationPrompt": prompted, "text": text})
    head = {"engine": "tokenizers, transformers", "version": f"{tokenizers.__version__}, {transformers.__version__}", "model": f"models/{name}"}
    write(HERE / f"tokenizer/{name}.json", head, strings=strings, chats=chats)
    print(name, len(strings), "strings", len(chats), "chats")


for name in ("nano", "mini"):
    make(name)
