"""No message is lost because a template wants its content in another shape: it gets that shape, or the request a 400."""

from datetime import datetime

import pytest

from server.text.chat_renderer import ChatRenderer
from server.text.chat_template import ChatTemplate, TemplateError
from tests.server.api.scripted import Server, run

STRINGS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
# Each renders [role]text, in its own way to read the text
ALIKE = {
    "strings": STRINGS,
    "trimmed": STRINGS.replace("m.content", "m.content | trim"),
    "added": "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}",
    "parts": PARTS,
    "typed parts": PARTS.replace("{{ p.text }}", "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}"),
    "one part": STRINGS.replace("m.content", "m.content[0].text"),
    "one part added": "{% for m in messages %}{{ '[' + m.role + ']' + m['content'][0]['text'] }}{% endfor %}",
    "mapped": STRINGS.replace("m.content", "m.content | map(attribute='text') | join"),
    "both": "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}",
    "iterable": "{% for m in messages %}[{{ m.role }}]{% if m.content is iterable and m.content is not string %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    # as the vision models of a well-known family: the system's text is a string, the others' may be parts
    "mixed": "{% if messages[0].role == 'system' %}[system]{{ messages[0]['content'] | trim }}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "assistant's string": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '[assistant]' + m.content }}{% else %}"
    "[{{ m.role }}]{{ m.content[0]['text'] + '' }}{% endif %}{% endfor %}",
    "raises for strings": PARTS.replace(
        "{% for p", "{% if m.content is string %}{{ raise_exception('parts, please') }}{% endif %}{% for p"
    ),
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PARTS,
    "alternating": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + PARTS,
    "split": STRINGS.replace("m.content", "m.content.split('</think>')[-1]"),
}
SAID = {"user": ["ab ", "c"], "assistant": ["d", "e"], "system": ["f", " ", "g"]}
CONVERSATIONS = [("user",), ("user", "assistant", "user"), ("system", "user"), ("system", "user", "assistant", "user")]


def renderer(source):
    return ChatRenderer(ChatTemplate(source), lambda text, special: [])


@pytest.mark.parametrize("roles", CONVERSATIONS, ids=" ".join)
@pytest.mark.parametrize("name", ALIKE)
def test_the_same_prompt_from_a_string_and_from_parts(name, roles):
    if name in ("no system", "alternating") and "system" in roles:
        return
    ours = renderer(ALIKE[name])
    expected = "".join(f"[{role}]{''.join(SAID[role])}" for role in roles)
    for content in (lambda role: SAID[role], lambda role: "".join(SAID[role])):
        assert ours.render([{"role": role, "content": content(role)} for role in roles]) == expected


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("content", ["", [], [""], ["", ""]])
def test_empty_content_is_empty(name, content):
    assert renderer(ALIKE[name]).render([{"role": "user", "content": content}]) == "[user]"


@pytest.mark.parametrize("source", [STRINGS, PARTS])
def test_a_template_may_say_things_twice(source):
    for content in ("hi", ["h", "i"]):
        assert renderer(source + source).render([{"role": "user", "content": content}]) == "[user]hi[user]hi"


def test_a_template_that_takes_parts_gets_them_apart():
    """What it does between them is its own affair, as with transformers."""
    source = PARTS.replace("{{ p.text }}", "<{{ p.text | trim }}>")
    message = {"role": "user", "content": ["a ", "b"]}
    assert renderer(source).render([message]) == "[user]<a><b>"
    assert renderer(source).render([message | {"content": "a b"}]) == "[user]<a b>"


@pytest.mark.parametrize("source", [STRINGS, PARTS, ALIKE["both"]])
@pytest.mark.parametrize("content", ["so far ", ["so ", "far "]])
def test_the_last_message_is_continued_in_either_shape(source, content):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    closed = source.replace("{% endfor %}{% endfor %}", "{% endfor %}.{% endfor %}")
    assert renderer(closed).render(messages, **options).endswith("[assistant]so far ")


LOST_FOR_ALL = {
    "roles only": "{% for m in messages %}[{{ m.role }}]{% endfor %}",
    "nothing": "Hello!",
    "another key": STRINGS.replace("m.content", "m.text"),
    "parts' type": PARTS.replace("p.text", "p.type"),
    "characters": "{% for m in messages %}{% for p in m.content %}{{ p.content if p is mapping }}{% endfor %}{% endfor %}",
    "no users": "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    "dumped parts": "{% for m in messages %}{{ m.content if m.content is not string }}{% endfor %}",
}


@pytest.mark.parametrize("name", LOST_FOR_ALL)
def test_a_template_that_leaves_out_the_user_is_refused(name):
    with pytest.raises(TemplateError, match="leaves out what the user says"):
        renderer(LOST_FOR_ALL[name])


NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
LAST_ONLY = "[{{ messages[-1].role }}]{{ messages[-1].content }}"
ONLY_USERS = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
FIRST_SYSTEM = STRINGS.replace("[{{", "{% if m.role != 'system' or loop.first %}[{{").replace(
    "{% endfor", "{% endif %}{% endfor"
)
# As published: one writes the last system message it finds, the other one puts it into a user's message that ends the conversation.
LAST_SYSTEM = (
    "{% set ns = namespace(said='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.said = m.content %}{% endif %}"
    "{% endfor %}{{ ns.said }}{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}"
)
SYSTEM_IN_LAST_USER = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}[{{ m.role }}]{{ said if loop.last and m.role == 'user' }}"
    "{{ m.content }}{% endfor %}"
)
LATEST_TURNS = STRINGS.replace("in messages", "in messages[-300:]")


@pytest.mark.parametrize(
    ("source", "roles", "lost"),
    [
        (NO_SYSTEM, "user", None),
        (NO_SYSTEM, "user assistant user", None),
        (NO_SYSTEM, "system user", 0),
        (NO_SYSTEM, "user system", 1),
        (LAST_ONLY, "user", None),
        (LAST_ONLY, "user assistant user", 0),
        (LAST_ONLY, "system user", 0),
        (ONLY_USERS, "user", None),
        (ONLY_USERS, "user user user", None),
        (ONLY_USERS, "user assistant user", 1),
        (FIRST_SYSTEM, "system user assistant user", None),
        (FIRST_SYSTEM, "user system user", 1),
        (LAST_SYSTEM, "system user", None),
        (LAST_SYSTEM, "system system user", None),
        (LAST_SYSTEM, "system user system", 0),
        (LAST_SYSTEM, "user system user assistant user system", 1),
        (SYSTEM_IN_LAST_USER, "system user assistant user", None),
        (SYSTEM_IN_LAST_USER, "system user assistant", 0),
        (SYSTEM_IN_LAST_USER, "system", 0),
        (LATEST_TURNS, " ".join(["user"] * 300), None),
        (LATEST_TURNS, " ".join(["user"] * 301), 0),
    ],
)
def test_a_message_that_the_template_would_leave_out_is_refused(source, roles, lost):
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    if lost is None:
        assert "x" in renderer(source).render(messages)
        return
    with pytest.raises(TemplateError, match=rf"leave out messages\[{lost}\], of the role {messages[lost]['role']}"):
        renderer(source).render(messages)


@pytest.mark.parametrize("nothing", ["", [], [""]])
def test_a_message_that_says_nothing_may_be_left_out(nothing):
    messages = [{"role": "system", "content": nothing}, {"role": "user", "content": "x"}]
    assert renderer(NO_SYSTEM).render(messages) == "[user]x"


def test_an_order_of_roles_is_tried_once():
    renderings = []

    def now():
        renderings.append(1)
        return datetime(2026, 1, 1)

    ours = ChatRenderer(ChatTemplate("{{ strftime_now('') }}" + STRINGS, now=now), lambda text, special: [])
    counts = []
    for roles in (["user"], ["user"], ["user", "user"], ["user", "user"]):
        renderings.clear()
        ours.render([{"role": role, "content": "x"} for role in roles])
        counts.append(len(renderings))
    assert counts == [2, 1, 2, 1]


def test_a_template_that_refuses_says_so_itself(caplog):
    ours = renderer(ALIKE["no system"])
    with pytest.raises(TemplateError, match=r"^System role not supported$"):
        ours.render([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}])
    with pytest.raises(TemplateError, match=r"^never$"):
        renderer("{{ raise_exception('never') }}").render([{"role": "user", "content": "x"}])
    assert caplog.messages == ["the chat template refuses the plainest conversation: never"]


def test_over_http_in_both_shapes():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]

    async def ask():
        for template in (STRINGS, PARTS):
            server = Server(template=template)
            for content in ("Hello", parts):
                answer = await server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
                assert answer.status_code == 200
                assert bytes(server.process.requests[-1].prompt_ids) == b"[user]Hello"
        lossy = Server(template=NO_SYSTEM)
        messages = [{"role": role, "content": "x"} for role in ("developer", "user")]
        refused = await lossy.post("/v1/chat/completions", {"messages": messages})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["param"] == "messages" and "leave out messages[0], of the role system" in error["message"]

    run(ask)
