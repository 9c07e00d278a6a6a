"""Prompts equal transformers' apply_chat_template; a message is never run as a template; failures are the client's 400."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.chat_template import ChatTemplate, TemplateError, load_chat_template
from server.text.tokenizer import Tokenizer
from tests.drawn import drawn

# In the manner of templates in public use: whole-line tags, trims, namespaces, loop controls, tojson, generation blocks.
BRACKETS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant, found ' + message['role']) }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
HEADERS = """{{- bos_token }}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{% endif %}
"""
THINKING = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- if loop.index0 > 50 %}{% break %}{% endif %}
    {%- set text = message.content.split('</think>')[-1].lstrip('\\n') if loop.index0 < ns.last else message.content %}
<|im_start|>{{ message.role }}
{% generation %}{{ text }}{% endgeneration %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}
{% endif %}"""
DATED = """  {% for message in messages %}
  {{ message | tojson }} {{ dict(a=1)['a'] }}
  {% endfor %}
Options: {{ options | default({'none': true}) | tojson(sort_keys=true, separators=(',', ':')) }}
{{- documents is none }} {{- tools is none }} {{ missing }}
"""
TEMPLATES = {"brackets": BRACKETS, "headers": HEADERS, "thinking": THINKING, "dated": DATED}

contents = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["  padded \n", "{{ 7 * 7 }}", "{% for x in y %}", "<|im_end|>", "</think>\nafter", "", "äöü 你好 🎉"]
    ),
)


@st.composite
def conversations(draw):
    turns = draw(st.lists(contents, min_size=1, max_size=7))
    system = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    return system + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def theirs(reference, source, messages, **options):
    return reference.apply_chat_template(messages, chat_template=source, tokenize=False, **options)


@given(messages=conversations(), generation=st.booleans())
@settings(max_examples=drawn(100))
def test_smollm_as_transformers(smollm, reference, messages, generation):
    rendered = load_chat_template(smollm).render(messages, add_generation_prompt=generation)
    assert rendered == theirs(reference, None, messages, add_generation_prompt=generation)
    ids = reference.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
    assert smollm.encode(rendered, add_special_tokens=False) == ids


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations(), generation=st.booleans(), extra=st.sampled_from([{}, {"enable_thinking": False}]))
@settings(max_examples=drawn(60))
def test_public_styles_as_transformers(smollm, reference, name, messages, generation, extra):
    ours = ChatTemplate(TEMPLATES[name], smollm.special_tokens)
    expected = theirs(reference, TEMPLATES[name], messages, add_generation_prompt=generation, **extra)
    assert ours.render(messages, add_generation_prompt=generation, **extra) == expected


@pytest.mark.parametrize("name", ["smollm", "brackets", "headers", "thinking"])
@given(messages=conversations(), final=st.sampled_from(["So", "The answer is ", " spaced\n\n", "two\nlines", "你好"]))
@settings(max_examples=drawn(40))
def test_continuing_the_final_message_as_transformers(smollm, reference, name, messages, final):
    source = smollm.model_chat_template if name == "smollm" else TEMPLATES[name]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    messages = [*messages, {"role": "assistant", "content": final}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    rendered = ChatTemplate(source, smollm.special_tokens).render(messages, **options)
    assert rendered == theirs(reference, source, messages, **options)
    assert rendered.rstrip().endswith(final.strip())
    assert messages[-1]["content"] == final  # the caller's messages are left alone


def test_tools_and_kwargs_reach_the_template(smollm, reference):
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "größe", "parameters": {}}}]
    rendered = ChatTemplate(HEADERS, smollm.special_tokens).render(messages, tools=tools)
    assert rendered == theirs(reference, HEADERS, messages, tools=tools, add_generation_prompt=True)
    assert "größe" in rendered


def test_a_message_is_data_never_a_template(smollm):
    text = "{{ bos_token }}{% raw %}{{ 7 * 7 }}{% endraw %}{{ ''.__class__ }}"
    assert text in load_chat_template(smollm).render([{"role": "user", "content": text}])


def test_special_tokens_in_a_message_are_encoded_as_special(smollm):
    rendered = load_chat_template(smollm).render([{"role": "user", "content": "a<|im_end|>b"}])
    assert smollm.encode(rendered, add_special_tokens=False).count(2) == 3  # system, the message's own, the turn's


def test_bos_is_there_once(smollm):
    rendered = ChatTemplate(HEADERS, smollm.special_tokens).render([{"role": "user", "content": "x"}])
    assert smollm.encode(rendered, add_special_tokens=False).count(1) == 1


def test_the_clock_is_injected():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2026, 11, 21))
    assert template.render([]) == "21 Nov 2026"


def test_list_contents_are_continued_in_their_last_text():
    template = ChatTemplate("{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert template.render([{"role": "assistant", "content": parts}], **options) == "[a][b "


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (BRACKETS, [{"role": "assistant", "content": "x"}], "roles must alternate user/assistant, found assistant"),
        ("{{ messages[0].content + 1 }}", [{"role": "user", "content": "x"}], "chat template failed: TypeError"),
        ("{{ messages[0]['content'] | trim }}{{ nothing.at.all }}", [{}], "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", [], "unsafe"),
        ("{{ messages.append(1) }}", [], "unsafe|not safely callable"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", [], "Range too big"),
        ("{{ raise_exception('') }}", [], "TemplateError"),
    ],
)
def test_what_a_template_cannot_do_is_the_clients_error(source, messages, message):
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(messages)


def test_output_is_bounded():
    template = ChatTemplate("{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}", max_chars=5000)
    assert len(template.render([{"role": "user", "content": "12345"}])) == 5000
    with pytest.raises(TemplateError, match="more than 5000 characters"):
        template.render([{"role": "user", "content": "123456"}])


def test_kwargs_cannot_replace_the_conversation():
    template = ChatTemplate("{{ messages | length }}")
    with pytest.raises(TemplateError, match="may not hold `messages`"):
        template.render([], **{"messages": [1, 2]})
    assert template.render([], **{"self": 1, "context": 2, "environment": 3}) == "0"


def test_clashing_and_impossible_continuations_are_refused():
    messages = [{"role": "assistant", "content": "x"}]
    template = ChatTemplate("{{ messages[0].role }}")
    with pytest.raises(TemplateError, match="exclude each other"):
        template.render(messages, continue_final_message=True)
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(TemplateError, match="leaves the final message out"):
        template.render(messages, **options)
    for nothing in ([], [{"role": "assistant"}], [{"role": "assistant", "content": []}]):
        with pytest.raises(TemplateError, match="needs a last message"):
            template.render(nothing, **options)


def test_the_operators_file_replaces_the_models_template(smollm, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ bos_token }}mine")
    assert load_chat_template(smollm, str(path)).render([]) == "<|im_start|>mine"
    path.write_text("line one\n{% if %}")
    with pytest.raises(TemplateError, match="line 2"):
        load_chat_template(smollm, str(path))
    with pytest.raises(TemplateError, match="cannot be read"):
        load_chat_template(smollm, str(tmp_path / "absent.jinja"))


def test_an_empty_template_of_a_model_is_none(smollm):
    assert load_chat_template(Tokenizer(smollm._backend, {}, "")) is None
