"""Chat templates: what transformers renders, and nothing that a stranger's program should do."""

import re
import time

import jinja2
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from specx.checkpoints.chat_template import ChatTemplate
from specx.errors import ModelError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
#: As the families of the shipped presets lay out a conversation, written anew in their form.
FAMILIES = {
    "chatml with a standing system prompt": """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "thinking, looked at from the end": """
{%- set ns = namespace(tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.tool and message.role == "user" and message.content is string and not
        (message.content.startswith('<tool_response>') and
         message.content.endswith('</tool_response>')) %}
        {%- set ns.tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and '</think>' in message.content %}
        {%- set said = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}{%- set said = message.content %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "headers and a date": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "instructions that take turns": """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must take turns") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}
{%- endfor %}
""",
    "bars of another width": """
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{bos_token}}{{ns.system_prompt}}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}
{%- endfor -%}
{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}
""",
}
NASTY = {
    "blocks and indents": "  {% if 1 %}\n  a\n  {% endif %}\n   {{ bos_token }}\n{# no #}\nb\n\n",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
    "{{ m.content }}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "the loop's variables": "{% for m in messages %}{{ loop.index }}{{ loop.revindex }}"
    "{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.previtem.role if loop.previtem }}"
    "{{ loop.nextitem.role if loop.nextitem }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{% endfor %}",
    "loops over other things": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
    "{% for c in 'abc' %}{{ c }}{% else %}none{% endfor %}{% for x in [] %}{% else %}none"
    "{% endfor %}{% for x in nothing %}{% else %}undefined{% endfor %}{% for i in range(3) "
    "if i %}{{ i }}{{ loop.length }}{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}",
    "a recursive loop": "{% for m in [[1, [2]], [3]] recursive %}{{ loop.depth }}"
    "{% if m is iterable %}{{ loop(m) }}{% else %}{{ m }}{% endif %}{% endfor %}",
    "generation": "{% set a = 1 %}{% for m in messages %}{% generation %}{% set a = 2 %}"
    "{{ m.content }}{{ a }}{% endgeneration %}{{ a }}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ '<é>' | tojson }}{{ {'b': 1, 'a': [1]} | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "what is defined": "{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}"
    "{{ pad_token }}{{ nothing }}{{ strftime_now is defined }}{{ eos_token }}",
    "namespaces": "{% set ns = namespace(a=1, b='x') %}{% for m in messages %}"
    "{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}",
    "dictionaries": "{{ dict(a=1) }}{{ dict.fromkeys(['x'], 2) }}{{ dict([('k', 3)]).k }}",
    "macros": "{% macro say(m, end='.') %}{{ m.role }}: {{ m.content }}{{ end }}"
    "{{ caller() if caller }}{% endmacro %}"
    "{{ say(messages[0]) }}{% call say(messages[1], end='!') %}x{% endcall %}",
    "operators": "{{ 'a' ~ 1 ~ none }}{{ 'ab' * 3 }}{{ 2 ** 3 }}{{ [1] + [2] }}{{ 7 // 2 }}"
    "{{ 7 % 4 }}"
    "{{ 'a' + 'b' ~ 'c' }}{{ '%s-%d' % ('x', 3) }}{{ 1 + 1.5 }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', "
    "'equalto', 'user') | list | length }}{{ ' x ' | trim }}{{ '<b>' | safe }}{{ '<b>' | escape }}"
    "{{ messages | last }}{{ 'aXb' | lower }}{{ [3, 1] | sort }}{{ {'b': 1} | items | list }}"
    "{{ 'text' | indent(2, true) }}{{ none | default('d', true) }}",
    "methods": "{{ messages[0].content.split(' ')[0].upper() }}{{ 'a-b'.replace('-', '+') }}"
    "{{ messages[0].get('name', 'nobody') }}{{ 'x'.startswith(('x', 'y')) }}",
    "a block set": "{% set x %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}"
    "[{{ x | trim }}]",
    "unicode": "｜▁é😀{{ '\\u2581' }}{{ messages[0].content | length }}",
    "a final line break": "a\n",
}
CONVERSATIONS = [
    [("user", "  What is this? <é> \n")],
    [("system", "Be brief."), ("user", "Say 'it' & \"that\".")],
    [("user", "One"), ("assistant", "x</think>\n\nTwo "), ("user", "Three")],
]


def messages(said: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


def witness(template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **SPECIAL
    )


@pytest.mark.parametrize("said", CONVERSATIONS, ids=["one", "system", "turns"])
@pytest.mark.parametrize("name", [*FAMILIES, *NASTY])
def test_it_renders_as_transformers_does(name: str, said: list[tuple[str, str]]) -> None:
    source, chat = (FAMILIES | NASTY)[name], messages(said)
    template = ChatTemplate(source, SPECIAL, "owner")
    try:
        expected = witness(source).apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        expected, reason = None, str(error)
    if expected is None:
        with pytest.raises(ModelError, match=re.escape(reason)):
            template.render(chat)
    else:
        assert [template.render(chat), template.render(chat)] == [expected, expected]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ nothing.deeper }}", "'nothing' is undefined"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ messages[7].role.x }}", "no element 7"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{% for x in 3 %}{% endfor %}", "not iterable"),
        ("{{ ''.nothing() }}", "no attribute 'nothing'"),
        ("{% include 'x' %}", "no loader"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% for a in 'x' %}" * 30 + "{% endfor %}" * 30, "too many statically nested"),
    ],
)
def test_a_broken_one_is_named_with_the_reason(source: str, said: str) -> None:
    with pytest.raises(ModelError, match="chat template of owner is broken") as caught:
        ChatTemplate(source, SPECIAL, "owner").render(messages(CONVERSATIONS[0]))
    assert said in caught.value.reason
    assert "prompt.template=raw" in caught.value.hints[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['datetime'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace(a=1) %}{% set ns._x = 2 %}{{ ns._x }}",
        "{{ dict.mro() }}{{ dict.__base__ }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ ('{0.__class__}' | attr('format'))('') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages | map(attribute='__class__') | list | tojson }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    """What is refused, or is nothing; never an object of Python's."""
    try:
        made = ChatTemplate(source, SPECIAL, "owner").render(messages(CONVERSATIONS[0]))
    except ModelError:
        return
    assert not any(word in made for word in ("class", "module", "function", "object"))
    assert "x" not in made


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 10 ** 999999999 }}",
        "{{ [0] * 10 ** 10 }}",
        "{% set ns = namespace(x='xxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}",
        "{% set ns = namespace(x='xxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}",
        "{% set x = 'x' * 9000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}",
    ],
)
def test_work_and_size_have_bounds(source: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ModelError, match="chat template of owner is broken"):
        ChatTemplate(source, SPECIAL, "owner").render(messages(CONVERSATIONS[0]))
    assert time.perf_counter() - began < 20
