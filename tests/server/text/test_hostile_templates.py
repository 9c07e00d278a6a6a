"""Templates that nobody vouches for: none reaches Python's internals, takes the memory, or goes on forever."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.chat_template import MAX_SOURCE_CHARS, ChatTemplate, TemplateError
from server.text.template_sandbox import MAX_DEPTH, Allowance, TemplateSandbox, TooMuch, weight
from server.text.tracing_sandbox import TracingSandbox
from tests.drawn import drawn
from tests.server.api.scripted import Server, run

USER = [{"role": "user", "content": "hi"}]


def grown(start: str, step: str, use: str = "") -> str:
    """`ns.a` after 60 times the same step."""
    return (
        f"{{% set ns = namespace(a={start}) %}}{{% for i in range(60) %}}{{% set ns.a = {step} %}}{{% endfor %}}{use}"
    )


def long(body: str) -> str:
    """This 99,999 times."""
    return f"{{% for i in range(99999) %}}{body}{{% endfor %}}"


# Each would take minutes to centuries, or gigabytes and more.
COSTLY = {
    "product": "{{ 'a' * 10**10 }}",
    "list product": "{{ ([0] * 10**9) | length }}",
    "width %": "{{ '%9999999999d' % 1 }}",
    "width *": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "nested": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "many": "{{ ('%s' * 9000) % (([('a' * 100000)] * 9000) | list) }}",
    "dict": "{{ ('%(a)s' * 90000) % {'a': 'b' * 100000} }}",
    "loops": long(long(long(""))),
    "cond": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "lists": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "sum": "{% for i in range(99999) %}{% set x = range(99999) | map('abs') | sum %}{% endfor %}",
    "mapattr": "{% for i in range(99999) %}{% set x = range(99999) | map(attribute='x') | select | list | length %}{% endfor %}",
    "length": long("{% for j in range(99999) | map('abs') %}{{ loop.length }}{% break %}{% endfor %}"),
    "laughs": grown("'x'", "[ns.a, ns.a]", "{{ ns.a }}"),
    "laughs json": grown("'x'", "[ns.a, ns.a]", "{{ ns.a | tojson }}"),
    "laughs eq": grown("['x', 'x']", "[[ns.a[0], ns.a[0]], [ns.a[1], ns.a[1]]]", "{{ ns.a[0] == ns.a[1] }}"),
    "laughs hash": grown("'x'", "(ns.a, ns.a)", "{{ {ns.a: 1} }}"),
    "laughs get": grown("'x'", "(ns.a, ns.a)", "{{ {}.get(ns.a) }}"),
    "laughs item": grown("'x'", "(ns.a, ns.a)", "{{ {}[ns.a] }}"),
    "laughs ns": grown("'x'", "namespace(a=ns.a, b=ns.a)", "{{ ns.a }}"),
    "laughs dict": grown("'x'", "{'a': ns.a, 'b': ns.a}", "{{ ns.a.values() ~ '' }}"),
    "laughs join": grown("'x'", "[ns.a, ns.a]", "{{ ns.a | join(',') }}"),
    "laughs batch": grown("['x']", "(ns.a + ns.a) | batch(2) | list", "{{ ns.a|string }}"),
    "doubling ~": grown("'xx'", "ns.a ~ ns.a"),
    "doubling +": grown("'xx'", "ns.a + ns.a"),
    "doubling list": grown("[1]", "ns.a + ns.a"),
    "doubling join": grown("'xx'", "[ns.a, ns.a]|join"),
    "doubling method": grown("'xx'", "ns.a.join([ns.a, ns.a])"),
    "join sep": "{{ range(99999) | join('a' * 1000000) }}",
    "method join": "{{ ('a' * 1000000).join(range(99999) | map('string')) }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "method replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace empty": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "const center": "{{ 'a' | center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "indent text": "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "json indent": "{{ [[[1]]] | tojson(indent=999999999) }}",
    "round": "{{ 1.5 | round(999999999, 'ceil') }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10**8) }}",
    "bytes": "{{ (1).to_bytes(9999999999, 'big') }}",
    "batch": "{{ [1] | batch(9999999999, 'x') | list }}",
    "slice": "{{ [1] | slice(9999999999) | list }}",
    "tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "caller": "{% macro m() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}{% call m() %}"
    + "x" * 100000
    + "{% endcall %}",
    "captured": "{% set x %}{% for i in range(99999) %}" + "y" * 100000 + "{% endfor %}{% endset %}",
    "output": "{% for i in range(99999) %}" + "y" * 100000 + "{% endfor %}",
    "slices": "{% set a = 'x' * 10000000 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "compare": "{% set a = 'x' * 10000000 %}{% set b = a ~ '' %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "contains": "{% set a = 'x' * 1000000 %}{% for i in range(99999) %}{% if 'xxxxxxy' in a %}{% endif %}{% endfor %}",
    "split": "{% for i in range(99999) %}{% set a = ('x ' * 100000).split(' ') %}{% endfor %}",
    "upper": "{% set a = 'x' * 10000000 %}{% for i in range(99999) %}{% set b = a|upper %}{% endfor %}",
    "json laughs": grown("'\\\\'", "(ns.a | tojson)", "{{ ns.a|length }}"),
    "cycler": "{% for i in range(99999) %}{% set c = cycler(*range(99999)) %}{% endfor %}",
    "sort": "{% for i in range(99999) %}{% set c = range(99999)|sort(reverse=true) %}{% endfor %}",
    "negative": long("{% set c = [-(10**12)] | map('meter spend') | list %}" + long("")),
    "block": "{% for i in range(99999) %}{% filter upper %}" + "x" * 10000 + "{% endfilter %}{% endfor %}",
    "markup": "{{ ('<' | e) * 10**10 }}",
    "markup %": "{{ ('%9999999999d' | safe) % 1 }}",
    "markup format": "{{ ('{:9999999999}' | safe).format(1) }}",
    "attr format": "{{ ('{:9999999999}' | attr('format'))(1) }}",
    "map format": "{{ ['%9999999999d'] | map('format', 1) | list }}",
    "sum lists": "{% set a = [[1]] * 9999 %}" + long("{{ a | sum(start=[]) | length }}"),
}
REFUSED = {
    "bits": (
        "{% set ns = namespace(n=3) %}{% for i in range(999) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "more than 4096 bits",
    ),
    "power": ("{{ 10 ** 100000 }}", "more than 4096 bits"),
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "macro": ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "recursion"),
    "loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
    "block": ("{% block a %}{{ self.a() }}{% endblock %}", "recursion"),
    "deep": (
        "{% set ns = namespace(a='x') %}{% for i in range(9999) %}{% set ns.a = (ns.a,) %}{% endfor %}{{ {ns.a: 1} }}",
        "nests lists deeper than 200 levels",
    ),
    "deep text": (
        "{% set ns = namespace(a='x') %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        "nests lists deeper than 200 levels",
    ),
    "translate": ("{{ 'a'.translate({97: 'b' * 1000}) }}", "calls translate, which is not for templates"),
    "maketrans": ("{{ ''.maketrans('a', 'b') }}", "calls maketrans"),
    "from_bytes": (
        "{{ (1).from_bytes('a'.encode(), 'big') }}",
        "calls from_bytes",
    ),
    "fromkeys": ("{{ {}.fromkeys(range(99999)) }}", "calls fromkeys"),
    "lipsum": ("{{ lipsum(n=9) }}", "'lipsum' is undefined"),
}
UNCOMPILED = {
    "brackets": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "digits": "{{ " + "9" * 100_000 + " }}",
    "sum": "{{ " + "1+" * 10_000 + "1 }}",
    "conditions": "{% if a %}" * 2000 + "{% endif %}" * 2000,
    "long": "x" * (MAX_SOURCE_CHARS + 1),
    "no such filter": "{{ '<a>' | striptags }}",
}
INSIDES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ strftime_now.__closure__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages.__class__.mro() }}",
    "{{ (messages | map('string')).gi_frame }}",
    "{{ range.__subclasses__() }}",
    "{{ joiner.__init__.__builtins__ }}",
    "{{ loop.__dict__ }}{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append(1) }}{{ messages.clear() }}",
    "{{ messages[0].update({'role': 'system'}) }}{{ messages[0].pop('role') }}",
]


@contextmanager
def memory(gib: float):
    """Within it this process may take so much more address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("sandbox", [TemplateSandbox, TracingSandbox])
@pytest.mark.parametrize("name", COSTLY)
def test_work_beyond_the_allowance_is_refused(name, sandbox):
    template = ChatTemplate(COSTLY[name], sandbox=sandbox)
    with memory(0.5), pytest.raises(TemplateError, match=r"is refused: it needs more than \d+ units of work"):
        template.render(USER)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bounded_size_is_refused(name):
    source, message = REFUSED[name]
    with memory(0.5), pytest.raises(TemplateError, match=message):
        ChatTemplate(source).render(USER)


@pytest.mark.parametrize("name", UNCOMPILED)
def test_sources_that_break_a_compiler_are_refused_at_the_start(name):
    with memory(0.5), pytest.raises(TemplateError, match="chat template"):
        ChatTemplate(UNCOMPILED[name])


def test_nothing_is_computed_while_a_template_is_compiled():
    with memory(0.5):
        ChatTemplate(
            "{{ 'a' | center(9999999999) }}{{ 10 ** 9999999999 }}{{ 'a' * 9999999999 }}{{ '%9999999999d' % 1 }}"
        )


@pytest.mark.parametrize("source", INSIDES)
def test_internals_are_out_of_reach(source):
    messages = [dict(message) for message in USER]
    try:
        rendered = ChatTemplate(source).render(messages)
    except TemplateError as refusal:
        rendered = str(refusal)
    for trace in ("<class", "<module", "<frame", "built-in", "root:", "builtins'", "0x"):
        assert trace not in rendered
    assert messages == USER


def test_a_hostile_template_is_the_clients_400_and_the_server_goes_on():
    async def ask():
        server = Server(template=grown("'x'", "[ns.a, ns.a]", "{{ ns.a }}"))
        for path in ("/v1/chat/completions", "/tokenize"):
            refused = await server.post(path, {"messages": USER})
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["param"] == "messages" and "units of work" in error["message"]
        alive = await server.post("/v1/completions", {"prompt": "a"})
        assert alive.status_code == 200
        assert server.engine.open_count == 0

    run(ask)


def test_numbers_of_a_client_cannot_make_a_template_grow():
    template = ChatTemplate("{{ 'a' * n }}{{ 'b' | center(n) }}{{ '%*d' % (n, 1) }}{{ '{:{w}}'.format(1, w=n) }}")
    assert len(template.render(USER, n=20)) == 80
    with memory(0.5), pytest.raises(TemplateError, match="units of work"):
        template.render(USER, n=2**62)
    with pytest.raises(TemplateError, match="units of work"):
        template.render(USER, n=-(2**62))  # a negative width is a width to the left


# --- what it may do it does as Jinja does -------------------------------------------------------------------------------

HONEST = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role | upper }}: {{ m['content'][:3] ~ '...' }}\n{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content.split('h') | join('-') }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% macro say(x) %}<{{ x }}>{{ caller() if caller }}{% endmacro %}{{ say(1) }}{% call say(2) %}body{% endcall %}",
    "{{ '%s-%05d-%(a)s' % {'a': 1} if false else '%s-%05d' % ('x', 7) }}{{ '{:>5}|{a}'.format(3, a='é') }}",
    "{% set x %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ x | length }}{{ x }}",
    "{{ [3, 1, 2] | sort | first }}{{ {'b': 1, 'a': 2} | dictsort }}{{ {(1, 2): 3}[(1, 2)] }}{{ 'a' in 'abc' }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[::-1][0].content }}{{ 7 // 2 ** 2 % 3 }}",
    "{{ [1, [2, 3]] | tojson(indent=2) }}{{ 'a\nb' | indent(4) }}{{ 'x' | center(9) }}{{ 'aXbX'.replace('X', '--') }}",
    "{% filter upper %}shout {{ messages[0].content }}{% endfilter %}{{ 2.567 | round(1) }}{{ [[1], [2]] | sum(start=[]) }}",
    "{% for a in messages recursive %}{{ a.role }}{% if loop.depth < 3 %}{{ loop(messages) }}{% endif %}{% endfor %}",
    "{{ none }}{{ true }}{{ 1.5 }}{{ [1, 'a'] }}{{ {'a': [none]} }}{{ ('<' | e) ~ '>' }}{{ 'a' < 'b' <= 'c' }}{{ not 1 == 2 }}",
]
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=12)}),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("sandbox", [TemplateSandbox, TracingSandbox])
@pytest.mark.parametrize("source", HONEST)
@given(messages=conversations)
@settings(max_examples=drawn(25))
def test_honest_templates_are_rendered_as_jinja_renders_them(source, sandbox, messages):
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    expected = plain.from_string(source).render(messages=messages)
    assert ChatTemplate(source, sandbox=sandbox).render(messages) == expected


def test_the_largest_conversations_are_within_their_allowance():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content | trim }}"
        "{% if loop.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    for messages in ([{"role": "user", "content": "word " * 3_000_000}], USER * 20_000):
        assert len(ChatTemplate(template).render(messages)) > sum(len(message["content"]) for message in messages)


def test_the_work_of_a_rendering_is_the_same_each_time():
    """The limit is a count, not a time: which conversations a template takes does not depend on the machine."""
    said = set()
    for _ in range(3):
        with pytest.raises(TemplateError) as refused:
            ChatTemplate(grown("'x'", "[ns.a, ns.a]", "{{ ns.a }}")).render(USER)
        said.add(str(refused.value))
    assert len(said) == 1


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_a_value_weighs_at_least_what_it_takes_to_write(value):
    heavy = weight(value, 10**9)
    longest_number = 80
    numbers = json.dumps(value).count(",") + 1
    assert heavy + numbers * longest_number >= len(json.dumps(value, ensure_ascii=False)) / 6
    assert weight([value, value], 10**9) >= 2 * heavy


@given(values, st.integers(0, 400))
def test_weighing_stops_soon_beyond_what_is_left(value, most):
    assert (weight(value, most) > most) == (weight(value, 10**9) > most)


def test_weighing_bounds_depth_and_an_allowance_never_grows():
    value: list = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert weight(value, 10**6) > 0
    with pytest.raises(TooMuch, match=f"deeper than {MAX_DEPTH}"):
        weight([[value]], 10**6)
    allowance = Allowance(10)
    allowance.spend(-(10**9))
    assert allowance.left == 10
    with pytest.raises(TooMuch):
        allowance.spend(11)
    with pytest.raises(TooMuch):
        allowance.spend(0)  # used up is used up
