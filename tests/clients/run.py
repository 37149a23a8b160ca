"""Calls the server with the real clients of its protocols, and with the examples. Each must get, bit for
bit, the rewards that `/reward` gives.

    python -m venv target/clients && target/clients/bin/pip install -r tests/clients/requirements.txt
    target/clients/bin/python tests/clients/run.py
"""

import asyncio
import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
import threading
import types
import urllib.request
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from wheels import load, unpack  # noqa: E402

WHEELS = ROOT / "target" / "wheels"
QUESTION = "How do I keep basil fresh?"
ANSWERS = ["Put the stems in a glass of water.", "I cannot say.", "Why?"]


def readme(trainer):
    """What the README tells the users of that trainer to set, from its port on: `8080/path`."""
    rows = [line.split("|") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    (setting,) = [row[2] for row in rows if row[1].strip() == trainer]
    return setting.split(":8080")[1].split("`")[0].split('"')[0]


class Server:
    """The server's program on a free port."""

    def __init__(self, *flags):
        program = ROOT / "target" / "release" / "inform-server"
        command = [str(program), "--port", "0", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].strip()
                break
        else:
            raise RuntimeError("the server did not start")
        # Whoever logs must not be held up.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    @property
    def address(self):
        return self.url.removeprefix("http://")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0

    def post(self, path, body, headers=()):
        headers = {"Content-Type": "application/json", **dict(headers)}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def rewards(self, inputs, **fields):
        return self.post("/reward", {"inputs": inputs, **fields})["rewards"]


class Demo:
    """The demo checkpoint, whose template begins with no BOS."""

    folder = "configs/demo"
    bos = None
    eos = "<|end|>"

    @staticmethod
    def template(messages, **_):
        return "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in messages)


class Gated:
    """A tiny checkpoint whose template, and tokenizer, begin with BOS."""

    folder = "tests/golden/tiny/gated"
    bos = "<|bos|>"
    eos = "<|end|>"

    @staticmethod
    def template(messages, **_):
        user, assistant = messages
        return f"<|bos|>[{user['content']}]<|end|>{assistant['content']}<|end|>"


def conversation(answer):
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]


def equal(found, expected):
    """The same 32-bit floats."""
    bits = lambda values: [struct.pack("<f", value) for value in values]  # noqa: E731
    assert bits(found) == bits(expected), f"{found}, /reward gives {expected}"


def setting(model):
    """A server, the texts as a trainer's template writes them, and the rewards that /reward gives."""
    server = Server("--model", model.folder)
    texts = [model.template(conversation(answer)) for answer in ANSWERS]
    inputs = [{"messages": conversation(answer)} for answer in ANSWERS]
    return server, texts, server.rewards(inputs)


def openrlhf_0_11():
    """`SingleTurnAgentExecutor`: one sample a request; several URLs; a key in the URL."""
    agent = load(unpack("openrlhf==0.11.2", WHEELS), ["openrlhf.utils.agent"], [])
    for model in (Demo, Gated):
        server, texts, expected = setting(model)
        with server:
            url = server.url + readme("OpenRLHF 0.11")
            for url in (url, [url] * 2):
                executor = agent.SingleTurnAgentExecutor(url)
                for text, reward in zip(texts, expected):
                    fetch = executor._fetch_rewards_via_http([text], [QUESTION], ["label"])
                    (info,) = asyncio.run(fetch)
                    equal(info["rewards"], [reward])
                    equal(info["scores"], [reward])
                    assert all(isinstance(v, (int, float)) for v in info["extra_logs"].values())
    key = "a-key-of-enough-letters"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f'[[keys]]\nname = "trainer"\nkey = "{key}"\n')
        file.flush()
        with Server("--set", f"auth.keys_file={file.name}") as server:
            executor = agent.SingleTurnAgentExecutor(f"http://openrlhf:{key}@{server.address}/get_reward?run=r")
            text = Demo.template(conversation(ANSWERS[0]))
            (info,) = asyncio.run(executor._fetch_rewards_via_http([text], [QUESTION], [None]))
            bearer = {"Authorization": f"Bearer {key}"}
            native = server.post("/reward", {"inputs": [{"text": text}]}, bearer)
            equal(info["rewards"], native["rewards"])


def openrlhf_0_8():
    """`request_api_wrapper`: a whole batch a request, and empty shards."""
    module = load(unpack("openrlhf==0.8.11", WHEELS), ["openrlhf.utils.remote_rm_utils"], ["ray"])
    for model in (Demo, Gated):
        server, texts, expected = setting(model)
        with server:
            url = server.url + readme("OpenRLHF 0.8")
            ask = lambda texts: module.request_api_wrapper(  # noqa: E731
                url, {"query": texts, "prompts": [QUESTION] * len(texts), "labels": [None] * len(texts)}
            )
            info = ask(texts)
            equal(info["rewards"], expected)
            equal(info["scores"], expected)
            # Its trainer joins these by key with torch.cat, which takes no lists.
            assert info["extra_logs"] == {}
            assert ask([])["rewards"] == []


VERL_STUBS = [
    "ray", "omegaconf", "tensordict", "verl.protocol", "verl.single_controller", "verl.trainer",
    "verl.utils", "verl.experimental.reward_loop.reward_model",
]  # fmt: skip


class VerlData:
    """One row of verl's DataProto, as far as the worker reads it. Token ids are character codes."""

    def __init__(self, answer):
        ids = numpy.array([ord(c) for c in answer + "<|end|>"])
        self.batch = {"responses": ids, "attention_mask": numpy.ones(len(ids) + 4, dtype=int)}
        self.non_tensor_batch = {"raw_prompt": [{"role": "user", "content": QUESTION}]}

    def __len__(self):
        return 1

    def __getitem__(self, _):
        return self


def verl_engines():
    """`RewardLoopWorker.compute_score_disrm` with both engines."""
    module = load(unpack("verl==0.9.1", WHEELS), ["verl.experimental.reward_loop.reward_loop"], VERL_STUBS)
    namespace = types.SimpleNamespace
    for model in (Demo, Gated):
        server, _, expected = setting(model)
        with server:
            for engine in ("vllm", "sglang"):
                worker = object.__new__(module.RewardLoopWorker)
                worker.reward_router_address = server.address + readme("verl, its own reward worker")
                worker.input_tokenizer = namespace(
                    decode=lambda ids: "".join(map(chr, ids)), eos_token=model.eos
                )
                worker.reward_model_tokenizer = namespace(
                    apply_chat_template=model.template, bos_token=model.bos
                )
                reward_model = namespace(rollout=namespace(name=engine), model_path="/models/reward")
                worker.config = namespace(reward=namespace(reward_model=reward_model))
                for answer, reward in zip(ANSWERS, expected):
                    result = asyncio.run(worker.compute_score_disrm(VerlData(answer)))
                    equal([result["reward_score"]], [reward])


def slime():
    """What slime's `remote_rm` posts and reads. Its package is not in the index: this is not its code."""
    server, _, expected = setting(Demo)
    with server:
        for answer, reward in zip(ANSWERS, expected):
            for prompt in (conversation(answer)[:1], f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n"):
                response = answer if isinstance(prompt, list) else answer + "<|end|>"
                body = {"prompt": prompt, "response": response, "label": None}
                equal([server.post(readme("slime, miles"), body)], [reward])


def llama_factory():
    """`get_rewards_from_server`."""
    stubs = ["torch", "transformers", "llamafactory.extras"]
    module = load(unpack("llamafactory==0.9.5", WHEELS), ["llamafactory.train.ppo.ppo_utils"], stubs)
    # Asked of a stub at import; `requests` is here.
    assert hasattr(module, "requests")
    for model in (Demo, Gated):
        server, texts, expected = setting(model)
        with server:
            rewards = module.get_rewards_from_server(server.url + readme("LLaMA-Factory (PPO)"), texts)
            equal(rewards, expected)


def hugging_face():
    """`InferenceClient.text_classification`."""
    from huggingface_hub import InferenceClient

    server, texts, expected = setting(Demo)
    with server:
        client = InferenceClient(server.url + readme("Hugging Face Hub"))
        for text, reward in zip(texts, expected):
            (label,) = client.text_classification(text)
            equal([label.score], [reward])
        try:
            client.text_classification("")
        except Exception as error:  # the server's own message must reach the user
            assert "empty_input" in str(error), error
        else:
            raise AssertionError("an empty text was scored")


def openai_client():
    """`embeddings.create`, in both formats, for rewards and latents; `models.list`; its errors."""
    import openai

    server, texts, expected = setting(Demo)
    with server:
        client = openai.OpenAI(base_url=server.url + readme("OpenAI client"), api_key="none")
        for extra in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model="demo", input=texts, **extra)
            equal([item.embedding[0] for item in answer.data], expected)
            assert [len(item.embedding) for item in answer.data] == [1] * len(texts)
        assert [model.id for model in client.models.list()] == ["demo", "demo-latents"]
        native = server.post("/reward", {"inputs": [{"text": texts[0]}]})
        answer = client.embeddings.create(model="demo-latents", input=texts[0])
        equal(answer.data[0].embedding, native["latents"][0])
        try:
            client.embeddings.create(model="demo", input="")
        except openai.UnprocessableEntityError as error:
            assert error.code == "unprocessable" and "empty_input" in error.message, error
        else:
            raise AssertionError("an empty text was scored")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A monitor that evaluates each step, and stops at the first change that is larger than the mean before.
NERVOUS = ["--set", "monitor.min_window=8", "--set", "monitor.early_stop.max_ratio=1.0"]


def steps(server, run, ask):
    """Trains until somebody stops: `ask(step, responses)` answers whether to go on."""
    for step in range(40):
        # Answers that become more and more alike, as an over-optimised policy's do.
        responses = [" ".join(["sorry"] * (1 + i % (1 + 40 // (1 + step)))) for i in range(16)]
        if not ask(step, responses):
            return step
        server.post(f"/runs/{run}/evaluate", {})
    raise AssertionError("nothing stopped the training")


def trl_example():
    """`examples/trl_reward.py`, called as TRL calls reward functions and callbacks."""
    module = example("trl_reward")
    server, _, expected = setting(Demo)
    with server:
        reward = module.InformReward(server.url + readme("TRL (GRPO, RLOO)"), run="grpo")
        columns = {"completion_ids": [[1]] * 3, "trainer_state": types.SimpleNamespace(global_step=3)}
        equal(reward(prompts=[QUESTION] * 3, completions=ANSWERS, **columns), expected)
        prompts = [[{"role": "user", "content": QUESTION}]] * 3
        completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
        equal(reward(prompts=prompts, completions=completions, **columns), expected)
        assert reward(prompts=["", QUESTION], completions=["", "a"])[0] is None
        evaluation = server.post("/runs/grpo/evaluate", {})
        assert evaluation["first_step"] == 3, evaluation
        assert not reward.early_stop
    with Server(*NERVOUS) as server:
        reward = module.InformReward(server.url, run="grpo")
        callback = reward.callback()
        control = types.SimpleNamespace(should_training_stop=False)

        def ask(step, responses):
            state = types.SimpleNamespace(global_step=step)
            reward(prompts=[QUESTION] * len(responses), completions=responses, trainer_state=state)
            callback.on_step_end(None, state, control)
            return not control.should_training_stop

        assert steps(server, "grpo", ask) > 1
        assert reward.early_stop and reward.reason


def verl_example():
    """`examples/verl_reward.py`, loaded by verl's own code and called as its reward manager calls it."""
    root = unpack("verl==0.9.1", WHEELS)
    # The second is imported when the first is called.
    modules = ["verl.utils.import_utils", "verl.trainer.ppo.reward"]
    reward = load(root, modules, ["verl.utils.reward_score"], {"verl": ["DataProto"]})
    server, _, expected = setting(Demo)

    def function(server):
        kwargs = {"url": server.url, "run": "ppo"}
        path = str(ROOT / "examples" / "verl_reward.py")
        custom = {"path": path, "name": "compute_score", "reward_kwargs": kwargs}
        config = types.SimpleNamespace(reward={"custom_reward_function": custom})
        return reward.get_custom_reward_fn(config)

    with server:
        compute_score = function(server)
        for answer, expected_reward in zip(ANSWERS, expected):
            extra_info = {"prompt": QUESTION, "global_steps": 5}
            found = compute_score(
                data_source="d", solution_str=answer, ground_truth="", extra_info=extra_info
            )
            equal([found], [expected_reward])
        assert server.post("/runs/ppo/evaluate", {})["last_step"] == 5
        try:
            compute_score(data_source="d", solution_str="", ground_truth="", extra_info={"prompt": ""})
        except RuntimeError as error:
            assert "empty_input" in str(error)
        else:
            raise AssertionError("an empty text was scored")
    with Server(*NERVOUS) as server:
        compute_score = function(server)

        def ask(step, responses):
            extra_info = {"prompt": QUESTION, "global_steps": step}
            try:
                for text in responses:
                    compute_score("d", text, "", extra_info=extra_info)
            except RuntimeError as error:
                assert type(error).__name__ == "EarlyStop", error
                return False
            return True

        assert steps(server, "ppo", ask) > 1


CHECKS = [
    openrlhf_0_11, openrlhf_0_8, verl_engines, slime, llama_factory, hugging_face, openai_client, trl_example,
    verl_example,
]  # fmt: skip


def main():
    failed = 0
    for check in CHECKS:
        try:
            check()
            print(f"ok      {check.__name__}")
        except Exception as error:
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {error}")
            import traceback

            traceback.print_exc()
    print(f"clients: {len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
