# ruff: noqa: E501, RUF001 - templates are as people write them
"""Chat templates in the styles that people ship, and such as tell two engines apart."""

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_DEFAULT_SYSTEM = """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content | trim ~ '<|im_end|>' }}
    {{ '' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif %}
"""

INST = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}\
{% set system = messages[0]['content'] %}{% else %}{% set turns = messages %}{% set system = false \
%}{% endif %}{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) \
%}{{ raise_exception('Roles must take turns.') }}{% endif %}{% if loop.index0 == 0 and system %}\
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}\
{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "1 Jan 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Answer with a call in JSON.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time.") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

HEADERS_WITHOUT_DATE = HEADERS.replace('{{- "Today: " + date_string + "\\n\\n" }}\n', "")

MISTRAL_TOOLS = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" or (message["role"] == "assistant" and message.tool_calls is \
not defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Turns must alternate.") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("Ids have nine characters.") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] in ("tool_results", "tool") %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Nobody else may speak.") }}
    {%- endif %}
{%- endfor %}
"""

ZEPHYR = """{% for message in messages %}
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
{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') \
}}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == \
0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}{% if (message['role'] == \
'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

PARTS = """{{ bos_token }}{%- for message in messages -%}
    {{ '<turn>' + message['role'] + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("What is this?") }}
    {%- endif -%}
    {{ '<end>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<turn>model\\n' }}
{%- endif -%}
"""

ONLY_PARTS = """{% for message in messages %}<{{ message.role }}>{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}</>{% endfor %}"""

FULL_WIDTH = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}\
{% endif %}{% set ns = namespace(is_first=false, system='') %}{%- for message in messages %}\
{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}{%- endif %}\
{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for message in messages %}\
{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}{% if '</think>' in content %}\
{% set content = content.split('</think>')[-1] %}{% endif %}\
{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

THINKING = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and \
not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

MACROS = """{%- macro kind(spec) -%}
    {%- if spec.type == "object" -%}
        {{- "{" }}
        {%- for name, inner in spec.properties.items() -%}
            {{- name + ": " + kind(inner) }}
            {%- if not loop.last %}, {% endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- elif spec.enum -%}
        {{- spec.enum | map('string') | join(' | ') if false else spec.enum | length }}
    {%- else -%}
        {{- spec.type | default("any") }}
    {%- endif -%}
{%- endmacro -%}
{%- macro turn(role, text, end="<|end|>") -%}
    {{- "<|start|>" + role + "<|message|>" + text + end }}
{%- endmacro -%}
{%- if tools %}
    {{- turn("developer", "") }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\ntype " + tool.name + " = " + kind(tool.parameters) + ";\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- turn(message.role, message.content) }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{%- endif %}"""

COMMAND = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = \
messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}\
{% set loop_messages = messages %}{% set system_message = 'You are large.' %}{% else %}\
{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% if system_message != false %}{{ '<|SYSTEM|>' + system_message + '<|END|>' }}{% endif %}\
{%- for tool in tools or [] %}
{{ '- ' ~ tool.function.name }}:
{%- for name, spec in tool.function.parameters.properties | dictsort %}
  * {{ name | upper }} ({{ spec['type'] }}, {{ 'required' if name in \
tool.function.parameters.required else 'optional' }}){{ ' ' ~ spec.get('enum', []) | join('/') }}
{%- endfor %}
{%- endfor %}
{% for message in loop_messages %}{% set content = message['content'] %}\
{% if message['role'] == 'user' %}{{ '<|USER|>' + content.strip() + '<|END|>' }}\
{% elif message['role'] == 'assistant' %}{{ '<|BOT|>' + content.strip() + '<|END|>' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|BOT|>' }}{% endif %}"""

SHIPPED = {
    "chatml": CHATML,
    "chatml with a default system message": CHATML_DEFAULT_SYSTEM,
    "[INST]": INST,
    "headers": HEADERS,
    "headers without a date": HEADERS_WITHOUT_DATE,
    "mistral with tools": MISTRAL_TOOLS,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "parts": PARTS,
    "only parts": ONLY_PARTS,
    "full-width bars": FULL_WIDTH,
    "thinking": THINKING,
    "macros": MACROS,
    "command": COMMAND,
}

_EACH = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TELLING = {
    "a variable that a loop sets now and then": "{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last = m.content %}{% endif %}{{ m.role }}:{{ last }};{% endfor %}",
    "the same within loops": "{% set x = 'o' %}{% for m in messages %}{% for k in [1, 2] %}{{ x }}"
    "{% if k == 1 %}{% set x = m.role %}{% endif %}{% endfor %}{{ x }}{% set x = 'p' ~ x %}{% endfor %}",
    "none printed": "{{ none }}{{ tools }}" + _EACH,
    "a list printed": "{{ ['a', 'b'] }}{{ {'a': 1} }}" + _EACH,
    "none as text": "{{ 'a' ~ none ~ 'b' }}" + _EACH,
    "none by default": "{{ none | default('x') }}{{ absent | default('y') }}" + _EACH,
    "an object by default": "{{ (messages[0] | default({})).role }}" + _EACH,
    "split at spaces": "{{ messages[0].content.split() | length }}" + _EACH,
    "split": "{{ messages[0].content.split('2')[-1] }}{{ 'a-b-c'.rsplit('-', 1)[0] }}" + _EACH,
    "the last character": "{{ messages[0].content[-1] }}" + _EACH,
    "bytes": "{{ messages[0].content | length }}{{ messages[0].content[0:9] }}" + _EACH,
    "upper case": "{{ messages[0].content | upper }}{{ messages[0].content | title }}" + _EACH,
    "an unknown filter": "{% if tools %}{{ 'a' | wordwrap(3) }}{% endif %}" + _EACH,
    "unique": "{{ messages | map(attribute='role') | unique | join(',') }}" + _EACH,
    "mapping": "{{ messages | map(attribute='role') | join(',') }}" + _EACH,
    "a filter mapped": "{{ ['a'] | map('upper') | join }}" + _EACH,
    "sorted keys": "{{ messages[0] | tojson(sort_keys=true) }}" + _EACH,
    "json": "{{ tools | tojson }}{{ messages | tojson(indent=2) }}" + _EACH,
    "json in ascii": "{{ messages[0].content | tojson(ensure_ascii=true) }}" + _EACH,
    "numbers": "{{ 1 / 3 }} {{ 2.50 }} {{ 7 % 3 }} {{ 3 * 'x' }} {{ 'n' ~ 5 }}" + _EACH,
    "an escape": "{{ '\\u2581' }}" + _EACH,
    "another escape": "{{ '\\t\\'\\\\' }}" + _EACH,
    "a power": "{{ 2 ** 3 }}" + _EACH,
    "a whole quotient": "{{ 7 // 2 }}" + _EACH,
    "with": "{% with a = 1 %}{{ a }}{% endwith %}" + _EACH,
    "do": "{% do messages %}" + _EACH,
    "raw": "{% raw %}{{ x }}{% endraw %}" + _EACH,
    "kept space": "a\n  {%+ if true %}b{% endif %}" + _EACH,
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "cycle": "{% for m in messages %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "a negative choice": "{{ 1 if true else -1 }}" + _EACH,
    "named arguments": "{% macro f(a, b=1, c=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}"
    "{{ f('x', c=3) }}" + _EACH,
    "a caller": "{% macro f(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call f('x') %}y{% endcall %}"
    + _EACH,
    "a block set": "{% set a %} b {{ messages[0].role }}{% endset %}{{ a | trim }}" + _EACH,
    "a filter block": "{% filter upper %}b{% endfilter %}" + _EACH,
    "spaces": "  {%- if true %}\n  a\n{% endif %}\n  {# b #}\n c\n{{ 'd' }}\n\n" + _EACH + "\n",
    "the padding token": "{{ pad_token }}" + _EACH,
    "the date": "{{ strftime_now('%Y') }}" + _EACH,
    "thinking by default": "{% if enable_thinking %}<think>{% endif %}" + _EACH,
    "tools that are none": "{% if tools is not none %}T{% endif %}" + _EACH,
    "no prompt is false": "{{ add_generation_prompt }}" + _EACH,
    "reasoning": "{% for m in messages %}{{ m.reasoning_content or m.thinking }}{{ m.content }}"
    "{% endfor %}",
    "a member of a string": "{{ messages[0].content.foo is defined }}{{ messages[0].content.removeprefix('W') }}"
    + _EACH,
    "keys of a message": "{% for k in messages[0] %}{{ k }}{% endfor %}" + _EACH,
    "tests": "{{ 1 is number }}{{ true is number }}{{ 'a' is sequence }}{{ 3 is odd }}{{ 'x' is in "
    "['x'] }}{{ 2 is divisibleby 2 }}{{ tools is iterable }}" + _EACH,
    "strings": "{{ 'a,b'.replace(',', ';') }}{{ 'x {} y'.format(3) }}{{ ' a '.strip() }}{{ 'ab'"
    ".startswith('a') }}{{ 'a\nb' | indent(2) }}{{ '7' | int + 1 }}{{ 'ab' | first }}" + _EACH,
    "lists": "{{ [3, 1, 2] | sort | join(',') }}{{ [1, 2] | last }}{{ [1, 2, 3][1:] | length }}{{ "
    "range(3) | list | join }}{{ [1, 2] + [3] }}" + _EACH,
}

EXPRESSIONS = r"""
{{ 'a' if x }}
{{ ('a' if false) is defined }}
{{ messages[0].get('name', 'none') }}
{{ messages[0]['nope'] is defined }}{{ messages[0].nope.deeper is defined }}
{{ messages[-1].role }}{{ messages[99].role is defined }}
{{ messages | length > 1 and messages[1].role == 'assistant' }}
{{ not messages }}{{ not tools }}
{{ 'a' in 'abc' }}{{ 'z' not in 'abc' }}{{ 'role' in messages[0] }}
{{ 1 < 2 }}{{ 2 >= 2 }}{{ 1 == 1.0 }}{{ true == 1 }}{{ none == none }}{{ 'a' == 'a' }}{{ 'a' != 1 }}
{{ 'a' < 'b' }}
{{ 1 < 2 < 3 }}
{{ 3 - 1 }}{{ 3 -1 }}{{ -1 }}{{ [1,2][-1] }}{{ 10 / 2 }}{{ 5 % 3 }}{{ -5 % 3 }}
{{ 1.5 + 1 }}{{ 0.1 + 0.2 }}{{ 1e3 }}
{{ 'a' ~ 1 ~ 2.5 ~ true ~ none ~ x }}
{{ 'a' + 1 }}
{{ 1 ~ 2 }}
{{ [1, 'a', true, none, 2.5, ['x'], {'k': 'v'}] | string }}
{{ {'a': 1, 'b': [1,2]} | tojson }}{{ {'a': "it's", 'b': 'x\ny'} | string }}
{{ [1,2,3] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ {'a': {'b': []}} | tojson(indent=4) }}
{{ {'a': 1} | tojson(separators=(',', ':')) }}
{{ 'é' | tojson(true) }}{{ 1.25 | tojson }}{{ 1234567.5 | tojson }}{{ true | tojson }}{{ none | tojson }}
{{ 'abc'[0] }}{{ 'abc'[1:] }}{{ 'abc'[:-1] }}{{ 'abc'[::-1] }}{{ 'abc'[-2:] }}
{{ [1,2,3][::-1] | join(',') }}{{ [1,2,3][:2] | list }}{{ [1,2,3][-2:] | join }}
{{ (1, 2) }}{{ (1, 2) | list | join('-') }}{{ (1,2)[0] }}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{{ loop.index }}{{ loop.last }};{% endfor %}
{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}
{% for k, v in {'a': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}
{% for c in 'abc' %}{{ c }}{% endfor %}
{% for x in none %}{{ x }}{% endfor %}
{% for x in nothing %}{{ x }}{% else %}empty{% endfor %}
{% for x in [] %}{{ x }}{% else %}empty{% endfor %}
{% for x in [1,2,3] if x > 1 %}{{ x }}{{ loop.first }}{{ loop.length }}{% endfor %}
{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% else %}E{% endfor %}
{% for x in [1,2,3] %}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }}{{ loop.revindex0 }}{% endfor %}
{% for x in [1,2] %}{% for y in [1,2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
{% set x = 1 %}{% for i in [1,2] %}{% set x = x + 1 %}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set ns = namespace(a=1, b='x') %}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}
{% set d = dict(a=1) %}{{ d.a }}{{ d | length }}{{ d.keys() | list | join }}
{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}{{ m('a') }}{{ m() }}
{% macro m(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, y=3) }}{{ m(x=4) }}{{ m(y=5, x=6) }}
{% macro m() %}{{ messages | length }}{% endmacro %}{{ m() }}{{ m() | length }}
{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(3) }}
{% for m in messages %}{% set role = m.role %}{{ role }}{% endfor %}{{ role is defined }}
{{ 'Hello World' | lower }}{{ 'hello world' | title }}{{ 'hELLO' | capitalize }}{{ "don't stop" | title }}
{{ ' x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'xxaxx'.strip('x') }}{{ '\n a\t' | trim }}
{{ 'a,b,c'.split(',') | join('|') }}{{ 'a,b,c'.split(',', 1) | last }}{{ 'abc'.split('x')[0] }}
{{ 'a b  c'.split(' ') | length }}
{{ 'aXbXc' | replace('X', '-') }}{{ 'abc'.replace('b', '') }}{{ 'aaa' | replace('a', 'b', 2) }}
{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('c', 'd')) }}
{{ 'abc'.find('b') }}
{{ 'abc'.upper() }}{{ 'ABC'.lower() }}{{ 'abc'.title() }}{{ 'abc'.capitalize() }}
{{ 'abc'.isdigit() }}
{{ '-'.join(['a', 'b']) }}
{{ 'a%sb' % 'x' }}
{{ 'a%sb' | format('x') }}
{{ '{}-{}'.format(1, 'b') }}{{ '{0}'.format(1) }}
{{ '5' | int + 1 }}{{ 'x' | int }}{{ 'x' | int(7) }}{{ '1.5' | float }}{{ 3 | float }}{{ 3.7 | int }}{{ true | int }}
{{ -3 | abs }}{{ 2.4 | round }}
{{ [3,1,2] | sort | join }}{{ ['b','A','a'] | sort | join }}{{ [3,1] | sort(reverse=true) | join }}
{{ [{'a':2},{'a':1}] | sort(attribute='a') | map(attribute='a') | join }}
{{ [1,2,3] | sum }}
{{ [1,2,3] | max }}{{ [1,2,3] | min }}{{ [] | max }}
{{ [1,2,3] | first }}{{ [] | first }}{{ [1,2,3] | last }}{{ 'abc' | last }}
{{ [1,2,3] | reverse | join }}{{ 'abc' | reverse }}
{{ [1,2] | length }}{{ 'abc' | count }}{{ {'a':1} | length }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}
{{ messages | selectattr('tool_calls') | list | length }}{{ messages | selectattr('tool_calls', 'defined') | list | length }}
{{ [1,2,3,4] | select('even') | list | join }}{{ [0,1] | select | list | length }}{{ [1,2] | reject('equalto', 1) | list | join }}
{{ messages | map(attribute='content') | map('length') | join(',') }}
{{ messages | map(attribute='content', default='x') | join('|') }}
{{ messages | groupby('role') | length }}
{{ [[1,2],[3]] | sum(start=[]) }}
{{ [1,2,3] | batch(2) | list }}
{{ x | default('d') }}{{ '' | default('d') }}{{ '' | default('d', true) }}{{ none | default('d', true) }}{{ 0 | default(5, boolean=true) }}{{ false | default('f', true) }}
{{ x | d('q') }}{{ messages[0].name | default(none) is none }}
{{ 'a' is string }}{{ 1 is integer }}{{ 1.0 is float }}{{ [] is iterable }}{{ {} is mapping }}{{ true is boolean }}{{ none is none }}{{ x is undefined }}{{ (1,2) is sequence }}{{ 'a' is iterable }}
{{ 1 is not none }}{{ x is not defined }}{{ messages is defined and messages is not none }}
{{ 3 is divisibleby(3) }}{{ 3 is eq 3 }}{{ 3 is gt 2 }}{{ 3 is ne 3 }}{{ 3 is le 3 }}
{{ 'a' is in 'abc' }}{{ 'a' in ['a'] }}{{ 2 in [1, 2.0] }}{{ none in [none] }}{{ 'x' in nothing }}
{{ 'a' is lower }}{{ 'A' is upper }}{{ 'a' is sameas 'a' }}{{ none is sameas none }}{{ true is sameas true }}{{ true is true }}{{ 1 is true }}
{{ range(3) | join }}{{ range(1, 4) | join }}{{ range(5, 0, -2) | join }}{% for i in range(2) %}{{ i }}{% endfor %}
{{ raise_exception('stop') }}
{{ true }}{{ false }}{{ True }}{{ None }}{{ none }}
{{ '<b>&' | escape }}
{{ '<b>' | e }}
{{ '<b>' | safe }}{{ 1 | string + 'a' }}{{ none | string }}{{ true | string }}
{{ "a\\nb" }}{{ 'a\nb' }}{{ "tab\tq\"" }}
{{- 'x' -}}   y   {{- 'z' }}
  {% if true %}  a  {% endif %}  b
{#- c -#}  d {# e #}
f
{% if true -%}   a   {%- endif %}
{{ '{{' }}{{ '}}' }}{{ "{%" }}
{{ {'a': {'b': 1}}.a.b }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 2) }}
{{ {'items': 3}.items is defined }}{{ {'items': 3}['items'] }}{{ {'get': 3}['get'] }}
{{ {'length': 7}.length }}
{{ {1: 'a'}[1] }}{{ [1,2].0 }}
{{ [1,2] + [3] }}{{ [1] * 2 }}{{ 'ab' * 2 }}{{ 2 * 'ab' }}
{{ {'a': 1} == {'a': 1} }}{{ [1] == [1] }}{{ {'a': [1]} == {'a': [1]} }}{{ messages[0] == messages[0] }}
{{ messages[0] != messages[1] }}
{% if messages[0].content is string %}s{% elif x %}y{% else %}z{% endif %}
{{ 'a' or 'b' }}{{ '' or 'b' }}{{ none or 'c' }}{{ 'a' and 'b' }}{{ x or 'd' }}{{ not x }}
{{ (messages | last).role }}{{ (messages | first)['content'] | length > 0 }}
{{ messages[0].content.split('\n')[0] }}
{% set t %}  text {{ 1 + 1 }} {% endset %}[{{ t }}]{{ t | trim | length }}
{% call(a) m2() %}{{ a }}{% endcall %}
{% macro w() %}<{{ caller('q') }}>{% endmacro %}{% call(a) w() %}{{ a }}{% endcall %}
{% filter trim %}  a  {% endfilter %}{% filter replace('a', 'b') %}aba{% endfilter %}
{{ strftime_now('%d %B') is string }}
{{ date_string is defined }}{{ datetime is defined }}{{ enable_thinking is defined }}{{ documents is defined }}{{ tools is defined }}{{ unk_token is defined }}
{{ messages[0]['content'] | trim + 'x' }}{{ messages[0]['content'] | string | length > 3 }}
{{ 'x' if messages | length == 1 else 'y' if messages | length == 2 else 'z' }}
{{ ['a', 'b'] | join(', ') }}{{ [1, 2.5] | join('+') }}{{ [true] | join }}
{{ 'line1\nline2' | indent }}{{ 'a\nb\n' | indent(2, true) }}{{ 'a\n\nb' | indent(2, blank=true) }}
{{ 'word word' | wordcount }}
{{ 'abcdef' | truncate(3) }}
{{ messages | tojson }}
{{ [1,2,3] | random is number }}
{{ [1,2] | list | length }}{{ 'ab' | list | join(',') }}{{ {'a': 1} | list | join }}
{{ {'b': 1, 'a': 2} | dictsort | list }}
{{ {'b': 1, 'a': 2} | items | list | length }}
{{ {'b': 1}.values() | list | join }}{{ {'b': 1} | length }}
{{ 'a' | upper | lower ~ 'B' | lower }}
{{ -1 | abs }}{{ +3 }}{{ 2 - -1 }}
{{ x.y.z }}{{ x['a'] }}{{ x() }}
{{ messages[0].role.upper() }}{{ messages[0]['role'][0] }}
{{ loop is defined }}
{% set x = [] %}{{ x | length }}{% set x = x + [1] %}{{ x | length }}
{% set _ = x %}{{ _ is defined }}
{{ 'a' 'b' }}
{{ 7.0 }}{{ 7.10 }}{{ 100000000.0 }}{{ 1/3 }}{{ 2/1 }}{{ 12345678 * 1000 }}
{{ messages|length }}{{ messages | length }}{{messages[0]['role']}}
{%- for m in messages -%}{{ m['role'] ~ ':' ~ (m['content'] or '') }}{{ ',' if not loop.last }}{%- endfor -%}
{% for m in messages %}{% if m['role'] == 'user' %}{% set ns2 = namespace(q=m.content) %}{% endif %}{% if ns2 is defined %}{{ ns2.q }}{% endif %}{% endfor %}
{% for m in messages %}{% if loop.first %}{% set w = 'F' %}{% else %}{% set w = w ~ 'N' %}{% endif %}{{ w }}{% endfor %}
{% for m in messages %}{% if false %}{% set q = 1 %}{% endif %}{{ q is defined }}{% endfor %}
{% if true %}{% for m in messages %}{% set c = m.content %}{% if c %}{% set h = c[:3] %}{% endif %}{{ h }}{% endfor %}{% endif %}
{{ messages[0].content | replace('\n', ' ') }}{{ messages[0].content is string }}
{{ messages[0].content | length }}
{{ tools[0].function.parameters.properties.a.type if tools }}
{% for t in tools %}{{ t.function | tojson(indent=2) }}{% endfor %}
{% for t in tools or [] %}{% for k, v in t.function.parameters.properties.items() %}{{ k }}:{{ v.type }}{{ v.get('description', '') }}{% endfor %}{% endfor %}
{% for m in messages if m.role != 'system' %}{{ m.role }}{{ loop.index }}{% endfor %}
{% for m in messages | selectattr('role', 'in', ['user', 'tool']) %}{{ m.role }}{% endfor %}
{% for m in messages %}{% for tc in m.tool_calls %}{{ tc.function.name }}{{ tc.function.arguments }}{% endfor %}{% endfor %}
{% for m in messages %}{% for tc in m.tool_calls or [] %}{% for k, v in tc.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}{% endfor %}
{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{{ m.tool_calls[0]['id'] }}{% endif %}{{ m.content }}{{ m.name }}{% endfor %}
{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}
{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}
{% for m in messages %}{{ m.content[0].text }}{% endfor %}
{% for m in messages %}{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}{% endfor %}
""".strip().splitlines()
"""A template per line: what templates are made of, one thing or a few at a time."""
