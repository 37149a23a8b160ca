"""A `custom_reward_function` for verl that asks inform-server, and ends training when the server says
that the reward is being over-optimised. Standard library only.

    reward.custom_reward_function.path=examples/verl_reward.py
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8080
    +reward.custom_reward_function.reward_kwargs.run=ppo-7

verl 0.9.1 takes these keys without `reward.` in front, too, as they were called before.

verl hands the response over, not the prompt: the data set's `extra_info` must hold it under `prompt`, as
text or messages. Where `extra_info` holds `global_steps`, the monitor works by training step.
"""

import json
import time
import urllib.error
import urllib.request


class EarlyStop(RuntimeError):
    """The server says that training should stop. verl ends with it; the last checkpoint is the result."""


def compute_score(
    data_source,
    solution_str,
    ground_truth,
    extra_info=None,
    url="http://127.0.0.1:8080",
    run="default",
    api_key=None,
    patience=600.0,
    **_,
):
    """The reward of one response."""
    extra_info = extra_info or {}
    body = {
        "inputs": [{"prompt": extra_info["prompt"], "response": solution_str}],
        "run": run,
        "step": extra_info.get("global_steps"),
        "return_latents": False,
    }
    answer = post(url.rstrip("/") + "/reward", body, api_key, patience)
    state = answer["run"]
    if state is not None and state["early_stop"]:
        raise EarlyStop(f"inform-server says stop: {state['reason']}")
    reward = answer["rewards"][0]
    if reward is None:
        # Never a silent 0: the policy would learn from it.
        raise RuntimeError(f"not scored: {answer['items'][0]['error']}")
    return reward


def post(url, body, api_key, patience):
    """Posts JSON. Waits where the server says that it is busy."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    end = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
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
