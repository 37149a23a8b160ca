"""Makes tests/golden/chat: conversations, and their token ids by transformers' `apply_chat_template` under templates
in the dialects of Llama 3, Qwen 2.5, Mistral, Zephyr, SmolLM2 and others.

Needs transformers and tokenizers. Without arguments it replaces the folder:

    tokenizer.json    a byte-level BPE with the special tokens of all templates
    chat.json         templates by name, and conversations
    chat.safetensors  ids, lengths: of each template in the order of names, and of each conversation
                      refused: the same, 1 where the template raises

    python chat_templates.py TEMPLATES OUT

writes to the file OUT what transformers renders with each *.jinja of the folder TEMPLATES.
"""

import datetime
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import transformers.utils.chat_template_utils as rendering
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "chat"

BOS, EOS = "<|bos|>", "<|end|>"
SPECIAL = [
    BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]",
    "<|system|>", "<|user|>", "<|assistant|>", "<start_of_turn>", "<end_of_turn>",
]


class Fixed(datetime.datetime):
    """The day that inform-server's `strftime_now` gives."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


rendering.datetime = Fixed

# The same statements, filters and functions as the released templates of each family, in our words.
TEMPLATES = {
    "llama3": """\
{{- bos_token }}
{%- if tools_in_user_message is not defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The rules are taken off the front. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set rules = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set rules = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- rules }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "qwen2.5": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou answer in short sentences.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n' + message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the system message, roles must go user, assistant, user, assistant, ...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if message == user_messages[-1] and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, except an initial system message!") }}
    {%- endif %}
{%- endfor %}
""",
    # Line feeds of its own lines are left to trim_blocks and lstrip_blocks.
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
""",
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a small model<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
""",
    # Macros, methods, slices from the end, loop controls, and the marks of what the assistant wrote.
    "reasoning": """\
{%- macro say(role, text) -%}
{{ '<|im_start|>' ~ role ~ '\\n' ~ text.strip() ~ '<|im_end|>\\n' }}
{%- endmacro -%}
{%- set today = strftime_now("%A, %d %B %Y") %}
{%- set ns = namespace(last=-1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and not message.content.startswith('<r>') %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- set ns.found = true %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{{- say('system', 'It is ' ~ today) }}
{%- if tools is iterable and tools | length > 0 %}
    {{- say('system', tools | tojson) }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- say('system', message | tojson) }}
        {%- continue %}
    {%- endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- generation %}{{ say(message.role, content) }}{% endgeneration %}
    {%- else %}
        {{- say(message.role | upper | lower, content.replace('\\t', '    ').rstrip()) }}
    {%- endif %}
{%- endfor %}
""",
}

QUESTIONS = [
    "What is 2 + 2?",
    "  Leading and trailing white space \n",
    "Zeilen\numbrüche\r\nund\ttabs",
    "Naïve café — “quotes”, l’apostrophe",
    "東京はどこですか？ 🙂👩‍👩‍👧‍👦",
    "{{ bos_token }} {% raw %} {# no comment #}",
    f"A user writes {EOS}, <|im_end|> and [/INST] too",
    "<b>HTML</b> & \"quotes\" 'single' \\ backslash \u2028 separator",
    "def f(x):\n    return x ** 2\n",
    "0.1e-5 1,000,000 ½",
]
ANSWERS = ["4", "", "  Yes.  \n\n", "Füße. 東京です。\n- one\n- two", "<think>\nhm\n</think>\n\nNo."]
SYSTEMS = ["Be brief.", "  Spaces around.  ", "Regeln:\n1. Höflich\n2. \"Kurz\""]


def conversations():
    user, assistant, system = (
        lambda text, role=role: {"role": role, "content": text} for role in ["user", "assistant", "system"]
    )
    every = []
    for index, question in enumerate(QUESTIONS):
        answer = ANSWERS[index % len(ANSWERS)]
        rules = SYSTEMS[index % len(SYSTEMS)]
        later = QUESTIONS[(index + 3) % len(QUESTIONS)]
        every.append([user(question), assistant(answer)])
        every.append([system(rules), user(question), assistant(answer)])
        every.append([user(question), assistant(ANSWERS[(index + 1) % 5]), user(later), assistant(answer)])
        every.append(
            [system(rules), user(later), assistant(answer), user(question), assistant(""), user("And?"), assistant(answer)]
        )
    every += [
        [user("One"), user("Two"), assistant("Three")],
        [user("One"), assistant("Two"), assistant("Three")],
        [user("One"), system("Late rules."), user("Two"), assistant("Three")],
        [assistant("I begin.")],
        [system("Only rules."), assistant("I begin.")],
        [user(""), assistant("To nothing.")],
        [user("word " * 60), assistant("answer " * 60)],
        [user("a"), assistant("b")] * 12,
    ]
    return every


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [message["content"] for turns in conversations() for message in turns] + list(TEMPLATES.values())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def scored(tokenizer, messages):
    """What transformers gives, and what inform-server scores of it: up to the EOS, which is appended where the
    template has none at the end."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    if text.rstrip().endswith(EOS):
        return tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
    return ids + [tokenizer.eos_token_id]


def make_golden():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    backend = make_tokenizer()
    backend.save(str(FOLDER / "tokenizer.json"), pretty=False)
    rows, refused = [], []
    for name in sorted(TEMPLATES):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=BOS, eos_token=EOS, chat_template=TEMPLATES[name]
        )
        for messages in conversations():
            try:
                rows.append(scored(tokenizer, messages))
                refused.append(0)
            except Exception as error:
                assert "TemplateError" in type(error).__name__, error
                rows.append([])
                refused.append(1)
    golden = {
        "ids": np.array(sum(rows, []), dtype=np.int32),
        "lengths": np.array([len(row) for row in rows], dtype=np.int32),
        "refused": np.array(refused, dtype=np.int32),
    }
    save_file(golden, FOLDER / "chat.safetensors")
    text = {"templates": TEMPLATES, "conversations": conversations()}
    (FOLDER / "chat.json").write_text(json.dumps(text, ensure_ascii=False, sort_keys=True))
    print(len(rows), "conversations,", sum(refused), "refused,", golden["ids"].size, "ids")


def render_folder(templates, out):
    rendered = {}
    for file in sorted(templates.glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS, chat_template=source
        )
        texts = []
        for messages in conversations():
            try:
                texts.append(tokenizer.apply_chat_template(messages, tokenize=False))
            except Exception as error:
                print(f"{file.name}: {type(error).__name__}: {str(error)[:80]}")
                texts.append(None)
        rendered[file.name] = {"source": source, "texts": texts}
    out.write_text(json.dumps({"conversations": conversations(), "templates": rendered}))


if __name__ == "__main__":
    render_folder(*map(Path, sys.argv[1:])) if len(sys.argv) > 1 else make_golden()
