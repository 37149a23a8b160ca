"""A reward function for TRL (GRPO, RLOO) that asks inform-server, and a callback that stops training
when the server says that the reward is being over-optimised. Standard library only.

    from trl_reward import InformReward

    reward = InformReward("http://127.0.0.1:8080", run="grpo-7")
    trainer = GRPOTrainer(model=..., reward_funcs=reward, callbacks=[reward.callback()], ...)
    trainer.train()
"""

import json
import time
import urllib.error
import urllib.request


class InformReward:
    """Scores completions. An input that cannot be scored gets None, which TRL leaves out."""

    def __init__(self, url, run, api_key=None, patience=600.0):
        self.url = url.rstrip("/")
        self.run = run
        self.api_key = api_key
        self.patience = patience
        self.early_stop = False
        self.reason = None
        self.__name__ = "inform_reward"  # TRL logs rewards by this name

    def __call__(self, prompts, completions, trainer_state=None, **_):
        body = {
            "inputs": [
                {"prompt": prompt, "response": text(completion)}
                for prompt, completion in zip(prompts, completions, strict=True)
            ],
            "run": self.run,
            "step": None if trainer_state is None else trainer_state.global_step,
            "return_latents": False,
        }
        answer = self.post("/reward", body)
        state = answer["run"]
        if state is not None and state["early_stop"]:
            self.early_stop, self.reason = True, state["reason"]
        return answer["rewards"]

    def post(self, path, body):
        """Posts JSON. Waits where the server says that it is busy."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        end = time.monotonic() + self.patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self.patience) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                wait = error.headers.get("Retry-After")
                if wait is None or time.monotonic() > end:
                    raise RuntimeError(f"{error.code}: {error.read().decode()}") from error
                time.sleep(float(wait))
            except urllib.error.URLError:
                # Not started yet, or being restarted.
                if time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def callback(self):
        """A trainer callback that stops training once the server says so."""
        try:
            from transformers import TrainerCallback
        except ImportError:
            TrainerCallback = object
        reward = self

        class StopOnVerdict(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                if reward.early_stop:
                    print(f"inform-server says stop: {reward.reason}")
                    control.should_training_stop = True
                return control

        return StopOnVerdict()


def text(completion):
    """The answer's text: TRL hands over a string, or messages where the prompts are messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
