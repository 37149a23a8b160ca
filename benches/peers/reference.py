"""A reward model in PyTorch: transformers' Llama backbone, padded batches, and the head in f32."""

import json
from pathlib import Path

import torch
from products import DTYPES
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaModel


class Reference:
    def __init__(self, folder: Path, precision: str):
        weights = {}
        for file in sorted(folder.glob("model*.safetensors")):
            weights.update(load_file(file))
        settings = json.loads((folder / "config.json").read_text())
        self.settings = settings
        dtype = DTYPES[precision]
        self.model = LlamaModel(LlamaConfig.from_pretrained(folder)).to(dtype).eval()
        backbone = {k.removeprefix("model."): v.to(dtype) for k, v in weights.items() if k.startswith("model.")}
        self.model.load_state_dict(backbone)
        self.head = {k: v.float() for k, v in weights.items() if not k.startswith(("model.", "lm_head."))}

    def attention(self) -> str:
        return self.model.config._attn_implementation

    @torch.inference_mode()
    def rewards(self, texts: list[list[int]], batch: int = 1, by_length: bool = False) -> list[float]:
        """In the order of the texts, whatever the order in which they are batched."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if by_length else range(len(texts))
        rewards = [0.0] * len(texts)
        for first in range(0, len(texts), batch):
            group = order[first : first + batch]
            lengths = torch.tensor([len(texts[i]) for i in group])
            ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.long)
            for row, i in enumerate(group):
                ids[row, : len(texts[i])] = torch.tensor(texts[i])
            # Without padding there is nothing to mask but the future.
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long() if bool((lengths != lengths[0]).any()) else None
            hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            pooled = hidden[torch.arange(len(group)), lengths - 1].float()
            for i, reward in zip(group, self._head(pooled).tolist()):
                rewards[i] = reward
        return rewards

    def _head(self, pooled: torch.Tensor) -> torch.Tensor:
        """InfoRM's reward is that of the posterior mean."""
        if not self.settings.get("use_inform"):
            reward = pooled @ self.head["score.weight"].T
        else:
            encode = self.settings.get("encode_head_prefix", "encode_head")
            decode = self.settings.get("decode_head_prefix", "decode_head")
            mean = (pooled @ self.head[f"{encode}.weight"].T).chunk(2, dim=-1)[0]
            if self.settings.get("use_complex_decoder"):
                gate, up, down = (self.head[f"{decode}.{part}_proj.weight"] for part in ("gate", "up", "down"))
                reward = (torch.nn.functional.silu(mean @ gate.T) * (mean @ up.T)) @ down.T
            else:
                reward = mean @ self.head[f"{decode}.weight"].T
        reward = reward[:, 0]
        if self.settings.get("normalize_reward"):
            reward = (reward - self.settings["mean"]) / self.settings["std"]
        return reward
