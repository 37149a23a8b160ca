"""What transformers writes greedily: tests/golden/greedy.json.

    pip install torch==2.15.0 transformers==5.24.0
    python3 -P tests/golden/greedy.py SMOLLM2_FOLDER

-P: statistics.py beside this file is not the one that transformers imports. SMOLLM2_FOLDER is SmolLM2-135M-Instruct as a folder, dequantised from its Q4_1 GGUF.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

NEW_TOKENS = 32
PROMPTS = [
    "How do I boil an egg?",
    "Name three things that float on water.",
    "Write one sentence about a lighthouse.",
    "What is the opposite of early?",
    "Give me a title for a poem about rain.",
    "Why do leaves fall in autumn?",
    "Explain to a child what a map is for.",
    "Translate into French: the window is open.",
    "What should I pack for two days in the mountains?",
    "Is seventeen a prime number?",
]


def main():
    torch.set_num_threads(2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            found = model.generate(
                **ids, max_new_tokens=NEW_TOKENS, do_sample=False, temperature=None, top_p=None, top_k=None,
                repetition_penalty=1.0,
            )  # fmt: skip
        new = found[0, ids["input_ids"].shape[1] :]
        rows.append({"prompt": prompt, "response": tokenizer.decode(new, skip_special_tokens=True)})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    target = Path(__file__).with_name("greedy.json")
    target.write_text(json.dumps({"versions": versions, "new_tokens": NEW_TOKENS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
